"""RestoreDDS: the main restorer as a SAMPLER."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..host.compat import declare, schema
from .damage import Damage
from .restore_inputs import (
    CATEGORY,
    check_noise,
    damaged_input,
    noise_input,
    operator_input,
    sampler_output,
    vae_input,
)
from .restorer import ENCODER_ADJOINT, LATENT_METHODS, DDSSampler, DDSSettings, Photo


class RestoreDDS(io.ComfyNode):
    """Samples a picture that the model finds likely and that explains the damaged one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="RestoreDDS",
            display_name="Restore Sampler, DDS (Retrace)",
            category=CATEGORY,
            description="Restores a damaged picture or clip with any model as the prior: every step of the sampler is "
            "drawn to what the photo shows, through the damage. No gradients, one model call a step. Chung, Lee, Ye "
            "2024, arXiv:2303.05754.",
            search_aliases=["inpaint", "super resolution", "deblur", "denoise", "colorize", "inverse problem", "DDS"],
            inputs=[
                operator_input(),
                damaged_input(),
                noise_input(),
                declare(
                    io.Float.Input,
                    "trust",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip="How much the photo counts against the model: 1 is balanced by the noise, higher follows "
                    "the photo more, 0 ignores it.",
                ),
                declare(
                    io.Float.Input,
                    "freshness",
                    default=0.85,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the noise that is drawn anew at every step. Low values drift off on blur.",
                    advanced=True,
                ),
                declare(
                    io.Combo.Input,
                    "latent_method",
                    options=list(LATENT_METHODS),
                    default=ENCODER_ADJOINT,
                    tooltip="How the photo reaches the latent. encoder adjoint: 2 decodes and 3 encodes a step, the "
                    "best of the three on most damages. decode, correct, encode: 3 and 6. decoder gradient: up to 6 "
                    "decodes and 6 backward passes of the decoder, and its memory.",
                    advanced=True,
                ),
                declare(
                    io.Int.Input,
                    "inner_steps",
                    default=1,
                    min=1,
                    max=8,
                    step=1,
                    tooltip="encoder adjoint: steps of its solve, each one decode and one encode more.",
                    advanced=True,
                ),
                declare(
                    io.Float.Input,
                    "temporal_smoothing",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    tooltip="For clips: holds still what does not move and fills dropped frames. 1 to 5 are usual; "
                    "leave 0 where things move. All frames of the batch, or of the video latent, are then one clip.",
                ),
                declare(
                    io.Boolean.Input,
                    "share_noise",
                    default=False,
                    tooltip="For clips: give all frames the same noise, so that none of their flicker comes from it. "
                    "Off, each picture of a batch has noise of its own.",
                ),
                vae_input(),
            ],
            outputs=[sampler_output()],
        )

    @classmethod
    def validate_inputs(cls, noise: float | None = None) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return check_noise(noise)

    @classmethod
    def execute(
        cls,
        operator: Damage,
        damaged: torch.Tensor,
        noise: float,
        trust: float,
        freshness: float,
        latent_method: str,
        inner_steps: int,
        temporal_smoothing: float,
        share_noise: bool,
        vae: Any = None,
    ) -> io.NodeOutput:
        """Make the sampler."""
        settings = DDSSettings(freshness, trust, latent_method, inner_steps, temporal_smoothing, share_noise)
        return io.NodeOutput(DDSSampler(Photo(operator, damaged, noise, vae), settings))
