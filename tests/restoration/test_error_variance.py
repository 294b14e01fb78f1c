"""How far a restored picture is off, against errors of known size, and the last step in pixels that weighs by it."""

import pytest
import torch

from retrace.restoration import Measurement, snap
from retrace.restoration.error_variance import error_variance
from retrace.restoration.operators import (
    JPEG,
    BlackWhite,
    Combine,
    DroppedFrames,
    GaussianBlur,
    LowResolution,
    Mask,
    Noise,
    quality_tables,
)
from retrace_tests.restoration.problems import unit

SHAPE, NOISE, ROWS = (3, 48, 40), 0.1, 4
KEEP = torch.ones(1, 48, 40)
KEEP[:, 12:30, 8:20] = 0.0
OPERATORS = {
    "noise": Noise(SHAPE),
    "mask": Mask(SHAPE, KEEP),
    "soft mask": Mask(SHAPE, 0.3 + 0.7 * torch.rand(1, 48, 40, generator=torch.Generator().manual_seed(5))),
    "black and white": BlackWhite(SHAPE),
    "small": LowResolution(SHAPE, 4, "bicubic"),
    "blur": GaussianBlur(SHAPE, 2.0),
    "small and grey": Combine([LowResolution(SHAPE, 2, "box"), BlackWhite((3, 24, 20))]),
}
EVERY = pytest.mark.parametrize("name", OPERATORS)


def measured(operator, rows=ROWS):
    truth = unit(rows, *SHAPE, seed=1).clamp(-1, 1)
    y = operator.forward(truth)
    return truth, Measurement(operator, y + NOISE * unit(*y.shape, seed=2), NOISE)


def wrong(truth, size):
    """Off by so many deviations of the noise."""
    return truth + size * NOISE * unit(*truth.shape, seed=3)


def off(x, truth):
    return (x - truth).square().mean(dim=(-3, -2, -1))


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "blur"])
@pytest.mark.parametrize("size", [1.0, 4.0])
def test_an_error_that_is_alike_everywhere_is_measured(name, size):
    operator = OPERATORS[name]
    truth, measurement = measured(operator)
    variance = error_variance(measurement, wrong(truth, size))
    # Three standard errors of the mean of so many squares, and one that the estimate takes off itself.
    seen = measurement.forward(unit(*truth.shape, seed=4))
    share = float(seen.square().sum()) / (ROWS * operator.measured) * (size * NOISE / measurement.sigma) ** 2
    tolerance = (3 / ROWS**0.5 + 1) * (2 / operator.measured) ** 0.5 * (1 + share) / share + 0.05
    assert float(variance.mean()) == pytest.approx((size * NOISE) ** 2, rel=tolerance)


@EVERY
def test_a_picture_that_explains_the_photo_stays_as_it_is(name):
    truth, measurement = measured(OPERATORS[name])
    # A part of the way to the photo, so that some of its noise was fitted.
    closer = truth - 0.5 * measurement.adjoint(measurement.residual(truth))
    assert float(measurement.chi2(closer).max()) < 1.01
    moved = snap(measurement, closer) - closer
    assert float(moved.square().mean().sqrt()) < 0.02 * NOISE


@EVERY
def test_snapping_never_loses_and_every_picture_has_its_own_weight(name):
    """A weight of the whole residual would put the noise of the photo back on a picture that has less."""
    truth, measurement = measured(OPERATORS[name])
    sizes = torch.tensor([0.3, 1.0, 2.0, 6.0]).double().reshape(-1, 1, 1, 1)
    x = wrong(truth, sizes)
    together = snap(measurement, x)
    # Where few values were measured an error far below the noise can be over-estimated by chance: 4 % were seen.
    assert bool((off(together, truth) < 1.05 * off(x, truth)).all())
    for row in range(ROWS):
        damaged = measurement.y[row : row + 1] * measurement.operator.norm
        alone = Measurement(measurement.operator, damaged, NOISE)
        assert torch.allclose(snap(alone, x[row : row + 1])[0], together[row], atol=1e-6)


def test_a_blur_hides_most_of_an_error_and_is_not_blamed_for_it():
    """Spread over all that a blur hides, the little that it shows would be an error of many times its size."""
    truth, measurement = measured(OPERATORS["blur"])
    broad = torch.nn.functional.avg_pool2d(unit(*truth.shape, seed=3), 15, 1, 7)
    x = truth + 3 * NOISE * broad / broad.std()
    residual = measurement.chi2(x).reshape(-1, 1, 1, 1) * float(measurement.sigma) ** 2
    assert torch.allclose(error_variance(measurement, x), residual)


def test_a_jpeg_behind_another_damage_is_drawn_into_its_cells():
    small = LowResolution(SHAPE, 2, "box")
    operator = Combine([small, JPEG(small.out_shape, quality_tables(75))])
    truth = torch.nn.functional.avg_pool2d(unit(2, *SHAPE, seed=1), 9, 1, 4).clamp(-1, 1)
    measurement = Measurement(operator, operator.forward(truth), 0.02)
    x = truth + 0.5 * unit(*truth.shape, seed=3)
    snapped = snap(measurement, x)
    assert float(measurement.chi2(x).min()) > 5.0 and float(measurement.chi2(snapped).max()) < 1.0
    assert bool((off(snapped, truth) < off(x, truth)).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(dtype):
    truth, measurement = measured(Noise(SHAPE))
    x = wrong(truth, 6).to(dtype)
    snapped = snap(measurement, x)
    assert snapped.dtype == dtype
    assert bool((off(snapped.double(), truth) < 0.1 * off(x.double(), truth)).all())


@pytest.mark.parametrize("name", ["noise", "mask", "black and white"])
def test_an_error_in_one_place_is_found_there(name):
    truth, measurement = measured(OPERATORS[name])
    where = torch.zeros(1, 48, 40)
    where[:, 30:44, 22:38] = 1.0
    x = wrong(truth, 3 * where + 0.2)
    variance = error_variance(measurement, x)
    assert variance.shape == (ROWS, 1, 48, 40)
    inner = torch.nn.functional.avg_pool2d(where[None], 7, 1, 3)[0] == 1.0
    outer = torch.nn.functional.max_pool2d(where[None], 7, 1, 3)[0] == 0.0
    by_place = variance.mean(dim=0)
    assert float(by_place[inner].mean()) == pytest.approx((3.2 * NOISE) ** 2, rel=0.2)
    # Sizes of so small an error are lost in the noise of seven by seven pixels, and cannot fall below zero.
    assert float(by_place[outer].mean()) < 0.05 * float(by_place[inner].mean())
    even = measurement.correct(x, measurement.weight((measurement.chi2(x) - 1).reshape(-1, 1, 1, 1) * NOISE**2))
    assert bool((off(snap(measurement, x), truth) < 0.9 * off(even, truth)).all())


def test_masks_that_differ_in_a_batch():
    keep = torch.ones(2, 1, 48, 40)
    keep[0, :, :40] = 0.0
    truth, measurement = measured(Mask(SHAPE, keep), 2)
    variance = error_variance(measurement, wrong(truth, 2))
    for row in range(2):
        assert float(variance[row][keep[row] > 0].mean()) == pytest.approx((2 * NOISE) ** 2, rel=0.2)


def test_clips_whose_frames_are_coupled_have_one():
    clip = (6, 3, 16, 16)
    truth, operator = unit(*clip, seed=1).clamp(-1, 1), DroppedFrames(clip, 2)
    y = operator.forward(truth)
    measurement = Measurement(operator, y + NOISE * unit(*y.shape, seed=2), NOISE)
    x = wrong(truth, 2)
    variance = error_variance(measurement, x)
    assert variance.shape == (1, 1, 1, 1)
    assert float(variance) == pytest.approx((2 * NOISE) ** 2, rel=0.15)
    assert float((snap(measurement, x) - x)[1::2].abs().max()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_picture_without_error_divides_by_nothing(dtype):
    _, measurement = measured(OPERATORS["mask"])
    exact = measurement.y.to(dtype)
    assert torch.equal(snap(measurement.to(exact), exact), exact)
