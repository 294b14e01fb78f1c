"""FlowEdit: edit a picture without inverting it, along the path from source to target."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...attention import AttentionPlan
from ...inversion import FlowEdit as FlowEditRule
from ..attending.plan_link import attention_input
from ..host.inputs import schedule_inputs, seed_input, setting_inputs
from ..host.masks import EditArea
from ..host.node import Node
from ..host.schedule import read_sigmas, rising_sigmas
from ..host.session import Branch
from .inversion_free_inputs import (
    SHARED_SEED,
    guidance_inputs,
    latent_output,
    optional_inputs,
    subject_inputs,
)
from .inversion_free_run import Start, run_inversion_free


def check_range(n_max: int, n_min: int, steps: int) -> None:
    """Refuse an n_max or n_min that does not fit the schedule.

    Raises:
        ValueError: If n_max exceeds the steps or n_min leaves nothing below it.
    """
    if not 1 <= n_max <= steps:
        raise ValueError(
            f"n_max must lie between 1 and the number of steps {steps}, got {n_max}; lower it or raise steps."
        )
    FlowEditRule(n_min=n_min).check(n_max)


class FlowEdit(Node):
    """Edits along the difference of two derivatives."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "FlowEdit",
            "Edits a picture or clip without inverting it: the latent follows the difference of the "
            "model's directions under target and source prompt. For flow models, and for eps and v models too. "
            "Kulikov et al. 2024, arXiv:2412.08629; pull of FlowAlign, arXiv:2505.23145.",
            aliases=["FlowAlign", "inversion-free edit", "rectified flow edit"],
            inputs=[
                *subject_inputs(),
                *schedule_inputs(28, "simple", "28 to 50 are usual."),
                *guidance_inputs(1.5, 5.5),
                io.Int.Input(
                    "n_max",
                    default=24,
                    min=1,
                    max=1000,
                    step=1,
                    tooltip="Steps that are walked, from the last one backwards: n_max = steps starts at pure noise, "
                    "fewer keep more of the source. Not above steps. The paper: 24 of 28 for Flux, 33 of 50 for SD3.",
                ),
                *setting_inputs(FlowEditRule, "n_avg", "n_min"),
                seed_input(SHARED_SEED),
                *optional_inputs(),
                *setting_inputs(FlowEditRule, "pull", optional=True),
                attention_input("A plan by which the target reads from the source at every level."),
            ],
            outputs=[latent_output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        source: Any,
        target: Any,
        latent: dict[str, Any],
        steps: int,
        scheduler: str,
        source_cfg: float,
        target_cfg: float,
        n_max: int,
        n_avg: int,
        n_min: int,
        seed: int,
        negative: Any = None,
        sigmas: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        feather: int = 0,
        pull: float = 0.0,
        attention: AttentionPlan | None = None,
    ) -> io.NodeOutput:
        """Edit the latent."""
        rising = rising_sigmas(model, scheduler, steps) if sigmas is None else read_sigmas(sigmas)
        check_range(n_max, n_min, len(rising) - 1)
        rule = FlowEditRule(n_avg=n_avg, n_min=n_min, pull=pull)
        return io.NodeOutput(
            run_inversion_free(
                model,
                Branch(source, negative, source_cfg),
                Branch(target, negative, target_cfg),
                latent,
                rule,
                Start(rising, n_max, seed),
                EditArea.of(mask, feather),
                attention,
            )
        )
