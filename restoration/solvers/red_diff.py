"""RED-diff: fit one clean picture to the measurement, with the model's denoiser as the regulariser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.adam import Adam
from ...core.denoiser import Denoiser
from ...core.fitting import Attempt, Best, fit
from ...core.grid import check_falling
from ...core.settings import Settings, parameter
from ...core.space import Space, mix, weights
from ...core.walk import OnStep, StepReport

# Adam's as in the official code.
BETAS = (0.9, 0.99)

# How the regulariser is weighed over the sigmas, as a function of s = b / a.
WEIGHTS: dict[str, Callable[[float], float]] = {
    "linear": lambda s: s,
    "sqrt": math.sqrt,
    "square": lambda s: s * s,
    "log": math.log1p,
    "clip": lambda s: min(s, 1.0),
    "constant": lambda s: 1.0,
}
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class REDDiffSettings(Settings):
    """Settings of RED-diff."""

    prior: float = parameter(0.25, "How much the model counts against the photo.", 0.0, 100.0, 0.01, round=0.001)
    step: float = parameter(
        0.1,
        "Length of a step of the fit. Higher is faster and leaves jitter.",
        0.001,
        1.0,
        0.01,
        round=0.001,
        advanced=True,
    )
    weight: str = parameter(
        "linear",
        "How much the model counts at which noise level; square suits masks and low resolution.",
        options=tuple(WEIGHTS),
        advanced=True,
    )
    schedule: str = parameter(
        "constant",
        "cosine lets the steps fall to zero, which suits masks and low resolution; blur and lost colour want constant.",
        options=SCHEDULES,
        advanced=True,
    )
    sigma_max: float = parameter(
        10.0,
        "Noise levels above this (sigma, or sigma / (1 - sigma) of a flow model) are left out: up there the model sees "
        "nothing of the picture.",
        0.1,
        1000.0,
        0.1,
        advanced=True,
    )


DEFAULTS = REDDiffSettings()


def red_diff(
    denoiser: Denoiser,
    start: Tensor,
    sigmas: Sequence[float],
    data_gradient: Callable[[Tensor], Tensor],
    fresh: Callable[[], Tensor],
    settings: REDDiffSettings = DEFAULTS,
    on_step: OnStep | None = None,
) -> Tensor:
    """Variational fit of a clean picture mu (Mardani et al. 2024, arXiv:2305.04391).

        x = a mu + b n,   D = denoiser(x, sigma)
        gradient = data_gradient(mu) + prior * w(s) * (mu - D) / (s d),   Adam on mu

    with d the number of values of a sample and s = b / a. The result is one best estimate and no sample: on average it
    smooths.

    Args:
        denoiser: The model.
        start: First mu, shape (B, ...).
        sigmas: Falling, one for a step; a last 0 and those with s above sigma_max are left out.
        data_gradient: Gradient of the data term. In the paper that is |A mu - y|^2 / (2 m), m the number of measured
            values; with the number of values of the picture in place of m a prior weighs the same however few were
            measured.
        fresh: Draws unit noise of the shape of mu.
        settings: Weight of the regulariser and its w, learning rate and how it goes on, and sigma_max.
        on_step: Told after every step.

    Returns:
        mu.

    Raises:
        ValueError: If the sigmas do not fall, or none is left.
    """
    space = denoiser.space
    check_falling(sigmas, space)
    fitted = [sigma for sigma in sigmas if sigma > 0.0 and _ratio(sigma, space) <= settings.sigma_max]
    if not fitted:
        raise ValueError(
            f"sigma_max must leave a sigma of the schedule, got {settings.sigma_max:g}; raise it or use more steps."
        )
    adam, total = Adam(settings.step, betas=BETAS), len(fitted)

    def attempt(mu: Tensor, number: int, wanted: bool) -> Attempt:
        # Each sigma has a loss of its own, so the last mu is the best.
        score = torch.full((len(mu),), -float(number))
        if not wanted:
            return Attempt(score, (), None)
        sigma = fitted[number]
        denoised = denoiser(mix(mu, fresh(), sigma, space), sigma)
        s = _ratio(sigma, space)
        prior = settings.prior * WEIGHTS[settings.weight](s) / s / mu[0].numel() * (mu - denoised)
        return Attempt(score, (), data_gradient(mu) + prior)

    def update(mu: Tensor, gradient: Tensor) -> Tensor:
        rate = settings.step
        if settings.schedule == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * adam.made / total))
        mean, size = adam.moments(gradient)
        return mu - rate * mean / size

    def tell(number: int, tried: Attempt, best: Best) -> None:
        if on_step is not None and number:
            sigma, after = fitted[number - 1], [*fitted, 0.0][number]
            on_step(StepReport(number - 1, total, sigma, after, best.value, best.value))

    return fit(start, attempt, update, total, tell=tell).value


def _ratio(sigma: float, space: Space) -> float:
    a, b = weights(sigma, space)
    # At flow sigma 1 the state holds nothing of the picture.
    return b / a if a > 0.0 else math.inf
