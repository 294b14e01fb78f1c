"""A measurement is scaled to |A| = 1, and says how well a picture explains it."""

import pytest
import torch

from retrace.restoration.measurement import Measurement
from retrace.restoration.operators import JPEG, BlackWhite, LowResolution, Mask, Noise, quality_tables
from retrace_tests.restoration.cases import LINEAR, PICTURE, hole, picture

SIGMA = 0.05


@pytest.fixture(params=["box", "black and white", "kernel", "mask", "clip combination"])
def operator(request):
    return LINEAR[request.param]()


def test_everything_is_scaled_by_the_norm(operator):
    x = picture(operator)
    measured = Measurement(operator, operator.forward(x), SIGMA)
    assert torch.allclose(measured.forward(x) * operator.norm, operator.forward(x))
    assert float(measured.residual(x).abs().max()) < 1e-12
    y = picture(operator, seed=2, out=True)
    assert torch.allclose(measured.adjoint(y) * operator.norm, operator.adjoint(y))
    assert measured.sigma == pytest.approx(SIGMA / operator.norm)


def test_the_correction_is_the_prox_of_the_scaled_problem(operator):
    x, y = picture(operator), picture(operator, seed=1, out=True)
    measured, weight = Measurement(operator, y, SIGMA), 3.0
    z = measured.correct(x, weight)
    gradient = z - x + weight * measured.adjoint(measured.forward(z) - measured.y)
    assert float(gradient.norm() / x.norm()) < 1e-3


def test_chi2_is_one_for_the_truth(operator):
    x = picture(operator, batch=(400,) if len(operator.shape) == 3 else (100,))
    noise = torch.randn(x.shape[0], *operator.out_shape, generator=torch.Generator().manual_seed(3)).double()
    measured = Measurement(operator, operator.forward(x) + SIGMA * noise, SIGMA)
    if isinstance(operator, Mask):  # what lies in the hole is not measured
        measured = Measurement(operator, operator.forward(x + SIGMA * noise), SIGMA)
    assert measured.chi2(x).shape == x.shape[:1]
    assert float(measured.chi2(x).mean()) == pytest.approx(1.0, rel=0.05)
    assert float(measured.with_noise(SIGMA).chi2(x).mean()) == pytest.approx(0.5, rel=0.05)


def test_chi2_of_jpeg_is_zero_inside_the_cells():
    shape = (3, 16, 16)
    coder = JPEG(shape, quality_tables(20))
    x = 0.3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measured = Measurement(coder, coder.forward(x), 0.02)
    assert float(measured.chi2(x).max()) < 0.05
    assert float(measured.chi2(-x).min()) > 10


def test_a_weight_of_zero_leaves_the_picture():
    coder = JPEG((3, 16, 16), quality_tables(20))
    x = 0.3 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    measured = Measurement(coder, coder.forward(-x), 0.02)
    assert torch.equal(measured.correct(x, 0.0), x)
    assert torch.equal(measured.correct(x, torch.zeros(2, 1, 1, 1)), x)
    assert not torch.equal(measured.correct(x, 1e-3), x)


def test_it_moves_to_the_dtype_of_the_state():
    measured = Measurement(Noise(PICTURE), torch.zeros(1, *PICTURE), SIGMA)
    moved = measured.to(torch.zeros((), dtype=torch.float64))
    assert moved.y.dtype == torch.float64 and measured.y.dtype == torch.float32 and moved.sigma == measured.sigma


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Measurement(Noise(PICTURE), torch.zeros(1, *PICTURE), 0.005), "noise must be at least 1.28"),
        (lambda: Measurement(Noise(PICTURE), torch.zeros(1, *PICTURE), float("nan")), "noise must be at least"),
        (lambda: Measurement(Noise(PICTURE), torch.zeros(1, 3, 4, 4), 0.1), "must be 12 x 9 pixels with 3 channels"),
        (lambda: Measurement(LowResolution(PICTURE, 3), torch.zeros(1, *PICTURE), 0.1), "must be 4 x 3 pixels"),
        (lambda: Measurement(BlackWhite(PICTURE), torch.zeros(1, *PICTURE), 0.1), "with 1 channel,"),
        (lambda: Measurement(Mask(PICTURE, hole()), torch.full((1, *PICTURE), torch.inf), 0.1), "must be finite"),
    ],
)
def test_refusals_are_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_what_a_photo_shows_inside_a_hole_does_not_count():
    operator = Mask(PICTURE, hole())
    x = picture(operator)
    filled = operator.forward(x) + 5.0 * (1 - hole())
    assert float(Measurement(operator, filled, SIGMA).chi2(x).max()) < 1e-9
