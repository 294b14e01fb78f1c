"""Figures against their definitions."""

import math

import pytest
import torch

from retrace.inversion import psnr, relative_error, ssim


def test_relative_error():
    reference = torch.tensor([3.0, 4.0])
    assert relative_error(reference + torch.tensor([0.0, 0.5]), reference) == pytest.approx(0.1)
    assert relative_error(reference, reference) == 0.0
    assert (
        relative_error(torch.zeros(2), torch.zeros(2)) == 0.0 and relative_error(reference, torch.zeros(2)) == math.inf
    )


def test_psnr():
    reference = torch.zeros(1, 3, 4, 4)
    assert psnr(reference + 0.1, reference) == pytest.approx(20.0, abs=1e-5)
    assert psnr(reference + 25.5, reference, 255.0) == pytest.approx(20.0, abs=1e-5)
    assert psnr(reference, reference) == math.inf


def test_ssim_against_the_sums_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 13, 12, generator=generator, dtype=torch.float64)
    b = (a + 0.2 * torch.randn(a.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    bell = [math.exp(-0.5 * (offset / 1.5) ** 2) for offset in range(-5, 6)]
    window = torch.tensor([[u * v for u in bell] for v in bell], dtype=torch.float64)
    window /= window.sum()
    values = []
    for row, column in ((row, column) for row in range(3) for column in range(2)):
        p, q = (t[..., row : row + 11, column : column + 11] for t in (a, b))
        mean_p, mean_q = ((window * t).sum((-1, -2), keepdim=True) for t in (p, q))
        var_p, var_q = ((window * (t - m) ** 2).sum((-1, -2)) for t, m in ((p, mean_p), (q, mean_q)))
        cross = (window * (p - mean_p) * (q - mean_q)).sum((-1, -2))
        mean_p, mean_q = mean_p[..., 0, 0], mean_q[..., 0, 0]
        top = (2 * mean_p * mean_q + 0.01**2) * (2 * cross + 0.03**2)
        values.append(top / ((mean_p**2 + mean_q**2 + 0.01**2) * (var_p + var_q + 0.03**2)))
    assert ssim(a, b) == pytest.approx(float(torch.stack(values).mean()), abs=1e-12)
    assert ssim(a, a) == pytest.approx(1.0) and ssim(a, b) < 0.99
    # Also of dark pictures, where its constants count.
    for dark in (1.0, 0.02):
        assert ssim(255 * dark * a, 255 * dark * b, 255.0) == pytest.approx(ssim(dark * a, dark * b))


def test_refusals():
    small = torch.zeros(1, 3, 8, 16)
    with pytest.raises(ValueError, match="at least 11 x 11 pixels"):
        ssim(small, small)
    for figure in (relative_error, psnr, ssim):
        with pytest.raises(ValueError, match="Both inputs must have one shape"):
            figure(small, small[..., :4])
