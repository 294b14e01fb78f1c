"""Inputs that are the same on nodes of different kinds."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...core.settings import Parameter
from .compat import declare


def setting_input(setting: Parameter, name: str = "", tooltip: str = "", **shown: Any) -> Any:
    """A setting as an optional input, under its own name and tooltip unless others are given."""
    values = {"default": setting.default, "tooltip": tooltip or setting.tooltip, "optional": True, **setting.shown}
    kind: Any = io.String
    if setting.options:
        kind, values["options"] = io.Combo, list(setting.options)
    elif setting.kind is bool:
        kind = io.Boolean
    elif setting.kind in (int, float):
        kind = io.Int if setting.kind is int else io.Float
        values |= {"min": setting.minimum, "max": setting.maximum, "step": setting.step}
    return declare(kind.Input, name or setting.name, **{**values, **shown})


def mask_inputs() -> list[Any]:
    """Where an edit may act, and how soft its edge is."""
    return [
        declare(
            io.Mask.Input,
            "mask",
            optional=True,
            tooltip="White where the edit may act. Everything outside ends bit-equal to the source latent.",
        ),
        feather_input(),
    ]


def feather_input() -> Any:
    """Soft edge of a mask."""
    return declare(
        io.Int.Input,
        "feather",
        default=0,
        min=0,
        max=256,
        step=1,
        optional=True,
        tooltip="Width of a soft edge in pixels of the mask. It lies inside the mask, which does not grow.",
    )


def text_input(name: str, tooltip: str) -> Any:
    """A prompt as text."""
    return declare(io.String.Input, name, multiline=True, dynamic_prompts=True, default="", tooltip=tooltip)


def prompt_inputs() -> list[Any]:
    """Model, text encoder, and both prompts as text, of a node that plans by words."""
    return [
        declare(
            io.Model.Input,
            "model",
            tooltip="Model of the edit, whose layers the plan is for. It is not changed.",
        ),
        declare(io.Clip.Input, "clip", tooltip="The model's text encoder: words are found by its tokens."),
        text_input("source_text", "Prompt that describes the picture as it is."),
        text_input("target_text", "The same prompt as it should become: with words swapped, added or left out."),
    ]
