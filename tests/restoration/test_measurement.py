"""A measurement is scaled to |A| = 1, and says how well a picture explains it."""

import pytest
import torch

from retrace.restoration import Measurement
from retrace.restoration.operators import JPEG, BlackWhite, Blur, Combine, LowResolution, Mask, Noise, quality_tables
from retrace_tests.restoration.problems import PICTURE, hole, picture, unit

SIGMA = 0.05
HOLE = Mask(PICTURE, 1.0 - hole())
OPERATORS = {
    "box": LowResolution(PICTURE, 3, "box"),
    "black and white": BlackWhite(PICTURE),
    "kernel": Blur(PICTURE, unit(5, 3, seed=4).abs() / unit(5, 3, seed=4).abs().sum()),
    "mask": HOLE,
    "combination": Combine([LowResolution(PICTURE, 3), BlackWhite((3, 3, 4))]),
}


@pytest.fixture(params=OPERATORS)
def operator(request):
    return OPERATORS[request.param]


def test_everything_is_scaled_by_the_norm(operator):
    x, y = picture(operator), picture(operator, seed=2, out=True)
    measured = Measurement(operator, operator.forward(x), SIGMA)
    assert torch.allclose(measured.forward(x) * operator.norm, operator.forward(x))
    assert torch.allclose(measured.adjoint(y) * operator.norm, operator.adjoint(y))
    assert float(measured.residual(x).abs().max()) < 1e-12
    assert measured.sigma == pytest.approx(SIGMA / operator.norm)
    assert measured.weight(0.3) == pytest.approx(0.3 * operator.norm**2 / SIGMA**2)


def test_the_correction_is_the_prox_of_the_scaled_problem(operator):
    x, y = picture(operator), picture(operator, seed=1, out=True)
    measured, weight = Measurement(operator, y, SIGMA), 3.0
    z = measured.correct(x, weight)
    gradient = z - x + weight * measured.adjoint(measured.forward(z) - measured.y)
    assert float(gradient.norm() / x.norm()) < 1e-3


def test_chi2_is_one_for_the_truth(operator):
    x = picture(operator, batch=(400,))
    noise = SIGMA * unit(400, *operator.out_shape, seed=3)
    # What lies in a hole is not measured, whatever a photo shows there.
    measured = Measurement(operator, operator.forward(x) + noise, SIGMA)
    assert measured.chi2(x).shape == x.shape[:1]
    assert float(measured.chi2(x).mean()) == pytest.approx(1.0, rel=0.05)
    assert float(measured.with_noise(SIGMA).chi2(x).mean()) == pytest.approx(0.5, rel=0.05)


def test_jpeg_counts_the_way_to_its_cells_and_a_weight_of_zero_leaves_the_picture():
    shape = (3, 16, 16)
    coder, x = JPEG(shape, quality_tables(20)), 0.3 * unit(2, *shape)
    measured = Measurement(coder, coder.forward(x), 0.02)
    assert float(measured.chi2(x).max()) < 0.05 and float(measured.chi2(-x).min()) > 10
    assert torch.equal(measured.correct(-x, 0.0), -x)
    assert torch.equal(measured.correct(-x, torch.zeros(2, 1, 1, 1)), -x)
    assert not torch.equal(measured.correct(-x, 1e-3), -x)


def test_values_are_counted_by_row_and_together():
    keep = torch.stack([1.0 - hole(), torch.ones(1, 9, 12)])
    measured = Measurement(Mask(PICTURE, keep), torch.zeros(2, *PICTURE), SIGMA)
    counts = [3 * (9 * 12 - 4 * 5), 3 * 9 * 12]
    assert measured.values(measured.y).flatten().tolist() == counts
    assert measured.values(measured.y, joined=True).flatten().tolist() == [sum(counts)]


def test_it_moves_to_the_dtype_of_the_state():
    measured = Measurement(Noise(PICTURE), torch.zeros(1, *PICTURE), SIGMA).with_noise(torch.ones(1, 1, 1, 1))
    moved = measured.to(torch.zeros((), dtype=torch.float64))
    assert (moved.y.dtype, moved.sigma.dtype, measured.y.dtype) == (torch.float64, torch.float64, torch.float32)
