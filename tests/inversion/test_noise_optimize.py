"""Noise optimisation on the exact denoiser: it meets its reference and stays near. Its loop: core/test_fitting."""

from dataclasses import replace

import pytest
import torch

from retrace.inversion import (
    MisfitError,
    NoiseDescent,
    get_method,
    implied_noise,
    invert,
    meet,
    noise_optimize,
    replay,
    walk,
)
from retrace_tests.inversion.problems import CLIP_SHAPE, SHAPE, Mixture, full_grid

STEPS = 8


def problem(space, batch=2, method="midpoint", shape=SHAPE, **settings):
    """A mixture, the inversion of a source, the target's denoiser, and a latent that the target can make."""
    mixture = Mixture(space, shape)
    inversion = invert(mixture.denoiser(), mixture.sample(batch), full_grid(space, STEPS), STEPS, method, **settings)
    return mixture, inversion, mixture.denoiser("target", 2.0), mixture.sample(batch, seed=7, prompt="target")


@pytest.mark.parametrize(
    ("space", "norm", "method", "shape"),
    [
        ("ve", "L2", "midpoint", SHAPE),
        ("ve", "L1", "fireflow", SHAPE),
        ("flow", "L1", "midpoint", SHAPE),
        ("flow", "L2", "ddim", CLIP_SHAPE),
    ],
)
def test_the_replay_meets_the_reference(space, norm, method, shape):
    _, inversion, target, reference = problem(space, method=method, shape=shape)
    loss, reports = meet(reference, norm=norm), []
    fitted = noise_optimize(inversion, target, loss, NoiseDescent(40, 0.05, 0.0), reports.append)
    before, after = (loss(replay(each, target, target)) for each in (inversion, fitted))
    assert (after < 0.6 * before).all(), (before, after)
    assert after.tolist() == pytest.approx(reports[-1].best_loss, rel=1e-9)
    assert fitted.meta["noise_optimize_loss"] == pytest.approx(float(after.mean()))
    assert fitted.meta["noise_optimize_first_loss"] == pytest.approx(float(before.mean()))
    assert [report.index for report in reports] == list(range(41)) and reports[0].total == 41
    # What a listener can keep when it stops the search.
    assert torch.equal(reports[-1].best, fitted.x)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_updates_are_those_of_torch_adam(space):
    """Three updates against torch.optim.Adam on the noise, with autograd through the walk in one piece."""
    _, inversion, target, reference = problem(space, batch=1)
    states = []
    descent = NoiseDescent(3, 0.05, 0.3)
    noise_optimize(inversion, target, meet(reference), descent, lambda report: states.append(report.x.clone()))
    u = torch.zeros_like(inversion.x).requires_grad_(True)
    adam = torch.optim.Adam([u], lr=0.05)
    for state in states:
        x = inversion.x + inversion.sigma * u  # the weight of the noise in both spaces
        torch.testing.assert_close(state, x.detach(), rtol=1e-9, atol=1e-9)
        end = walk(target, x, inversion.falling, get_method("midpoint").down())
        whole = (end - reference).square().mean() + 0.3 * u.square().mean()
        adam.zero_grad()
        whole.backward()
        adam.step()


def test_the_pull_keeps_it_near_and_what_is_kept_is_the_best_with_it():
    _, inversion, target, reference = problem("ve")
    distances = []
    for pull in (0.0, 1.0, 100.0):
        seen, loss = [], meet(reference)
        fitted = noise_optimize(inversion, target, loss, NoiseDescent(30, 0.05, pull), seen.append)
        noises = [implied_noise(each.x, each.x0, each.sigma, each.space) for each in (inversion, fitted)]
        # Root mean square of the move of each row, in standard deviations of the noise.
        distances.append((noises[1] - noises[0]).square().flatten(1).mean(1).sqrt())
        whole = loss(replay(fitted, target, target)) + pull * distances[-1].square()
        tried = torch.tensor([r.loss for r in seen]) + pull * torch.tensor([r.distance for r in seen]).square()
        torch.testing.assert_close(whole, tried.min(0).values.double(), rtol=1e-4, atol=1e-6)
    assert (distances[0] > 1.5 * distances[1]).all() and (distances[1] > 1.5 * distances[2]).all(), distances


def test_the_loss_of_a_mask_is_its_mean():
    x, zero = torch.tensor([[[[1.0, 2.0, 5.0]]]]), torch.zeros(1, 1, 1, 3)
    mask = torch.tensor([[[[1.0, 0.5, 0.0]]]])
    assert meet(zero, mask)(x).item() == pytest.approx((1 + 0.5 * 4) / 1.5)
    assert meet(zero, mask, "L1")(x).item() == pytest.approx((1 + 0.5 * 2) / 1.5)
    assert meet(zero)(x).item() == pytest.approx(10.0)


def test_the_rest_of_it_stays_in_any_mode():
    _, inversion, target, reference = problem("ve", keep_path=True)
    before = [tensor.clone() for tensor in (inversion.x, inversion.x0, *inversion.path, reference)]
    fitted = noise_optimize(inversion, target, meet(reference), NoiseDescent(2))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            # Copies made here are inference tensors, where that is the mode.
            again = noise_optimize(inversion, target, meet(reference.clone()), NoiseDescent(2))
        assert torch.equal(again.x, fitted.x) and not again.x.requires_grad and not again.x.is_inference()
    now = (inversion.x, inversion.x0, *inversion.path, reference)
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    assert torch.equal(fitted.x0, inversion.x0) and all(map(torch.equal, fitted.path, inversion.path))
    assert fitted.method == inversion.method and fitted.fingerprints == inversion.fingerprints
    assert fitted.meta["noise_optimize_evaluations"] == (2 * 2 + 1) * 2 * STEPS


def test_fitted_embeddings_are_played_along():
    mixture, inversion, _, reference = problem("ve", batch=1, method="euler")
    guided = mixture.denoiser("source", 3.0)
    embedded = replace(inversion, embeddings=(mixture.embeddings["null"] + 0.3, mixture.embeddings["null"] - 0.2))
    loss = meet(reference)
    fitted = noise_optimize(embedded, guided, loss, NoiseDescent(10, 0.05, 0.0))
    assert fitted.embeddings is not None
    first, last = (loss(replay(each, guided)).item() for each in (embedded, fitted))
    assert last < first and fitted.meta["noise_optimize_first_loss"] == pytest.approx(first)
    assert abs(loss(replay(inversion, guided)).item() / first - 1.0) > 1e-3


def test_refusals():
    mixture, inversion, target, reference = problem("ve")
    pair = invert(mixture.denoiser(), mixture.sample(1), full_grid("ve", STEPS), STEPS, "belm")
    with pytest.raises(MisfitError, match="must come from a method that keeps one latent, got belm; invert with mid"):
        noise_optimize(pair, target, meet(reference))
    with pytest.raises(MisfitError, match="must be of the inversion's space 've', got 'flow'"):
        noise_optimize(inversion, Mixture("flow").denoiser(), meet(reference))
    with pytest.raises(ValueError, match="reference must fit the latent"):
        noise_optimize(inversion, target, meet(reference[..., :-1]))
    with pytest.raises(ValueError, match="one finite number for each of the 2 rows"):
        noise_optimize(inversion, target, lambda x: x.mean())
    for given, sentence in (
        ({"norm": "L3"}, "norm must be one of L2, L1, got 'L3'"),
        ({"mask": torch.zeros(1, 1, 3, 5)}, "mask must mark some of every picture"),
        ({"mask": torch.full((1, 1, 3, 5), 2.0)}, "mask must lie between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            meet(reference, **given)
