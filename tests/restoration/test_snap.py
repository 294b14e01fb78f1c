"""The last step in pixels: against its own optimum, and what it does to flicker."""

import pytest
import torch

from retrace.restoration import Measurement, snap
from retrace.restoration.operators import LowResolution, Mask
from retrace.restoration.solvers.temporal import difference
from retrace_tests.restoration.problems import unit

FRAMES, SHAPE, NOISE = 6, (1, 8, 8), 0.1


def noisy(operator, truth):
    damaged = operator.forward(truth)
    return Measurement(operator, damaged + NOISE * unit(*damaged.shape), NOISE)


def still(operator=None):
    """Frames that are alike, and a restored clip of them that flickers by three deviations of the noise."""
    truth = unit(1, *SHAPE, seed=1).clamp(-1, 1).expand(FRAMES, *SHAPE).contiguous()
    restored = truth + 3 * NOISE * unit(*truth.shape, seed=2)
    return truth, noisy(operator or LowResolution(SHAPE, 2, "box"), truth), restored


def test_a_picture_off_by_the_noise_stays_and_one_far_off_moves_nearly_all_of_the_way():
    truth, measurement, _ = still(Mask(SHAPE, torch.ones(1, 8, 8)))
    near, far = measurement.y + NOISE, measurement.y + 100 * NOISE
    # Away from the sides a window sees the same everywhere: what is above the noise is the picture's own error.
    assert torch.allclose(snap(measurement, near), near)
    left = (snap(measurement, far) - measurement.y).abs() / NOISE
    assert torch.allclose(left, torch.full_like(truth, 100 / 100**2), rtol=1e-3)
    # Every picture by its own: one that is far off leaves the others alone.
    mixed = torch.cat([far[:3], near[3:]])
    assert torch.allclose(snap(measurement, mixed)[3:], snap(measurement, near)[3:])


def test_smoothing_takes_the_flicker_and_leaves_the_picture():
    truth, measurement, restored = still()
    told = []
    alone = snap(measurement, restored)
    together = snap(measurement, restored, 2.0, tick=lambda *done: told.append(done))

    def off(x):
        return float((x - truth).square().mean())

    assert float(difference(together).square().mean()) < 0.2 * float(difference(alone).square().mean())
    assert off(together) < 0.5 * off(alone) < off(restored)
    # Its rounds are told, and what hears them can end it.
    assert told == [(number, len(told)) for number in range(1, len(told) + 1)] and len(told) > 1

    def stop(*done):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        snap(measurement, restored, 1.0, tick=stop)


@pytest.mark.parametrize("smoothing", [0.5, 3.0])
def test_the_result_is_the_minimum(smoothing):
    """No direction leads down from it: along random ones the objective rises."""
    _, measurement, restored = still()
    x = snap(measurement, restored, smoothing)
    weight = float(measurement.chi2(restored).clamp_min(1).mean())

    def objective(z):
        data, ties = measurement.residual(z).square().sum(), difference(z).abs().sum()
        return float((z - restored).square().sum() / 2 + weight / 2 * data + smoothing * NOISE * ties)

    best = objective(x)
    for seed in range(20):
        direction = unit(*x.shape, seed=seed)
        if seed % 2:
            direction = direction[:1].expand_as(x)
        assert objective(x + 0.02 * direction) > best - 1e-4 * abs(best)
    assert objective(snap(measurement, restored)) > best
