"""How a noisy state is mixed, and how well the model can know the clean picture behind it.

    x = a x0 + b n,   "ve": a = 1, b = sigma;   "flow": a = 1 - sigma, b = sigma

Everything else follows from the ratio s = b / a.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

Space = Literal["ve", "flow"]
Denoise = Callable[[Tensor, float], Tensor]


class Report(NamedTuple):
    """One step of a solver: its number from 0 of how many, its level, the state after it and the clean prediction."""

    number: int
    total: int
    sigma: float
    x: Tensor
    denoised: Tensor


OnStep = Callable[[Report], None]


def weights(sigma: float, space: Space) -> tuple[float, float]:
    """Return a and b.

    Raises:
        ValueError: If the space is unknown, or sigma lies outside it.
    """
    if space not in ("ve", "flow"):
        raise ValueError(f"space must be 've' or 'flow', got {space!r}; flow models are 'flow', all others 've'.")
    if not sigma >= 0.0 or (space == "flow" and sigma > 1.0):
        raise ValueError(
            f"sigma must be 0 or more, and at most 1 for flow, got {sigma}; connect the model's own levels."
        )
    return (1.0, sigma) if space == "ve" else (1.0 - sigma, sigma)


def clean_variance(sigma: float, space: Space, variance: float = 1.0) -> float:
    """Variance r^2 = v b^2 / (v a^2 + b^2) of the clean picture given the state, for data of variance v.

    It is exact for white data and finite at flow sigma 1.
    """
    a, b = weights(sigma, space)
    return variance * b**2 / (variance * a**2 + b**2) if b > 0.0 else 0.0


def vp_scale(sigma: float, space: Space) -> float:
    """sqrt(a^2 + b^2): what a state is divided by to have the unit variance of a DDPM's."""
    return math.hypot(*weights(sigma, space))


def check_levels(sigmas: tuple[float, ...], space: Space) -> None:
    """Refuse levels that do not fall.

    Raises:
        ValueError: If there are fewer than two, or they rise or stand.
    """
    if len(sigmas) < 2 or any(not after < before for before, after in zip(sigmas, sigmas[1:], strict=False)):
        raise ValueError(
            f"sigmas must fall from one level to the next, got {len(sigmas)} levels; use a scheduler node."
        )
    weights(sigmas[0], space)
    weights(sigmas[-1], space)
