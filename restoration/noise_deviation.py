"""How noisy a picture is, from itself."""

from __future__ import annotations

import torch
from torch import Tensor

# Median of |n| for unit normal n.
_MEDIAN = 0.6745


def noise_deviation(y: Tensor, seen: Tensor | None = None) -> float:
    """Standard deviation of white noise: median |w| / 0.6745 of the finest diagonal wavelet coefficients w.

    w = (a - b - c + d) / 2 for every square of four pixels; edges of a picture touch few of them (Donoho and Johnstone
    1994, Biometrika 81).

    Args:
        y: Pictures (..., H, W), both sides at least 2.
        seen: Broadcastable to y: true where something was measured; None for everywhere.

    Returns:
        The deviation in the units of y. It is too low for pictures that were smoothed after the noise came in.

    Raises:
        ValueError: If there is no square of four measured pixels.
    """
    height, width = (side - side % 2 for side in y.shape[-2:])

    def parts(value: Tensor) -> list[Tensor]:
        even = value[..., :height, :width]
        return [even[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]

    a, b, c, d = parts(y)
    detail = ((a - b - c + d) / 2).abs()
    if seen is not None:
        detail = detail[torch.stack(parts(seen.expand(y.shape))).all(dim=0)]
    if detail.numel() == 0:
        raise ValueError(f"picture must show 2 x 2 pixels to measure noise, got {tuple(y.shape)}; use a larger one.")
    return float(detail.median()) / _MEDIAN
