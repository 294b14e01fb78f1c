"""Figures against their definitions."""

import math

import pytest
import torch

from retrace.inversion import psnr, relative_error, ssim


def test_relative_error():
    reference = torch.tensor([3.0, 4.0])
    assert relative_error(reference + torch.tensor([0.0, 0.5]), reference) == pytest.approx(0.1)
    assert relative_error(reference, reference) == 0.0
    nothing = torch.zeros(2)
    assert relative_error(nothing, nothing) == 0.0 and relative_error(reference, nothing) == math.inf


def test_psnr():
    reference = torch.zeros(1, 3, 4, 4)
    assert psnr(reference + 0.1, reference) == pytest.approx(20.0, abs=1e-5)
    assert psnr(reference + 25.5, reference, 255.0) == pytest.approx(20.0, abs=1e-5)
    assert psnr(reference, reference) == math.inf


def test_ssim_against_scikit_image():
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 13, 12, generator=generator, dtype=torch.float64)
    b = (a + 0.2 * torch.randn(a.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    # As the paper has it: a bell of 1.5 pixels. In dark pictures its constants count.
    about = {"channel_axis": 0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for most, light in ((1.0, 1.0), (1.0, 0.02), (255.0, 255.0), (255.0, 5.0)):
        pairs = zip((light * a).numpy(), (light * b).numpy(), strict=True)
        wanted = sum(structural_similarity(p, q, data_range=most, **about) for p, q in pairs) / 2
        assert ssim(light * a, light * b, most) == pytest.approx(wanted, abs=1e-12)
    assert ssim(a, a) == pytest.approx(1.0) and ssim(a, b) < 0.99


def test_refusals():
    small = torch.zeros(1, 3, 8, 16)
    with pytest.raises(ValueError, match="at least 11 x 11 pixels"):
        ssim(small, small)
    for figure in (relative_error, psnr, ssim):
        with pytest.raises(ValueError, match="Both inputs must have one shape"):
            figure(small, small[..., :4])
