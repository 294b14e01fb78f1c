"""A rule-based reader of Shapes pictures: colours, shape, size and place, without any network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .world import COLOURS, SHAPES, SIZE, coverage

_NAMES = tuple(COLOURS)
_PALETTE = np.array([COLOURS[name] for name in _NAMES], np.float64)
_GRID = 32  # side of the box that masks are compared in


@dataclass(frozen=True)
class Reading:
    """What the reader saw. `shape`, `size` and `position` are None when no object stands out."""

    colour: str | None
    shape: str | None
    size: str | None
    position: str | None
    background: str
    mask: np.ndarray


def _nearest(rgb: np.ndarray) -> str:
    return _NAMES[int(np.argmin(((_PALETTE - rgb) ** 2).sum(-1)))]


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Bounding box (top, bottom, left, right) of all but the outermost percent of a mask on each side."""

    def span(profile: np.ndarray) -> tuple[int, int]:
        total = np.cumsum(profile) / profile.sum()
        return int(np.searchsorted(total, 0.01)), int(np.searchsorted(total, 0.99)) + 1

    return (*span(mask.sum(1)), *span(mask.sum(0)))


def _normalised(mask: np.ndarray) -> np.ndarray:
    top, bottom, left, right = _box(mask)
    crop = Image.fromarray((mask[top:bottom, left:right] * 255).astype(np.uint8))
    return np.asarray(crop.resize((_GRID, _GRID), Image.Resampling.BILINEAR), np.float64) / 255


_TEMPLATES = {
    shape: [_normalised((coverage(shape, (SIZE / 2, SIZE / 2), half) > 0.5).astype(np.float64)) for half in (9.5, 17.0)]
    for shape in SHAPES
}


def read(picture: np.ndarray) -> Reading:
    """Say what a picture of the Shapes world shows.

    The background is the median of the border, the object is what differs from it, its colour the
    median of the inner object, its shape the template with the largest overlap (intersection over
    union) once both are stretched to the same box.

    Args:
        picture: uint8 or 0-to-1 floats, shape (64, 64, 3); other sizes are resized.

    Returns:
        The reading, with the object mask, bool, shape (64, 64).
    """
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"picture must have shape (height, width, 3), got {pixels.shape}; pass one RGB picture.")
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.rint(pixels * 255.0), 0, 255).astype(np.uint8)
    if pixels.shape[:2] != (SIZE, SIZE):
        pixels = np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    pixels = pixels.astype(np.float64)
    border = np.concatenate(
        [
            pixels[:2].reshape(-1, 3),
            pixels[-2:].reshape(-1, 3),
            pixels[:, :2].reshape(-1, 3),
            pixels[:, -2:].reshape(-1, 3),
        ]
    )
    ground = np.median(border, 0)
    background = _nearest(ground)
    difference = np.sqrt(((pixels - ground) ** 2).sum(-1))
    # 45: a background gradient reaches about 20, two palette colours are at least 100 apart.
    mask = _majority(difference > max(45.0, 0.5 * float(np.quantile(difference, 0.98))))
    if mask.sum() < 30:
        return Reading(None, None, None, None, background, mask)
    inner = mask & _majority(mask, 8)
    colour = _nearest(np.median(pixels[inner if inner.any() else mask], 0))
    seen = _normalised(mask.astype(np.float64))
    overlap = {
        shape: max(float(np.minimum(seen, t).sum() / np.maximum(seen, t).sum()) for t in templates)
        for shape, templates in _TEMPLATES.items()
    }
    top, bottom, left, right = _box(mask.astype(np.float64))
    size = "big" if max(bottom - top, right - left) > 23 else "small"
    dx, dy = (left + right) / 2 - SIZE / 2, (top + bottom) / 2 - SIZE / 2
    if max(abs(dx), abs(dy)) < 6.0:
        position = "middle"
    elif abs(dx) > abs(dy):
        position = "left" if dx < 0 else "right"
    else:
        position = "top" if dy < 0 else "bottom"
    return Reading(colour, max(overlap, key=lambda s: overlap[s]), size, position, background, mask)


def _majority(mask: np.ndarray, needed: int = 5) -> np.ndarray:
    """Pixels of which at least `needed` of the 3 by 3 neighbourhood are set: removes specks, or erodes."""
    padded = np.pad(mask, 1, mode="edge").astype(np.int64)
    height, width = mask.shape
    count = np.stack([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]).sum(0)
    return count >= needed
