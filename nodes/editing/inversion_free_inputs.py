"""Inputs that the nodes of edits without an inversion share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.inputs import mask_inputs, sigmas_input

SHARED_SEED = "Seed of the noise that source and target share. Each picture of a batch has noise of its own."


def subject_inputs() -> list[Any]:
    """Model, prompts and latent."""
    return [
        io.Model.Input("model", tooltip="Model to edit with. It is not changed."),
        io.Conditioning.Input(
            "source",
            tooltip="Prompt that describes the picture as it is. What it shares with the target stays as it is.",
        ),
        io.Conditioning.Input("target", tooltip="Prompt that describes the picture as it should become."),
        io.Latent.Input(
            "latent",
            tooltip="The picture or clip, encoded by the model's VAE. A noise mask is not used here; connect mask.",
        ),
    ]


def guidance_inputs(source_cfg: float, target_cfg: float) -> list[Any]:
    """Guidance of both branches, with these defaults."""
    bounds = {"min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
    return [
        io.Float.Input(
            "source_cfg",
            default=source_cfg,
            **bounds,
            tooltip="Guidance of the source prompt. Needs a negative unless it is 1.",
        ),
        io.Float.Input(
            "target_cfg",
            default=target_cfg,
            **bounds,
            tooltip="Guidance of the target prompt: above source_cfg the edit is pushed further, and even equal "
            "prompts change the picture. Needs a negative unless it is 1.",
        ),
    ]


def optional_inputs() -> list[Any]:
    """Negative, SIGMAS and mask."""
    return [
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="Negative prompt of both branches. Needed when source_cfg or target_cfg is not 1.",
        ),
        sigmas_input(),
        *mask_inputs(),
    ]


def latent_output() -> Any:
    """The edited LATENT."""
    return io.Latent.Output(display_name="latent", tooltip="The edited latent, in the dtype of the source.")
