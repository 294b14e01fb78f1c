"""The grid: sigmas from the clean end to noise, the index of one of them, and their checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from .space import Space, check_space, weights

# In float32 anything smaller may be 0, and the noise of a state at such a sigma 0 / 0.
SMALLEST_STEP = torch.finfo(torch.float32).tiny


def check_sigmas(sigmas: Sequence[float], space: Space) -> tuple[float, ...]:
    """The grid as a tuple of floats.

    Args:
        sigmas: Noise levels, clean end first.
        space: "ve" or "flow".

    Raises:
        ValueError: If it is not an ascending grid of at least two sigmas that the space has.
    """
    check_space(space)
    grid = tuple(float(sigma) for sigma in sigmas)
    if len(grid) < 2:
        raise ValueError(f"sigmas must be at least two, got {len(grid)}; ask for at least one step.")
    if not all(math.isfinite(sigma) and sigma >= 0.0 for sigma in grid):
        raise ValueError(f"sigmas must be finite and not negative, got {shorten(grid)}; use another schedule.")
    if not all(a < b for a, b in pairwise(grid)):
        raise ValueError(f"sigmas must strictly rise from the clean end, got {shorten(grid)}; flip a falling grid.")
    if not all(b - a >= SMALLEST_STEP for a, b in pairwise(grid)):
        raise ValueError(f"sigmas must rise in steps that float32 can hold, got {shorten(grid)}; use another schedule.")
    if space == "flow" and grid[-1] > 1.0:
        raise ValueError(f"sigmas of a flow model must not exceed 1, got {grid[-1]:.6g}; use a flow schedule.")
    return grid


def check_falling(sigmas: Sequence[float], space: Space) -> None:
    """Refuse what is no way down of a sampler.

    Raises:
        ValueError: If the sigmas are fewer than two, rise or stand, or lie outside the space.
    """
    if len(sigmas) < 2 or not all(after < before for before, after in pairwise(sigmas)):
        raise ValueError(f"sigmas must be at least two that fall, got {shorten(sigmas)}; use a scheduler node.")
    weights(sigmas[0], space)
    weights(sigmas[-1], space)


def check_index(index: int, sigmas: Sequence[float], lowest: int = 1) -> None:
    """Refuse an index that is no whole number within the grid.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it lies outside.
    """
    if type(index) is not int:
        raise TypeError(f"index must be a whole number, got {index!r}; use strength_to_index for a fraction.")
    if not lowest <= index <= len(sigmas) - 1:
        raise ValueError(
            f"index must lie between {lowest} and the number of steps {len(sigmas) - 1}, got {index}; "
            "change the strength or the number of steps."
        )


def strength_to_index(strength: float, steps: int) -> int:
    """The index for a fraction of the way into the noise: strength * steps, rounded, at least 1.

    Args:
        strength: Above 0, at most 1.
        steps: Steps N of the grid, at least 1.

    Raises:
        ValueError: If either is out of range.
    """
    if not (math.isfinite(strength) and 0.0 < strength <= 1.0):
        raise ValueError(f"strength must lie above 0 and not above 1, got {strength}; 1 goes all the way to noise.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}; use 20 or more for a close reconstruction.")
    return max(1, math.floor(strength * steps + 0.5))


def shorten(sigmas: Sequence[float], most: int = 4) -> str:
    """A grid as a person wants it in a sentence: a few sigmas and the count."""
    shown = ", ".join(f"{sigma:.6g}" for sigma in sigmas[:most])
    return f"[{shown}]" if len(sigmas) <= most else f"[{shown}, ...] ({len(sigmas)} sigmas)"
