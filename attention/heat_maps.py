"""From heat maps to masks: threshold, grow, blur.

Maps and masks have the shape (items, frames, h, w), a picture being one frame; 1 is where an edit may act. Everything
works on each frame by itself, thresholds on each item with all its frames, so that a word that is absent from a frame
leaves it empty.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as functional
from torch import Tensor

Threshold = Literal["absolute", "quantile", "mean", "otsu"]
THRESHOLDS: tuple[str, ...] = get_args(Threshold)
# Resolution of the histogram in which Otsu's threshold is looked for, that of 8-bit pictures.
_BINS = 256


def over_maximum(maps: Tensor) -> Tensor:
    """Divide each item by its maximum; an item without any positive value becomes 0.

    Args:
        maps: Shape (items, frames, h, w), not negative.
    """
    top = maps.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(top > 0.0, maps / top.clamp_min(torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))


def threshold(maps: Tensor, how: Threshold = "absolute", value: float = 0.3) -> Tensor:
    """Cut maps into masks of 0 and 1.

    Args:
        maps: Shape (items, frames, h, w), not negative.
        how: "absolute": above value, where the maximum of the item is 1. "quantile": above this part of all cells of
            the item. "mean": above value times the mean. "otsu": above the cut that parts the cells into the two
            most different groups (Otsu 1979), times value.
        value: In 0 .. 1 for "absolute" and "quantile", a factor above 0 for the others.

    Returns:
        Masks of the same shape and dtype. An item that is 0 everywhere gives 0.

    Raises:
        ValueError: If the rule is unknown or the value out of its range.
    """
    if how not in THRESHOLDS:
        raise ValueError(f"threshold must be one of {', '.join(THRESHOLDS)}, got {how!r}; choose one of these.")
    if how in ("absolute", "quantile") and not 0.0 <= value < 1.0:
        raise ValueError(f"threshold must be at least 0 and below 1 for {how}, got {value:g}; lower it.")
    if how in ("mean", "otsu") and not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"threshold must be above 0 for {how}, got {value:g}; 1 is the usual factor.")
    cut = torch.empty(maps.shape[0], 1, 1, 1, dtype=maps.dtype, device=maps.device)
    if how == "absolute":
        cut[:, 0, 0, 0] = value * maps.amax(dim=(1, 2, 3))
    elif how == "mean":
        cut[:, 0, 0, 0] = value * maps.mean(dim=(1, 2, 3))
    else:
        for item, cells in enumerate(maps.flatten(1)):
            # torch.quantile refuses more than 16 million cells, which a clip may have.
            rank = min(int(value * cells.numel()), cells.numel() - 1)
            cut[item] = cells.sort().values[rank] if how == "quantile" else value * _otsu(cells)
    return (maps > cut).to(maps.dtype)


def _otsu(cells: Tensor) -> float:
    """Upper edge of the bin behind which the variance between the two groups is largest."""
    low, high = float(cells.min()), float(cells.max())
    if not high > low:
        return high
    counts = torch.histc(cells.to("cpu", torch.float32), _BINS, low, high).double()
    centres = torch.arange(_BINS, dtype=torch.float64) + 0.5
    below = counts.cumsum(0)[:-1]
    above = counts.sum() - below
    moment = (counts * centres).cumsum(0)
    gap = moment[:-1] / below.clamp_min(1.0) - (moment[-1] - moment[:-1]) / above.clamp_min(1.0)
    between = below * above * gap**2
    # All cuts between two groups that nothing lies between are as good: the middle one is taken.
    best = (between >= between.max() * (1.0 - 1e-12)).nonzero()[:, 0]
    cut = float(best[(len(best) - 1) // 2]) + 1.0
    return low + (high - low) * cut / _BINS


def grow(mask: Tensor, cells: int) -> Tensor:
    """Widen a mask by cells on all sides, or narrow it by a negative number of them.

    Args:
        mask: Shape (items, frames, h, w).
        cells: Radius of the square that is laid over each cell.

    Returns:
        Same shape. Beyond the edge nothing is masked when it grows and all is when it shrinks, so that a mask that
        touches the edge still does.
    """
    if cells == 0:
        return mask
    sign = 1.0 if cells > 0 else -1.0
    size = 2 * abs(cells) + 1
    # One side after the other: the square of a maximum is a maximum of maxima.
    wide = sign * mask
    for window in ((size, 1), (1, size)):
        wide = functional.max_pool2d(wide, window, stride=1, padding=(window[0] // 2, window[1] // 2))
    return sign * wide


def blur(mask: Tensor, sigma: float) -> Tensor:
    """Soften a mask or a map with a Gaussian.

    Args:
        mask: Shape (items, frames, h, w).
        sigma: Standard deviation in cells, 0 for none.

    Returns:
        Same shape; beyond the edge the outermost cell goes on.
    """
    if sigma <= 0.0:
        return mask
    # Three standard deviations hold 99.7 % of it.
    radius = max(1, math.ceil(3.0 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=mask.dtype, device=mask.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    items, frames, h, w = mask.shape
    soft = mask.reshape(items * frames, 1, h, w)
    soft = functional.conv2d(functional.pad(soft, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    soft = functional.conv2d(functional.pad(soft, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return soft.reshape(mask.shape)
