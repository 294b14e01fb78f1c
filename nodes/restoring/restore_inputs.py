"""Inputs that the nodes of restoration share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...restoration import GREY_LEVELS, NOISE_FLOOR

OperatorType = io.Custom("OPERATOR")


def operator_input() -> Any:
    """How the picture was damaged."""
    return OperatorType.Input("operator", tooltip="How the picture was damaged, from a Damage node.")


def damaged_input() -> Any:
    """The damaged picture."""
    return io.Image.Input(
        "damaged",
        tooltip="The damaged picture or clip as it is, not scaled up. One for all of the batch, or one for each.",
    )


def noise_input() -> Any:
    """Its noise."""
    return io.Float.Input(
        "noise",
        default=2.0,
        min=0.0,
        max=255.0,
        step=0.1,
        round=0.01,
        tooltip="How noisy the damaged picture is: standard deviation in grey levels of 255, at least 1.28. "
        "MeasureNoise measures it. Higher values follow the photo less.",
    )


def check_noise(noise: float) -> None:
    """Refuse less noise than the rounding to 8 bits makes.

    Raises:
        ValueError: If it is less.
    """
    lowest = GREY_LEVELS * NOISE_FLOOR
    if noise < lowest:
        raise ValueError(
            f"noise must be at least {lowest:.3g} grey levels of 255, got {noise:g}; an 8-bit picture has 2."
        )
