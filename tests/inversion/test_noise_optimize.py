"""Noise optimisation on the exact denoiser: it meets its reference, stays near, and never ends worse."""

from dataclasses import replace

import pytest
import torch

from retrace.inversion import (
    MisfitError,
    NoiseDescent,
    blend,
    get_method,
    implied_noise,
    invert,
    meet,
    noise_optimize,
    relative_error,
    replay,
    walk,
)
from retrace_tests.inversion.problems import CLIP_SHAPE, Mixture, full_grid

STEPS = 8


def problem(space, batch=2, method="midpoint", shape=None, **settings):
    """A mixture, the record of a source, the target's denoiser, and a latent that the target can make."""
    mixture = Mixture(space) if shape is None else Mixture(space, shape)
    record = invert(mixture.denoiser(), mixture.sample(batch), full_grid(space, STEPS), STEPS, method, **settings)
    return mixture, record, mixture.denoiser("target", 2.0), mixture.sample(batch, seed=7, prompt="target")


def moved(record, found):
    """Root mean square of the move of each row, in standard deviations of the noise."""
    noises = [implied_noise(each.x, each.x0, each.sigma, each.space) for each in (record, found)]
    return (noises[1] - noises[0]).square().flatten(1).mean(1).sqrt()


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("method", ["midpoint", "fireflow", "ddim"])
def test_the_replay_meets_the_reference(space, norm, method):
    _, record, target, reference = problem(space, method=method)
    loss, reports = meet(reference, norm=norm), []
    found = noise_optimize(record, target, loss, NoiseDescent(40, 0.05, 0.0), reports.append)
    before, after = (loss(replay(each, target, target)) for each in (record, found))
    assert (after < 0.6 * before).all(), (before, after)
    assert after.tolist() == pytest.approx(reports[-1].best_loss, rel=1e-9)
    assert found.meta["noise_optimize_loss"] == pytest.approx(float(after.mean()))
    assert found.meta["noise_optimize_first_loss"] == pytest.approx(float(before.mean()))
    assert [report.index for report in reports] == list(range(41)) and reports[0].total == 41


def test_the_pull_keeps_it_near():
    _, record, target, reference = problem("ve")
    distances = [
        moved(record, noise_optimize(record, target, meet(reference), NoiseDescent(30, 0.05, pull)))
        for pull in (0.0, 1.0, 100.0)
    ]
    assert (distances[0] > 1.5 * distances[1]).all() and (distances[1] > 1.5 * distances[2]).all(), distances


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_updates_are_those_of_torch_adam(space):
    """Three updates against torch.optim.Adam on the noise, with autograd through the walk in one piece."""
    _, record, target, reference = problem(space, batch=1)
    states = []
    descent = NoiseDescent(3, 0.05, 0.3)
    noise_optimize(record, target, meet(reference), descent, lambda report: states.append(report.x.clone()))
    u = torch.zeros_like(record.x).requires_grad_(True)
    adam = torch.optim.Adam([u], lr=0.05)
    for state in states:
        x = record.x + record.sigma * u  # the weight of the noise in both spaces
        torch.testing.assert_close(state, x.detach(), rtol=1e-9, atol=1e-9)
        end = walk(target, x, record.falling, get_method("midpoint").down())
        whole = (end - reference).square().mean() + 0.3 * u.square().mean()
        adam.zero_grad()
        whole.backward()
        adam.step()


def test_what_is_kept_is_the_best_with_its_pull():
    _, record, target, reference = problem("ve", batch=3)
    loss, pull, seen = meet(reference), 0.1, []
    found = noise_optimize(record, target, loss, NoiseDescent(4, 0.05, pull), seen.append)
    whole = loss(replay(found, target, target)) + pull * moved(record, found).square()
    tried = torch.tensor([report.loss for report in seen]) + pull * torch.tensor([r.distance for r in seen]).square()
    torch.testing.assert_close(whole, tried.min(0).values.double(), rtol=1e-5, atol=1e-7)


def test_only_what_is_masked_is_asked_for():
    _, record, target, reference = problem("ve")
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., 3:] = 1.0
    found = noise_optimize(record, target, meet(reference, mask), NoiseDescent(40, 0.05, 0.0))
    ends = [replay(each, target, target) for each in (record, found)]
    inside = [relative_error(end[..., 3:], reference[..., 3:]) for end in ends]
    assert inside[1] < 0.7 * inside[0]
    # Of what lies outside the loss says nothing, so other values there change nothing.
    other = reference.clone()
    other[..., :3] += 100.0
    again = noise_optimize(record, target, meet(other, mask), NoiseDescent(40, 0.05, 0.0))
    torch.testing.assert_close(again.x, found.x, rtol=1e-9, atol=1e-9)


def test_the_loss_of_a_mask_is_its_mean():
    x, reference = torch.tensor([[[[1.0, 2.0, 5.0]]]]), torch.zeros(1, 1, 1, 3)
    mask = torch.tensor([[[[1.0, 0.5, 0.0]]]])
    assert meet(reference, mask)(x).item() == pytest.approx((1 + 0.5 * 4) / 1.5)
    assert meet(reference, mask, "L1")(x).item() == pytest.approx((1 + 0.5 * 2) / 1.5)
    assert meet(reference)(x).item() == pytest.approx(10.0)


def test_any_loss_will_do():
    """The mean of the second channel, as large as it gets."""
    _, record, target, _ = problem("flow")
    found = noise_optimize(record, target, lambda x: -x[:, 1].flatten(1).mean(1), NoiseDescent(15, 0.05, 0.05))
    before, after = (replay(each, target, target)[:, 1].flatten(1).mean(1) for each in (record, found))
    assert (after > before + 0.05).all()


def test_clips():
    _, record, target, reference = problem("flow", shape=CLIP_SHAPE)
    loss = meet(reference)
    found = noise_optimize(record, target, loss, NoiseDescent(15, 0.05, 0.0))
    assert (loss(replay(found, target, target)) < loss(replay(record, target, target))).all()


def test_the_rest_of_the_record_stays():
    mixture, record, target, reference = problem("ve", keep_path=True)
    before = [tensor.clone() for tensor in (record.x, record.x0, *record.path, reference)]
    found = noise_optimize(record, target, meet(reference), NoiseDescent(2))
    assert all(torch.equal(a, b) for a, b in zip(before, (record.x, record.x0, *record.path, reference), strict=True))
    assert torch.equal(found.x0, record.x0) and all(map(torch.equal, found.path, record.path))
    assert found.method == record.method and found.fingerprints == record.fingerprints
    assert not found.x.requires_grad and not found.x.is_inference()
    assert found.meta["noise_optimize_evaluations"] == (2 * 2 + 1) * 2 * STEPS
    # Outside a mask an edit still keeps the source.
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., 3:] = 1.0
    edited = replay(found, mixture.denoiser(), target, after_step=blend(found, mask))
    assert torch.equal(edited[..., :3], record.x0[..., :3])


def test_works_in_any_mode():
    _, record, target, reference = problem("ve", batch=1)
    mask = torch.rand(1, 1, 3, 5)
    wanted = noise_optimize(record, target, meet(reference, mask), NoiseDescent(3)).x
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            # Copies made here are inference tensors, where that is the mode.
            loss = meet(reference.clone(), mask.clone())
            assert torch.equal(noise_optimize(record, target, loss, NoiseDescent(3)).x, wanted)


def test_fitted_embeddings_are_played_along():
    mixture, record, _, reference = problem("ve", batch=1, method="euler")
    guided = mixture.denoiser("source", 3.0)
    fitted = replace(record, embeddings=(mixture.embeddings["null"] + 0.3, mixture.embeddings["null"] - 0.2))
    loss = meet(reference)
    found = noise_optimize(fitted, guided, loss, NoiseDescent(10, 0.05, 0.0))
    assert found.embeddings is not None
    first, last = (loss(replay(each, guided)).item() for each in (fitted, found))
    assert last < first and found.meta["noise_optimize_first_loss"] == pytest.approx(first)
    assert abs(loss(replay(record, guided)).item() / first - 1.0) > 1e-3


def test_what_was_found_before_a_stop_can_be_kept():
    _, record, target, reference = problem("ve")
    seen = []

    def stop(report):
        seen.append(report)
        if report.index == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        noise_optimize(record, target, meet(reference), NoiseDescent(10), stop)
    kept = meet(reference)(replay(replace(record, x=seen[-1].best), target, target))
    assert kept.tolist() == pytest.approx(seen[-1].best_loss)


def test_refusals():
    mixture, record, target, reference = problem("ve")
    pair = invert(mixture.denoiser(), mixture.sample(1), full_grid("ve", STEPS), STEPS, "belm")
    with pytest.raises(MisfitError, match="must come from a method that keeps one latent, got belm; invert with mid"):
        noise_optimize(pair, target, meet(reference))
    with pytest.raises(MisfitError, match="must be of the inversion's space 've', got 'flow'"):
        noise_optimize(record, Mixture("flow").denoiser(), meet(reference))
    with pytest.raises(ValueError, match="one finite number for each of the 2 rows"):
        noise_optimize(record, target, lambda x: x.mean())
    with pytest.raises(ValueError, match="norm must be one of L2, L1, got 'L3'"):
        meet(reference, norm="L3")
    with pytest.raises(ValueError, match="mask must mark some of every picture"):
        meet(reference, torch.zeros(1, 1, 3, 5))
    with pytest.raises(ValueError, match="mask must lie between 0 and 1"):
        meet(reference, torch.full((1, 1, 3, 5), 2.0))
