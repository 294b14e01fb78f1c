"""RED-diff: fit one clean picture to the measurement, with the model's denoiser as the regulariser."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..levels import Denoise, OnStep, Report, Space, check_levels, weights
from .fresh import Fresh

# Adam's decays as in the official code.
_FIRST, _SECOND = 0.9, 0.99
_EPSILON = 1e-8

# How the regulariser is weighed over the levels, as a function of s = b / a.
WEIGHTS: dict[str, Callable[[float], float]] = {
    "linear": lambda s: s,
    "sqrt": math.sqrt,
    "square": lambda s: s * s,
    "log": math.log1p,
    "clip": lambda s: min(s, 1.0),
    "constant": lambda s: 1.0,
}
SCHEDULES = ("constant", "cosine")


def red_diff(
    denoise: Denoise,
    start: Tensor,
    sigmas: tuple[float, ...],
    space: Space,
    data_gradient: Callable[[Tensor], Tensor],
    fresh: Fresh,
    *,
    prior: float = 0.25,
    step: float = 0.1,
    weight: str = "linear",
    schedule: str = "constant",
    on_step: OnStep | None = None,
) -> Tensor:
    """Variational fit of a clean picture mu (Mardani et al. 2024, arXiv:2305.04391).

        x = a mu + b n,   D = denoise(x, sigma)
        gradient = data_gradient(mu) + prior * w(s) * (mu - D) / (s d),   Adam on mu

    with d the number of values of a sample. The result is one best estimate and no sample: on average it smooths.

    Args:
        denoise: D(x, sigma).
        start: First mu, shape (B, ...).
        sigmas: Falling levels, one for a step; a last 0 is left out. Levels above 5 to 10 only blur.
        space: "ve" or "flow".
        data_gradient: Gradient of the data term. In the paper that is |A mu - y|^2 / (2 m), m the number of measured
            values; with the number of values of the picture in place of m a prior weighs the same however few were
            measured.
        fresh: Draws unit noise of the shape of mu.
        prior: Weight of the regulariser.
        step: Learning rate.
        weight: Name of WEIGHTS.
        schedule: "constant", or "cosine" to let the rate fall to 0.
        on_step: Called after every step.

    Returns:
        mu.

    Raises:
        ValueError: If a name is unknown, a number not positive, or the levels do not fall.
    """
    if weight not in WEIGHTS:
        raise ValueError(f"weight must be one of {', '.join(WEIGHTS)}, got {weight!r}; choose one of these.")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be constant or cosine, got {schedule!r}; choose one of these.")
    if not (prior >= 0.0 and step > 0.0):
        raise ValueError(f"prior must be 0 or more and step above 0, got {prior:g} and {step:g}; use 0.25 and 0.1.")
    check_levels(sigmas, space)
    levels = [sigma for sigma in sigmas if sigma > 0.0]
    mu = start
    first, second = torch.zeros_like(mu), torch.zeros_like(mu)
    unknowns = mu[0].numel()
    for index, sigma in enumerate(levels):
        a, b = weights(sigma, space)
        denoised = denoise(a * mu + b * fresh(), sigma)
        gradient = data_gradient(mu)
        if a > 0.0:  # at flow sigma 1 the state holds nothing of mu
            s = b / a
            gradient = gradient + prior * WEIGHTS[weight](s) / s / unknowns * (mu - denoised)
        first = _FIRST * first + (1.0 - _FIRST) * gradient
        second = _SECOND * second + (1.0 - _SECOND) * gradient.square()
        mean = first / (1.0 - _FIRST ** (index + 1))
        spread = (second / (1.0 - _SECOND ** (index + 1))).sqrt()
        rate = step if schedule == "constant" else step * 0.5 * (1.0 + math.cos(math.pi * index / len(levels)))
        mu = mu - rate * mean / (spread + _EPSILON)
        if on_step is not None:
            on_step(Report(index, len(levels), sigma, mu, mu))
    return mu
