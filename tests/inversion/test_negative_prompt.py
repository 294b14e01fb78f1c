"""Negative-prompt inversion: the source cancels at any guidance, and prox holds back what is small."""

import math

import pytest
import torch

from retrace.inversion import NegativePrompt, invert, proximal, relative_error, replay, slerp
from retrace.inversion.negative_prompt import grown
from retrace_tests.inversion.problems import CLIP_SHAPE, SHAPE, Mixture, full_grid


def played(mixture, record, settings, prompt="target", **more):
    denoiser = settings.denoiser(record, mixture.denoiser(), mixture.denoiser(prompt))
    return replay(record, mixture.denoiser(), denoiser, **more)


def made(space, method="euler", index=16, steps=20, shape=SHAPE):
    mixture = Mixture(space, shape)
    return mixture, invert(mixture.denoiser(), mixture.sample(3), full_grid(space, steps), index, method)


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize("method", ["euler", "midpoint", "edict", "bdia"])
@pytest.mark.parametrize("prox", ["none", "l0", "l1"])
def test_the_source_as_target_is_the_walk_without_guidance_bit_for_bit(space, method, prox):
    mixture, record = made(space, method)
    for cfg in (1.0, 7.5, 40.0):
        again = played(mixture, record, NegativePrompt(cfg, prox), "source")
        assert torch.equal(again, replay(record, mixture.denoiser()))
    if method in ("edict", "bdia"):
        assert relative_error(again, record.x0) <= 1e-11


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_plain_it_is_guidance_with_the_source_as_negative(space):
    mixture, record = made(space)
    null = mixture.embeddings["null"]
    mixture.embeddings["null"] = mixture.embeddings["source"]
    guided = replay(record, mixture.denoiser(), mixture.denoiser("target", 5.0))
    mixture.embeddings["null"] = null
    source, target = mixture.denoiser(), mixture.denoiser("target")
    denoiser = NegativePrompt(5.0).denoiser(record, source, target)
    torch.testing.assert_close(replay(record, mixture.denoiser(), denoiser), guided, rtol=1e-9, atol=1e-9)
    assert denoiser.evaluations == source.evaluations == target.evaluations == 16
    # cfg 0 leaves the source alone, cfg 1 the target.
    assert torch.equal(played(mixture, record, NegativePrompt(0.0)), replay(record, mixture.denoiser()))
    plain = replay(record, mixture.denoiser(), mixture.denoiser("target"))
    torch.testing.assert_close(played(mixture, record, NegativePrompt(1.0)), plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prox", ["l0", "l1"])
def test_the_thresholds_are_proximal_maps(prox):
    """Each kept entry minimises (z - v)^2 / 2 + c |z|, or + c^2 / 2 for being other than 0."""
    v = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept, through = proximal(v, prox, 0.6)
    candidates = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    for row in range(2):
        c = float(v[row].abs()[through[row] == 0].max())
        for value, found in zip(v[row].flatten()[:20], kept[row].flatten()[:20], strict=True):
            penalty = c * candidates.abs() if prox == "l1" else 0.5 * c**2 * (candidates.abs() > 1e-9)
            best = candidates[(0.5 * (candidates - value) ** 2 + penalty).argmin()]
            assert abs(float(best - found)) <= 2e-3


def test_the_share_is_counted_in_each_row():
    v = torch.randn(3, 4, 10, 10, generator=torch.Generator().manual_seed(1))
    v = v * torch.tensor([1.0, 1e3, 1e-3]).reshape(3, 1, 1, 1)
    for quantile in (0.25, 0.75, 0.9):
        kept, through = proximal(v, "l0", quantile)
        assert [int(row.sum()) for row in through] == [round(400 * (1 - quantile))] * 3
        assert torch.equal(kept, v * through)
    assert torch.equal(proximal(v, "l1", 0.0).kept, v) and torch.equal(proximal(v, "none", 0.9).kept, v)
    everything = proximal(v, "l1", 1.0)
    assert not everything.kept.any() and not everything.through.any()
    # The published soft threshold never turns a sign.
    soft = proximal(v, "l1", 0.5).kept
    assert bool((soft * v >= 0).all()) and bool((soft.abs() <= v.abs()).all())


def test_the_pull_holds_what_was_not_let_through():
    mixture, record = made("ve", index=20)
    free, pulled = (played(mixture, record, NegativePrompt(5.0, "l0", 0.9, pull, 0.4, dilate=0)) for pull in (0.0, 1.0))
    assert relative_error(pulled, record.x0) < 0.7 * relative_error(free, record.x0)
    # All held back and pulled to the last step: the source itself, whatever Euler had lost.
    exact = played(mixture, record, NegativePrompt(5.0, "l0", 1.0, 1.0, 0.4))
    assert relative_error(exact, record.x0) <= 1e-15
    off = played(mixture, record, NegativePrompt(5.0, "l0", 0.9, 1.0, 0.0))
    assert torch.equal(off, free)


def test_the_pull_begins_where_it_is_told():
    mixture, record = made("ve", index=20)
    plain, pulled = (NegativePrompt(5.0, "l1", 0.9, pull, 0.25) for pull in (0.0, 1.0))
    denoisers = [each.denoiser(record, mixture.denoiser(), mixture.denoiser("target")) for each in (plain, pulled)]
    same = [torch.equal(*(denoiser(record.x, sigma) for denoiser in denoisers)) for sigma in record.falling]
    assert same == [True] * 15 + [False] * 6


@pytest.mark.parametrize("shape", [SHAPE, CLIP_SHAPE])
def test_growth_is_within_a_frame(shape):
    mask = torch.zeros(2, *shape)
    mask[0, 1, ..., 1, 2] = 1.0
    for cells in (0, 1):
        big = grown(mask, cells)
        rows, columns = slice(1 - cells, 2 + cells), slice(2 - cells, 3 + cells)
        wanted = torch.zeros_like(mask)
        wanted[0, 1, ..., rows, columns] = 1.0
        assert torch.equal(big, wanted)


def test_slerp_walks_the_arc():
    low, high = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(slerp(low, high, 0.0), low) and torch.equal(slerp(low, high, 1.0), high)
    unit = low / low.flatten(1).norm(dim=1).reshape(3, 1, 1)
    other = high / high.flatten(1).norm(dim=1).reshape(3, 1, 1)
    angle = (unit * other).flatten(1).sum(1).acos()
    for weight in (0.25, 0.5, 0.9):
        found = slerp(unit, other, weight)
        torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close((found * unit).flatten(1).sum(1).acos(), weight * angle)
    # Where there is no angle, the chord: finite, and between the two.
    for a, b in ((unit, 3 * unit), (unit, -unit), (torch.zeros_like(unit), unit)):
        torch.testing.assert_close(slerp(a, b, 0.25), 0.75 * a + 0.25 * b, rtol=1e-6, atol=1e-6)
    # The norm of large numbers is none in half precision.
    half = slerp((2e4 * low).half(), (2e4 * high).half(), 0.5)
    torch.testing.assert_close(half, (2e4 * slerp(low, high, 0.5)).half(), rtol=2e-3, atol=20.0)
    with pytest.raises(ValueError, match="embeddings must have one shape"):
        slerp(low, high[:, :2], 0.5)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"prox": "l2"}, "prox must be one of none, l0, l1, got 'l2'"),
        ({"quantile": 1.5}, "quantile must be at most 1.0, got 1.5"),
        ({"quantile": math.nan}, "quantile must be a finite float"),
        ({"prox": "l1", "pull": 2.0}, "pull must be at most 1.0, got 2.0"),
        ({"pull": 0.5}, "pull must be 0 with prox none, got 0.5"),
        ({"prox": "l1", "pull_steps": -0.1}, "pull_steps must be at least 0.0, got -0.1"),
        ({"dilate": -1}, "dilate must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, part):
    with pytest.raises((ValueError, TypeError), match="must") as caught:
        NegativePrompt(**settings)
    assert part in str(caught.value)


@pytest.mark.parametrize("shape", [SHAPE, CLIP_SHAPE], ids=["picture", "clip"])
def test_cells_beside_what_was_let_through_are_not_pulled(shape):
    mixture, record = made("ve", shape=shape)
    x, sigma = record.x, record.sigmas[2]
    base = mixture.denoiser()(x, sigma)
    kept, through = proximal(mixture.denoiser("target")(x, sigma) - base, "l0", 0.95)
    spared = grown(through, 1)
    assert bool((spared > through).any()) and bool((spared == 0.0).any())
    settings = NegativePrompt(3.0, "l0", 0.95, pull=1.0, pull_steps=1.0, dilate=1)
    found = settings.denoiser(record, mixture.denoiser(), mixture.denoiser("target"))(x, sigma)
    wanted = torch.where(spared == 1.0, base + 3.0 * kept, record.x0)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
