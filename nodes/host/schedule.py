"""The grid of sigmas that an inversion climbs, from the host's scheduler or from SIGMAS."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import comfy.samplers
import torch

from ...core.grid import shorten
from ...inversion import Inversion
from .parametrisation import model_sampling_of

# FlipSigmas of the host replaces a leading 0 by 0.0001, because stock samplers divide by the first sigma.
FLIPPED_ZERO = 1.01e-4


def rising_sigmas(model: Any, scheduler: str, steps: int) -> tuple[float, ...]:
    """Return the host's schedule as rising sigmas.

    Args:
        model: The MODEL; its sampling patches (shift and so on) count.
        scheduler: A name in the host's list.
        steps: Number of steps, at least 2.

    Returns:
        steps + 1 rising sigmas from 0, fewer when the scheduler repeats one.
    """
    return read_sigmas(comfy.samplers.calculate_sigmas(model_sampling_of(model), scheduler, steps))


def without_repeats(values: list[float]) -> list[float]:
    """Return sigmas with each that a scheduler gives twice in a row kept once."""
    return values[:1] + [after for before, after in pairwise(values) if after != before]


def read_sigmas(sigmas: torch.Tensor) -> tuple[float, ...]:
    """Read SIGMAS, rising or falling, as rising sigmas from 0.

    A sigma that a scheduler gives twice in a row (ddim_uniform and beta do so at many steps) is kept once; a first
    one of 0.0001, which the host's FlipSigmas writes, is read as the 0 that it stands for.

    Args:
        sigmas: Shape (N + 1,).

    Returns:
        Strictly rising floats, the first 0.0.

    Raises:
        ValueError: If they are not monotone, do not reach 0 or are fewer than three.
    """
    values = [float(value) for value in sigmas.detach().cpu().flatten()]
    if len(values) > 1 and values[0] > values[-1]:
        values.reverse()
    unique = without_repeats(values)
    if any(not after > before for before, after in pairwise(unique)):
        raise ValueError(
            f"sigmas must rise or fall throughout, got {shorten(values)}; connect the SIGMAS of a scheduler node."
        )
    if unique and 0.0 < unique[0] <= FLIPPED_ZERO:
        unique[0] = 0.0
    if not unique or unique[0] != 0.0:
        raise ValueError(
            f"sigmas must reach 0, got {shorten(values)}; connect the whole schedule and set the start by strength."
        )
    if len(unique) < 3:
        raise ValueError(f"steps must be at least 2, got sigmas {shorten(values)}; use a longer schedule.")
    return tuple(unique)


def falling_tensor(inversion: Inversion) -> torch.Tensor:
    """Return the way down from an inversion's state as the host's SIGMAS: shape (index + 1,), float32 on the CPU."""
    return torch.tensor(inversion.falling, dtype=torch.float32)
