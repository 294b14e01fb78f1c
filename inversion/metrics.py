"""Figures that say how near a reconstruction is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Wang, Bovik, Sheikh, Simoncelli 2004: 11x11 Gaussian window of width 1.5, K1 = 0.01, K2 = 0.03.
SSIM_WINDOW = 11
SSIM_WIDTH = 1.5
SSIM_K1 = 0.01
SSIM_K2 = 0.03


def relative_error(value: Tensor, reference: Tensor) -> float:
    """|value - reference| / |reference| in the Euclidean norm over everything; shapes must agree.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape(value, reference)
    wanted = reference.double()
    error, size = float((value.double() - wanted).norm()), float(wanted.norm())
    if size == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / size


def psnr(value: Tensor, reference: Tensor, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio 10*log10(data_range^2 / mse) in dB over everything; inf for equal inputs.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape(value, reference)
    error = float((value.double() - reference.double()).square().mean())
    return math.inf if error == 0.0 else 10.0 * math.log10(data_range**2 / error)


def ssim(value: Tensor, reference: Tensor, data_range: float = 1.0) -> float:
    """Structural similarity, mean over pictures, channels and all windows that fit.

    Args:
        value: Pictures (B, C, H, W), at least 11 x 11.
        reference: Pictures of the same shape.
        data_range: Highest minus lowest possible value.

    Returns:
        At most 1, which is for equal pictures.

    Raises:
        ValueError: If the shapes differ or the pictures are too small.
    """
    _check_same_shape(value, reference)
    if value.ndim != 4 or min(value.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"Pictures must have the shape (B, C, H, W) and at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, "
            f"got {tuple(value.shape)}; leave out this figure for smaller ones."
        )
    height, width = value.shape[-2:]
    a = value.double().reshape(-1, 1, height, width)
    b = reference.double().reshape(-1, 1, height, width)
    offsets = torch.arange(SSIM_WINDOW, dtype=a.dtype, device=a.device) - (SSIM_WINDOW - 1) / 2
    bell = torch.exp(-0.5 * (offsets / SSIM_WIDTH).square())
    bell = bell / bell.sum()
    window = torch.outer(bell, bell)[None, None]

    def local(picture: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(picture, window)

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a.square(), local(b * b) - mean_b.square()
    covariance = local(a * b) - mean_a * mean_b
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))
    return float(similarity.mean())


def _check_same_shape(value: Tensor, reference: Tensor) -> None:
    if value.shape != reference.shape:
        raise ValueError(
            f"Both inputs must have one shape, got {tuple(value.shape)} and {tuple(reference.shape)}; resize one."
        )
