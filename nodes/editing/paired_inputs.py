"""Inputs that the nodes of edits without an inversion share."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..host.compat import declare
from ..host.inputs import mask_inputs

SEEDS = 2**64 - 1


def subject_inputs() -> list[Any]:
    """Model, prompts and latent."""
    return [
        declare(io.Model.Input, "model", tooltip="Model to edit with. It is not changed."),
        declare(
            io.Conditioning.Input,
            "source",
            tooltip="Prompt that describes the picture as it is. What it shares with the target stays as it is.",
        ),
        declare(io.Conditioning.Input, "target", tooltip="Prompt that describes the picture as it should become."),
        declare(
            io.Latent.Input,
            "latent",
            tooltip="The picture or clip, encoded by the model's VAE. A noise mask is not used here; connect mask.",
        ),
    ]


def schedule_inputs(steps: int, scheduler: str, hint: str) -> list[Any]:
    """Steps and scheduler.

    Args:
        steps: Default number of steps.
        scheduler: Default scheduler.
        hint: A last sentence on steps.
    """
    return [
        declare(
            io.Int.Input,
            "steps",
            default=steps,
            min=1,
            max=1000,
            step=1,
            tooltip=f"Steps of the whole schedule, at least 2. {hint}",
        ),
        declare(
            io.Combo.Input,
            "scheduler",
            options=list(comfy.samplers.SCHEDULER_NAMES),
            default=scheduler,
            tooltip="How the noise levels are spaced.",
        ),
    ]


def guidance_inputs(source_cfg: float, target_cfg: float) -> list[Any]:
    """Guidance of both branches, with these defaults."""
    bounds = {"min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
    return [
        declare(
            io.Float.Input,
            "source_cfg",
            default=source_cfg,
            **bounds,
            tooltip="Guidance of the source prompt. Needs a negative unless it is 1.",
        ),
        declare(
            io.Float.Input,
            "target_cfg",
            default=target_cfg,
            **bounds,
            tooltip="Guidance of the target prompt: above source_cfg the edit is pushed further, and even equal "
            "prompts change the picture. Needs a negative unless it is 1.",
        ),
    ]


def seed_input() -> Any:
    """Seed of the noise."""
    return declare(
        io.Int.Input,
        "seed",
        default=0,
        min=0,
        max=SEEDS,
        control_after_generate=True,
        tooltip="Seed of the noise that source and target share. Each picture of a batch has noise of its own.",
    )


def optional_inputs() -> list[Any]:
    """Negative, SIGMAS and mask."""
    return [
        declare(
            io.Conditioning.Input,
            "negative",
            optional=True,
            tooltip="Negative prompt of both branches. Needed when source_cfg or target_cfg is not 1.",
        ),
        declare(
            io.Sigmas.Input,
            "sigmas",
            optional=True,
            tooltip="Noise levels to use instead of steps and scheduler, rising or falling, all the way to 0.",
        ),
        *mask_inputs(),
    ]


def latent_output() -> Any:
    """The edited LATENT."""
    return declare(io.Latent.Output, display_name="latent", tooltip="The edited latent, in the dtype of the source.")
