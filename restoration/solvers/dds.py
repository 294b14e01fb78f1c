"""DDS: sample from the model, and draw every clean prediction to the measurement on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...core.denoiser import Denoiser
from ...core.grid import check_falling
from ...core.settings import Settings, parameter
from ...core.space import clean_variance, weights
from ...core.walk import OnStep, StepReport
from ..measurement import Measurement

ENCODER_ADJOINT = "encoder adjoint"
DECODE_CORRECT_ENCODE = "decode, correct, encode"
DECODER_GRADIENT = "decoder gradient"
LATENT_METHODS = (ENCODER_ADJOINT, DECODE_CORRECT_ENCODE, DECODER_GRADIENT)


@dataclass(frozen=True)
class DDSSettings(Settings):
    """Settings of DDS and of its ways to the latent."""

    trust: float = parameter(
        1.0,
        "How much the photo counts against the model: 1 is balanced by the noise, higher follows the photo more, 0 "
        "ignores it.",
        0.0,
        100.0,
        0.1,
        round=0.001,
    )
    # The official value for 49 steps.
    freshness: float = parameter(
        0.85,
        "Share of the noise that is drawn anew at every step. Low values drift off on blur.",
        0.0,
        1.0,
        0.01,
        advanced=True,
    )
    latent_method: str = parameter(
        ENCODER_ADJOINT,
        "How the photo reaches the latent. encoder adjoint: 2 decodes and 3 encodes a step, the best of the three on "
        "most damages. decode, correct, encode: 3 and 6. decoder gradient: up to 6 decodes and 6 backward passes of "
        "the decoder, and its memory.",
        options=LATENT_METHODS,
        advanced=True,
    )
    inner_steps: int = parameter(
        1,
        "encoder adjoint: steps of its solve, each one decode and one encode more.",
        1,
        8,
        1,
        advanced=True,
    )
    temporal_smoothing: float = parameter(
        0.0,
        "For clips: holds still what does not move and fills dropped frames. 1 to 5 are usual; leave 0 where things "
        "move. All frames of the batch, or of the video latent, are then one clip.",
        0.0,
        10.0,
        0.1,
    )
    share_noise: bool = parameter(
        False,
        "For clips: give all frames the same noise, so that none of their flicker comes from it. Off, each picture of "
        "a batch has noise of its own.",
    )


DEFAULTS = DDSSettings()


class Consistency(Protocol):
    """Draws a clean prediction to the measurement."""

    def __call__(self, denoised: Tensor, variance: float) -> Tensor:
        """The corrected prediction.

        Args:
            denoised: The model's prediction D.
            variance: How well it is known: r^2 of core.space.clean_variance.
        """


class PixelConsistency:
    """argmin_x 1/2 |x - D|^2 + g/2 |A x - y|^2 for states that are pictures in [-1, 1]."""

    def __init__(self, measurement: Measurement, trust: float = 1.0) -> None:
        """Choose the weight.

        Args:
            measurement: What was measured.
            trust: Multiplies the weight g = r^2 / sigma^2; 1 is Bayes' rule for white data.
        """
        self._measurement = measurement
        self._trust = trust

    def __call__(self, denoised: Tensor, variance: float) -> Tensor:
        """See Consistency."""
        measurement = self._measurement.to(denoised)
        return measurement.correct(denoised, self._trust * measurement.weight(variance))


def dds(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    consistency: Consistency,
    fresh: Callable[[], Tensor],
    settings: DDSSettings = DEFAULTS,
    variance: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Decomposed diffusion sampling (Chung, Lee, Ye 2024, arXiv:2303.05754), one model call a step and no gradients.

        D   = denoiser(x, sigma)              n^ = (x - a D) / b
        xh  = consistency(D)
        x'  = a' xh + b' ( sqrt(1 - f^2) n^ + f n )

    The published weight of the measurement is a constant; the one that the consistency gets here is that of Bayes'
    rule for white data of the given variance, r^2 / sigma_y^2. What comes out is one likely picture; the spread of
    several is smaller than that of the posterior.

    Args:
        denoiser: The model.
        x: State at sigmas[0], shape (B, ...); pure noise is b times unit noise.
        sigmas: Falling; the result stands at the last one, which is 0 for a clean picture.
        consistency: Draws D to the measurement.
        fresh: Draws unit noise of the shape of x.
        settings: Of these the freshness f, the share of the noise's amplitude that is new at every step, is read
            here; 0 is deterministic.
        variance: Variance v of the data in the units of x: 1 for latents, 0.25 for pixels in [-1, 1].
        on_step: Told after every step.

    Returns:
        The state at sigmas[-1].

    Raises:
        ValueError: If the sigmas do not fall.
    """
    space = denoiser.space
    check_falling(sigmas, space)
    old_share, new_share = math.sqrt(1.0 - settings.freshness**2), settings.freshness
    total = len(sigmas) - 1
    for index in range(total):
        sigma, after = sigmas[index], sigmas[index + 1]
        (a, b), (a_next, b_next) = weights(sigma, space), weights(after, space)
        denoised = denoiser(x, sigma)
        corrected = consistency(denoised, clean_variance(sigma, space, variance))
        old = (x - a * denoised) / b
        x = a_next * corrected
        if b_next > 0.0:
            x = x + b_next * (old_share * old + new_share * fresh()) if new_share > 0.0 else x + b_next * old
        if on_step is not None:
            on_step(StepReport(index, total, sigma, after, x, corrected))
    return x
