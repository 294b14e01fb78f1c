"""Kernels of blur."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Width at which a Gaussian is cut, in standard deviations: 1e-5 of its weight lies beyond.
_GAUSSIAN_REACH = 4.5
# Points a pixel of the path at which a moving point is put down.
_MOTION_POINTS = 16


def gaussian_kernel(radius: float) -> Tensor:
    """A Gaussian of standard deviation ``radius`` pixels, one-dimensional, odd length, float64, sum 1.

    Raises:
        ValueError: If the radius is not positive.
    """
    if not (math.isfinite(radius) and radius > 0.0):
        raise ValueError(f"radius must be above 0, got {radius:g}; 1 to 5 pixels are usual.")
    reach = max(1, math.ceil(_GAUSSIAN_REACH * radius))
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (place / radius).square())
    return kernel / kernel.sum()


def motion_kernel(length: float, angle: float) -> Tensor:
    """A line through the middle of a square of odd side, float64, sum 1.

    Args:
        length: Way of the camera in pixels, at least 1.
        angle: Its direction in degrees, 0 to the right, 90 upwards.

    Raises:
        ValueError: If the length is below 1 or the angle not finite.
    """
    if not (math.isfinite(length) and length >= 1.0 and math.isfinite(angle)):
        raise ValueError(f"length must be at least 1, got {length:g}; 5 to 30 pixels are usual.")
    reach = math.ceil((length - 1.0) / 2.0) + 1
    side = 2 * reach + 1
    along = torch.linspace(-(length - 1.0) / 2, (length - 1.0) / 2, max(1, math.ceil(length * _MOTION_POINTS)))
    along = along.to(torch.float64)
    turn = math.radians(angle)
    x, y = reach + along * math.cos(turn), reach - along * math.sin(turn)
    # Every point is shared among the four pixels around it.
    grid = torch.arange(side, dtype=torch.float64)
    across = (1.0 - (grid - x[:, None]).abs()).clamp_min(0.0)
    down = (1.0 - (grid - y[:, None]).abs()).clamp_min(0.0)
    kernel = down.mT @ across
    return kernel / kernel.sum()


def picture_kernel(picture: Tensor) -> Tensor:
    """A kernel from a picture, cut to odd sides and scaled to the sum 1.

    Args:
        picture: Shape (h, w), brightness; black is 0.

    Returns:
        Shape (h or h - 1, w or w - 1), float64.

    Raises:
        ValueError: If it is no picture, not finite, or adds up to nothing.
    """
    if picture.ndim != 2 or picture.numel() == 0 or not bool(torch.isfinite(picture).all()):
        raise ValueError(
            f"kernel must be one finite picture, got shape {tuple(picture.shape)}; connect a small grey picture."
        )
    height, width = (side - (side % 2 == 0) for side in picture.shape)
    kernel = picture[: max(height, 1), : max(width, 1)].to("cpu", torch.float64)
    total = float(kernel.sum())
    if abs(total) < 1e-6 * max(1.0, float(kernel.abs().sum())):
        raise ValueError(f"kernel must not add up to zero, got a sum of {total:g}; draw it white on black.")
    return kernel / total
