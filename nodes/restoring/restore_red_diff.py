"""RestoreREDDiff: one best estimate as a SAMPLER."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...restoration.solvers.red_diff import SCHEDULES, WEIGHTS
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
from .restorer import Photo, REDDiffSampler, REDDiffSettings


class RestoreREDDiff(io.ComfyNode):
    """Fits one clean picture to the damaged one, with the model as a regulariser."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="RestoreREDDiff",
            display_name="Restore Sampler, RED-diff (Retrace)",
            category=CATEGORY,
            description="Restores a damaged picture by fitting one clean picture to it. It gives one calm best "
            "estimate where the DDS sampler gives one likely picture of many. Mardani et al. 2024, arXiv:2305.04391.",
            search_aliases=["variational", "MAP", "inverse problem", "regularisation by denoising"],
            inputs=[
                operator_input(),
                damaged_input(),
                noise_input(),
                declare(
                    io.Float.Input,
                    "prior",
                    default=0.25,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How much the model counts against the photo.",
                ),
                declare(
                    io.Float.Input,
                    "step",
                    default=0.1,
                    min=0.001,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Length of a step of the fit. Higher is faster and leaves jitter.",
                    advanced=True,
                ),
                declare(
                    io.Combo.Input,
                    "weight",
                    options=list(WEIGHTS),
                    default="linear",
                    tooltip="How much the model counts at which noise level; square suits masks and low resolution.",
                    advanced=True,
                ),
                declare(
                    io.Combo.Input,
                    "schedule",
                    options=list(SCHEDULES),
                    default="constant",
                    tooltip="cosine lets the steps fall to zero, which suits masks and low resolution; blur and lost "
                    "colour want constant.",
                    advanced=True,
                ),
                declare(
                    io.Float.Input,
                    "sigma_max",
                    default=10.0,
                    min=0.1,
                    max=1000.0,
                    step=0.1,
                    tooltip="Levels above this (sigma, or sigma / (1 - sigma) of a flow model) are left out: up there "
                    "the model sees nothing of the picture.",
                    advanced=True,
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
        prior: float,
        step: float,
        weight: str,
        schedule: str,
        sigma_max: float,
        vae: Any = None,
    ) -> io.NodeOutput:
        """Make the sampler."""
        settings = REDDiffSettings(prior, step, weight, schedule, sigma_max)
        return io.NodeOutput(REDDiffSampler(Photo(operator, damaged, noise, vae), settings))
