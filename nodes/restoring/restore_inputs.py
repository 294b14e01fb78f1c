"""Inputs that the nodes of restoration share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...restoration.measurement import NOISE_FLOOR
from ..host.compat import declare
from .damage import OperatorType
from .restorer import LEVELS

CATEGORY = "Retrace/restoration"


def operator_input() -> Any:
    """How the picture was damaged."""
    return declare(OperatorType.Input, "operator", tooltip="How the picture was damaged, from a Damage node.")


def damaged_input() -> Any:
    """The damaged picture."""
    return declare(
        io.Image.Input,
        "damaged",
        tooltip="The damaged picture or clip as it is, not scaled up. One for all of the batch, or one for each.",
    )


def noise_input() -> Any:
    """Its noise."""
    return declare(
        io.Float.Input,
        "noise",
        default=2.0,
        min=0.0,
        max=255.0,
        step=0.1,
        round=0.01,
        tooltip="How noisy the damaged picture is: standard deviation in levels of 255, at least 1.28. MeasureNoise "
        "measures it. Higher values follow the photo less.",
    )


def vae_input() -> Any:
    """The VAE of latent models."""
    return declare(
        io.Vae.Input,
        "vae",
        optional=True,
        tooltip="The VAE of the model. Only models that sample pictures themselves do without.",
    )


def sampler_output() -> Any:
    """The SAMPLER."""
    return declare(
        io.Sampler.Output,
        display_name="sampler",
        tooltip="For SamplerCustom and SamplerCustomAdvanced with noise, SIGMAS down to 0, and an empty latent of the "
        "restored size.",
    )


def check_noise(noise: float | None) -> bool | str:
    """Answer of validate_inputs on the noise; None stands for a value that comes over a link."""
    lowest = LEVELS * NOISE_FLOOR
    if noise is not None and noise < lowest:
        return f"noise must be at least {lowest:.3g} levels of 255, got {noise:g}; a picture of 8 bits has about 2."
    return True
