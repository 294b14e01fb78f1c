"""The one loop: a stepper over a grid of noise levels, up for inversion or down for sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from .denoiser import Denoiser
from .steps import Stepper


@dataclass(frozen=True, eq=False)
class StepReport:
    """What a finished step tells its listener.

    Attributes:
        index: Step, 0 .. total - 1.
        total: Steps in this walk.
        sigma: Level that the step left.
        sigma_next: Level that it reached.
        x: State at sigma_next.
        denoised: Clean latent that the model predicted in this step, for previews.
    """

    index: int
    total: int
    sigma: float
    sigma_next: float
    x: Tensor
    denoised: Tensor


OnStep = Callable[[StepReport], None]
AfterStep = Callable[[Tensor, int], Tensor]


def walk(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    stepper: Stepper,
    on_step: OnStep | None = None,
    after_step: AfterStep | None = None,
) -> Tensor:
    """Carry a state along a grid of noise levels.

    Args:
        denoiser: The model.
        x: State at sigmas[0], shape (B, C, [T,] H, W); left untouched.
        sigmas: Levels in walking order, strictly rising or strictly falling, at least two.
        stepper: One-step map, fresh for this walk.
        on_step: Told after every step; whatever it raises ends the walk.
        after_step: Maps the new state and its level to the state that the walk goes on from. The level is the
            index into the ascending grid of this walk: 1, 2, .. going up, .. 1, 0 going down.

    Returns:
        State at sigmas[-1] in the shape, dtype and device of x.

    Raises:
        ValueError: If the sigmas are fewer than two or do not strictly rise or fall.
    """
    levels = [float(sigma) for sigma in sigmas]
    gaps = [b - a for a, b in pairwise(levels)]
    rising = bool(gaps) and gaps[0] > 0.0
    if not gaps or not all(math.isfinite(gap) and (gap > 0.0 if rising else gap < 0.0) for gap in gaps):
        raise ValueError(
            f"sigmas must be at least two finite levels that strictly rise or strictly fall, got {shorten(levels)}; "
            "remove repeated levels."
        )
    total = len(gaps)
    for index, (sigma, sigma_next) in enumerate(pairwise(levels)):
        step = stepper(denoiser, x, sigma, sigma_next)
        x = step.x
        if after_step is not None:
            x = after_step(x, index + 1 if rising else total - 1 - index)
        if on_step is not None:
            on_step(StepReport(index, total, sigma, sigma_next, x, step.denoised))
    return x


def shorten(sigmas: Sequence[float], most: int = 4) -> str:
    """A grid as a person wants it in a sentence: a few levels and the count."""
    shown = ", ".join(f"{sigma:.6g}" for sigma in sigmas[:most])
    return f"[{shown}]" if len(sigmas) <= most else f"[{shown}, ...] ({len(sigmas)} levels)"
