"""Total variation over time: the ADMM against its own optimality conditions, and against flicker."""

import pytest
import torch

from retrace.restoration import Measurement, PixelConsistency, TemporalConsistency
from retrace.restoration.operators import DroppedFrames, LowResolution
from retrace.restoration.solvers.temporal import difference, difference_adjoint, shrink
from retrace_tests.restoration.problems import SIGMA, pictures_prior, unit

FRAMES, SHAPE = 5, (1, 6, 6)
OPERATORS = {"small": LowResolution(SHAPE, 2, "box"), "dropped": DroppedFrames((FRAMES, *SHAPE), 2)}


def measured(name, sigma=SIGMA):
    """Frames that change little by little, and what is left of them."""
    frames = pictures_prior(SHAPE).sample(FRAMES, seed=3)
    truth = frames[:1] + 0.05 * torch.cumsum(frames, 0)
    damaged = OPERATORS[name].forward(truth)
    return Measurement(OPERATORS[name], damaged + sigma * unit(*damaged.shape, seed=5), sigma), truth


def test_the_adjoint_of_the_difference_and_shrinking():
    for axis in (-4, -3):
        x = unit(2, 4, 3, 5, 6)
        u = unit(*difference(x, axis).shape, seed=1)
        left, right = (difference(x, axis) * u).sum(), (x * difference_adjoint(u, axis)).sum()
        assert float((left - right).abs()) < 1e-12
    assert torch.equal(difference(torch.ones(4, 1, 2, 2)), torch.zeros(3, 1, 2, 2))
    x = torch.tensor([-2.0, -0.3, 0.0, 0.5, 3.0])
    assert torch.equal(shrink(x, 0.5), torch.tensor([-1.5, -0.0, 0.0, 0.0, 2.5]))


@pytest.mark.parametrize("name", ["small", "dropped"])
def test_the_fixed_point_is_the_minimum(name):
    """1/2 |x - D|^2 + g/2 |A x - y|^2 + lambda r^2 |D_t x|_1: stationary, with a dual within its bounds."""
    # At so much noise what the inner solve leaves, 1e-4 of its right side, is far below the bounds here.
    measurement, _ = measured(name, 0.2)
    prediction = pictures_prior(SHAPE).sample(FRAMES, seed=8)
    smoothing, variance = 0.3, 0.2
    consistency = TemporalConsistency(measurement, smoothing, rounds=300)
    x = consistency(prediction, variance)
    z, u = consistency._split
    weight, threshold = measurement.weight(variance), smoothing * variance
    dual = 6 * smoothing * variance * u
    gradient = x - prediction + weight * measurement.adjoint(measurement.residual(x)) + difference_adjoint(dual)
    assert float(gradient.norm() / (weight * measurement.adjoint(measurement.y)).norm()) < 5e-4
    assert float(dual.abs().max()) <= threshold * (1 + 1e-6)
    assert float((difference(x) - z).abs().max()) < 2e-3
    moving = z.abs() > 1e-6
    assert 0.1 < float(moving.double().mean()) < 0.99
    assert torch.allclose(dual[moving], threshold * z[moving].sign(), atol=1e-9)


def test_without_smoothing_every_frame_is_its_own():
    measurement, _ = measured("small")
    prediction = pictures_prior(SHAPE).sample(FRAMES, seed=8)
    alone = PixelConsistency(measurement, 2.0)(prediction, 0.2)
    assert torch.equal(TemporalConsistency(measurement, 0.0, trust=2.0)(prediction, 0.2), alone)
