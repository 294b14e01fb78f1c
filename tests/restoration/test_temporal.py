"""Total variation over time: the ADMM against its own optimality conditions, and against flicker."""

import pytest
import torch

from retrace.restoration.measurement import Measurement
from retrace.restoration.operators import DroppedFrames, GaussianBlur, LowResolution, Mask
from retrace.restoration.solvers.dds import PixelConsistency, dds
from retrace.restoration.solvers.fresh import fresh_noise
from retrace.restoration.solvers.temporal import (
    TemporalConsistency,
    TimeSmoothing,
    difference,
    difference_adjoint,
    shrink,
)
from retrace_tests.restoration.problems import SIGMA, pictures_prior, vp_sigmas

FRAMES, SHAPE = 5, (1, 6, 6)


def clip(prior, seed=3):
    """Frames that change little by little."""
    frames = prior.sample(FRAMES, seed=seed)
    steady = frames[:1] + 0.05 * torch.cumsum(frames, 0)
    return steady


def measured(operator, seed=5):
    truth = clip(pictures_prior(SHAPE))
    damaged = operator.forward(truth)
    noise = torch.randn(damaged.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Measurement(operator, damaged + SIGMA * noise, SIGMA), truth


def test_the_adjoint_of_the_difference():
    generator = torch.Generator().manual_seed(0)
    for axis in (-4, -3):
        x = torch.randn(2, 4, 3, 5, 6, generator=generator, dtype=torch.float64)
        u = torch.randn(difference(x, axis).shape, generator=generator, dtype=torch.float64)
        left, right = (difference(x, axis) * u).sum(), (x * difference_adjoint(u, axis)).sum()
        assert float((left - right).abs()) < 1e-12
    assert torch.equal(difference(torch.ones(4, 1, 2, 2)), torch.zeros(3, 1, 2, 2))


def test_shrink():
    x = torch.tensor([-2.0, -0.3, 0.0, 0.5, 3.0])
    assert torch.equal(shrink(x, 0.5), torch.tensor([-1.5, -0.0, 0.0, 0.0, 2.5]))


@pytest.mark.parametrize("operator", [LowResolution(SHAPE, 2, "box"), DroppedFrames((FRAMES, *SHAPE), 2)])
def test_the_fixed_point_is_the_minimum(operator):
    """1/2 |x - D|^2 + g/2 |A x - y|^2 + lambda r^2 |D_t x|_1: stationary, with a dual within its bounds."""
    measurement, _ = measured(operator)
    prediction = pictures_prior(SHAPE).sample(FRAMES, seed=8)
    smoothing, variance = 0.3, 0.2
    consistency = TemporalConsistency(measurement, smoothing, rounds=600)
    x = consistency(prediction, variance)
    z, u = consistency._split
    weight, threshold = measurement.weight(variance), smoothing * variance
    dual = 6 * smoothing * variance * u
    gradient = x - prediction + weight * measurement.adjoint(measurement.residual(x)) + difference_adjoint(dual)
    # 1e-4 is the tolerance of the inner solve.
    assert float(gradient.norm() / (weight * measurement.adjoint(measurement.y)).norm()) < 2e-4
    assert float(dual.abs().max()) <= threshold * (1 + 1e-6)
    assert float((difference(x) - z).abs().max()) < 5e-3
    moving = z.abs() > 1e-6
    assert 0.1 < float(moving.double().mean()) < 0.99
    assert torch.allclose(dual[moving], threshold * z[moving].sign(), atol=1e-9)


def test_without_smoothing_every_frame_is_its_own():
    measurement, _ = measured(LowResolution(SHAPE, 2, "box"))
    prediction = pictures_prior(SHAPE).sample(FRAMES, seed=8)
    alone = PixelConsistency(measurement)(prediction, 0.2)
    assert torch.equal(TemporalConsistency(measurement, 0.0)(prediction, 0.2), alone)


def drawn(measurement, smoothing, shared, count=4):
    prior, sigmas, results = pictures_prior(SHAPE), vp_sigmas(30), []
    for seed in range(count):
        like = torch.zeros(FRAMES, *SHAPE, dtype=torch.float64)
        fresh = fresh_noise(like, 100 * seed, shared=shared)
        consistency = TemporalConsistency(measurement, smoothing)
        results.append(dds(prior.denoise, sigmas[0] * fresh(), sigmas, "ve", consistency, fresh, variance=0.25))
    return torch.stack(results)


def flicker(found, truth):
    return float((difference(found) - difference(truth)).square().mean().sqrt())


@pytest.mark.parametrize("name", ["small", "blur", "pixels"])
def test_flicker_is_halved_at_no_loss(name):
    keep = torch.rand(FRAMES, 1, *SHAPE[-2:], generator=torch.Generator().manual_seed(2)) < 0.4
    operator = {
        "small": lambda: LowResolution(SHAPE, 2, "box"),
        "blur": lambda: GaussianBlur(SHAPE, 0.8),
        "pixels": lambda: Mask(SHAPE, keep.float()),
    }[name]()
    measurement, truth = measured(operator)
    alone, smooth = drawn(measurement, 0.0, False), drawn(measurement, 5.0, True)
    assert flicker(smooth, truth) < 0.5 * flicker(alone, truth)
    assert float((smooth - truth).square().mean()) <= 1.02 * float((alone - truth).square().mean())
    assert float(measurement.chi2(smooth).mean()) < 2.0


def test_shared_noise_alone_cuts_flicker():
    measurement, truth = measured(LowResolution(SHAPE, 2, "box"))
    assert flicker(drawn(measurement, 0.0, True), truth) < 0.6 * flicker(drawn(measurement, 0.0, False), truth)


def test_dropped_frames_are_filled_by_their_neighbours():
    measurement, truth = measured(DroppedFrames((FRAMES, *SHAPE), 2))
    alone, smooth = drawn(measurement, 0.0, False), drawn(measurement, 5.0, True)
    missing = slice(1, None, 2)
    error = [float((found[:, missing] - truth[missing]).square().mean()) for found in (alone, smooth)]
    assert error[1] < 0.3 * error[0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: TemporalConsistency(m, -1.0), "temporal smoothing must be 0 or more"),
        (lambda m: TemporalConsistency(m, 1.0)(torch.zeros(1, *SHAPE), 0.2), "two frames at least"),
        (lambda m: TimeSmoothing(1.0, 2).prepare(torch.zeros(2, 3, 1, 4, 4), 0.2), "two frames at least"),
    ],
)
def test_refusals_are_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call(measured(LowResolution(SHAPE, 2))[0])
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
