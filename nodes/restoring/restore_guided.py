"""RestoreGuided: gradient guidance as a SAMPLER, for experts."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...restoration.solvers.guided import LARGEST
from ..host.compat import declare, schema
from .damage import Damage
from .guided_restorer import GuidedSampler, GuidedSettings
from .restore_inputs import (
    CATEGORY,
    check_noise,
    damaged_input,
    noise_input,
    operator_input,
    sampler_output,
    vae_input,
)
from .restorer import Photo


class RestoreGuided(io.ComfyNode):
    """Samples with a gradient of the photo through the denoiser and the VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="RestoreGuided",
            display_name="Restore Sampler, guided (Retrace)",
            category=CATEGORY,
            description="For experts: restores by gradients through the denoiser and the VAE, which costs several "
            "times the memory and time of the DDS sampler. PSLD, Rout et al. 2023, arXiv:2307.00619; with inner steps "
            "the form of STSL, arXiv:2312.00852.",
            search_aliases=["PSLD", "STSL", "DPS", "posterior sampling", "gradient guidance"],
            inputs=[
                operator_input(),
                damaged_input(),
                noise_input(),
                declare(
                    io.Float.Input,
                    "measurement_weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How far a step follows the photo. It is meant for 50 steps and scaled to others.",
                ),
                declare(
                    io.Float.Input,
                    "gluing",
                    default=0.1,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How far a step follows the latent of the corrected picture, through the encoder; 0 saves "
                    "its memory.",
                ),
                declare(
                    io.Int.Input,
                    "inner_steps",
                    default=1,
                    min=1,
                    max=50,
                    step=1,
                    tooltip="Gradient steps at a level: 1 is PSLD, 5 is STSL, which has no gluing. Each is a model "
                    "call and its backward pass.",
                ),
                declare(
                    io.Float.Input,
                    "curvature",
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.001,
                    round=0.0001,
                    tooltip="Weight of STSL's trace term, which doubles the model calls and has shown no gain.",
                    advanced=True,
                ),
                declare(
                    io.Boolean.Input,
                    "start_from_photo",
                    default=False,
                    tooltip="Start from a noisy first guess of the picture instead of from pure noise. A flow model's "
                    "first level is pure noise in any case: leave it out with SplitSigmas.",
                ),
                vae_input(),
                declare(
                    io.Float.Input,
                    "largest_step",
                    default=LARGEST,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    tooltip="The farthest that a step moves the latent, as a share of the noise in it. Keeps few steps "
                    "and high weights from overshooting the photo; 0 for no bound, the published form.",
                    advanced=True,
                ),
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
        measurement_weight: float,
        gluing: float,
        inner_steps: int,
        curvature: float,
        start_from_photo: bool,
        vae: Any = None,
        largest_step: float = LARGEST,
    ) -> io.NodeOutput:
        """Make the sampler."""
        settings = GuidedSettings(measurement_weight, gluing, inner_steps, curvature, start_from_photo, largest_step)
        return io.NodeOutput(GuidedSampler(Photo(operator, damaged, noise, vae), settings))
