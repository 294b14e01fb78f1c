"""The one loop: a stepper over a grid of sigmas, up for inversion or down for sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from .denoiser import Denoiser
from .grid import shorten
from .steps import Stepper


@dataclass(frozen=True, eq=False)
class StepReport:
    """What a finished step tells its listener.

    Attributes:
        index: Step, 0 .. total - 1.
        total: Steps in this walk.
        sigma: Sigma that the step left.
        sigma_next: Sigma that it reached.
        x: State at sigma_next, or the clean latent of an edit or fit that has no other.
        denoised: Clean latent that this step predicted, for previews.
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
    """Carry a state along a grid of sigmas.

    Args:
        denoiser: The model.
        x: State at sigmas[0], shape (B, C, [T,] H, W); left untouched.
        sigmas: Sigmas in walking order, strictly rising or strictly falling, at least two.
        stepper: One-step map, fresh for this walk.
        on_step: Told after every step; whatever it raises ends the walk.
        after_step: Maps the new state and its index to the state that the walk goes on from. The index is that in the
            ascending grid of this walk: 1, 2, .. going up, .. 1, 0 going down.

    Returns:
        State at sigmas[-1] in the shape, dtype and device of x.

    Raises:
        ValueError: If the sigmas are fewer than two or do not strictly rise or fall.
    """
    grid = [float(sigma) for sigma in sigmas]
    gaps = [b - a for a, b in pairwise(grid)]
    rising = bool(gaps) and gaps[0] > 0.0
    if not gaps or not all(math.isfinite(gap) and (gap > 0.0 if rising else gap < 0.0) for gap in gaps):
        raise ValueError(
            f"sigmas must be at least two finite numbers that strictly rise or strictly fall, got {shorten(grid)}; "
            "remove what stands twice."
        )
    total = len(gaps)
    for number, (sigma, sigma_next) in enumerate(pairwise(grid)):
        step = stepper(denoiser, x, sigma, sigma_next)
        x = step.x
        if after_step is not None:
            x = after_step(x, number + 1 if rising else total - 1 - number)
        if on_step is not None:
            on_step(StepReport(number, total, sigma, sigma_next, x, step.denoised))
    return x
