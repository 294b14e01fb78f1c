"""Inputs that are the same on nodes of different kinds."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ...core.settings import Parameter, Settings
from .compat import ADVANCED


def setting_input(setting: Parameter, name: str = "", tooltip: str = "", **shown: Any) -> Any:
    """A setting as an optional input, under its own name and tooltip unless others are given."""
    values: dict[str, Any] = {"default": setting.default, "tooltip": tooltip or setting.tooltip, "optional": True}
    values |= {**setting.shown, **shown}
    if values.pop("advanced", False):
        values["extra_dict"] = ADVANCED
    kind: Any = io.String
    if setting.options:
        kind, values["options"] = io.Combo, list(setting.options)
    elif setting.kind is bool:
        kind = io.Boolean
    elif setting.kind in (int, float):
        kind = io.Int if setting.kind is int else io.Float
        values |= {"min": setting.minimum, "max": setting.maximum, "step": setting.step}
    return kind.Input(name or setting.name, **values)


def setting_inputs(settings: type[Settings], *names: str, **shown: Any) -> list[Any]:
    """The settings of a class as required inputs, all of them or those named."""
    listed = [setting for setting in settings.parameters() if not names or setting.name in names]
    return [setting_input(setting, **{"optional": False, **shown}) for setting in listed]


def seed_input(tooltip: str) -> Any:
    """A seed, as large as the host's own."""
    return io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip=tooltip)


def mask_inputs() -> list[Any]:
    """Where an edit may act, and how soft its edge is."""
    return [
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="White where the edit may act. Everything outside ends bit-equal to the source latent.",
        ),
        feather_input(),
    ]


def feather_input() -> Any:
    """Soft edge of a mask."""
    return io.Int.Input(
        "feather",
        default=0,
        min=0,
        max=256,
        step=1,
        optional=True,
        tooltip="Width of a soft edge in pixels of the mask. It lies inside the mask, which does not grow.",
    )


def schedule_inputs(steps: int, scheduler: str, hint: str) -> list[Any]:
    """Steps and scheduler of a grid.

    Args:
        steps: Default number of steps.
        scheduler: Default scheduler.
        hint: A last sentence on steps.
    """
    return [
        io.Int.Input("steps", default=steps, min=2, max=1000, step=1, tooltip=f"Steps of the whole schedule. {hint}"),
        io.Combo.Input(
            "scheduler",
            options=list(comfy.samplers.SCHEDULER_NAMES),
            default=scheduler,
            tooltip="How the noise levels are spaced. A way up and the way down use the same levels.",
        ),
    ]


def strength_input(tooltip: str) -> Any:
    """Share of the grid that is climbed."""
    return io.Float.Input("strength", default=1.0, min=0.01, max=1.0, step=0.01, tooltip=tooltip)


def sigmas_input() -> Any:
    """SIGMAS in place of a schedule."""
    return io.Sigmas.Input(
        "sigmas",
        optional=True,
        tooltip="Noise levels to use instead of steps and scheduler, rising or falling, all the way to 0.",
    )


def text_input(name: str, tooltip: str) -> Any:
    """A prompt as text."""
    return io.String.Input(name, multiline=True, dynamic_prompts=True, default="", tooltip=tooltip)


def prompt_inputs() -> list[Any]:
    """Model, text encoder, and both prompts as text, of a node that plans by words."""
    return [
        io.Model.Input("model", tooltip="Model of the edit, whose layers the plan is for. It is not changed."),
        io.Clip.Input("clip", tooltip="The model's text encoder: words are found by its tokens."),
        text_input("source_text", "Prompt that describes the picture as it is."),
        text_input("target_text", "The same prompt as it should become: with words swapped, added or left out."),
    ]
