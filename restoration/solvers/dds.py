"""DDS: sample from the model, and draw every clean prediction to the measurement on the way."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from ..levels import Denoise, OnStep, Report, Space, check_levels, clean_variance, weights
from ..measurement import Measurement
from .fresh import Fresh

# Share of the noise that is drawn anew at every step; the official value for 49 steps.
FRESHNESS = 0.85
# The official weight and number of iterations for noisy measurements.
OFFICIAL_WEIGHT, OFFICIAL_ITERATIONS = 1.0, 5


class Consistency(Protocol):
    """Draws a clean prediction to the measurement."""

    def __call__(self, denoised: Tensor, variance: float, index: int, total: int) -> Tensor:
        """The corrected prediction.

        Args:
            denoised: The model's prediction D.
            variance: How well it is known: r^2 of levels.clean_variance.
            index: Number of the step from 0.
            total: Number of steps.
        """


class PixelConsistency:
    """argmin_x 1/2 |x - D|^2 + g/2 |A x - y|^2 for states that are pictures in [-1, 1]."""

    def __init__(self, measurement: Measurement, trust: float = 1.0, official: bool = False) -> None:
        """Choose the weight.

        Args:
            measurement: What was measured.
            trust: Multiplies the weight g = r^2 / sigma^2; 1 is Bayes' rule for white data.
            official: Take the published g = 1 and five iterations from D in place of all this.
        """
        self._measurement = measurement
        self._trust = trust
        self._official = official

    def __call__(self, denoised: Tensor, variance: float, index: int = 0, total: int = 1) -> Tensor:
        """See Consistency."""
        measurement = self._measurement.to(denoised)
        if self._official:
            return measurement.correct(denoised, OFFICIAL_WEIGHT, OFFICIAL_ITERATIONS)
        return measurement.correct(denoised, self._trust * measurement.weight(variance))


def dds(
    denoise: Denoise,
    x: Tensor,
    sigmas: tuple[float, ...],
    space: Space,
    consistency: Consistency,
    fresh: Fresh,
    *,
    freshness: float = FRESHNESS,
    conditional_noise: bool = False,
    variance: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Decomposed diffusion sampling (Chung, Lee, Ye 2024, arXiv:2303.05754), one model call a step and no gradients.

        D   = denoise(x, sigma)               n^ = (x - a D) / b
        xh  = consistency(D)
        x'  = a' xh + b' ( sqrt(1 - f^2) n^ + f n )

    The published weight of the measurement is a constant; the one that the consistency gets here is that of Bayes'
    rule for white data of the given variance, r^2 / sigma_y^2. What comes out is one likely picture; the spread of
    several is smaller than that of the posterior.

    Args:
        denoise: D(x, sigma) of the shape of x.
        x: State at sigmas[0], shape (B, ...); pure noise is b times unit noise.
        sigmas: Falling levels; the result stands at the last one, which is 0 for a clean picture.
        space: "ve" or "flow".
        consistency: Draws D to the measurement.
        fresh: Draws unit noise of the shape of x.
        freshness: f in [0, 1], the share of the noise's amplitude that is new at every step. Low values diverge on
            blur; 0 is deterministic.
        conditional_noise: Take n^ from xh in place of D. Nearer to the posterior for blur with f = 0.5 and otherwise
            farther.
        variance: Variance v of the data in the units of x: 1 for latents, 0.25 for pixels in [-1, 1].
        on_step: Called after every step.

    Returns:
        The state at sigmas[-1].

    Raises:
        ValueError: If the levels do not fall or the freshness is outside [0, 1].
    """
    check_levels(sigmas, space)
    if not 0.0 <= freshness <= 1.0:
        raise ValueError(f"freshness must lie between 0 and 1, got {freshness:g}; 0.85 is usual.")
    kept = math.sqrt(1.0 - freshness**2)
    total = len(sigmas) - 1
    for index in range(total):
        sigma, after = sigmas[index], sigmas[index + 1]
        (a, b), (a_next, b_next) = weights(sigma, space), weights(after, space)
        denoised = denoise(x, sigma)
        corrected = consistency(denoised, clean_variance(sigma, space, variance), index, total)
        old = (x - a * (corrected if conditional_noise else denoised)) / b
        x = a_next * corrected
        if b_next > 0.0:
            x = x + b_next * (kept * old + freshness * fresh()) if freshness > 0.0 else x + b_next * old
        if on_step is not None:
            on_step(Report(index, total, sigma, x, corrected))
    return x
