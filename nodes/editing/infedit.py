"""InfEdit: edit a picture without inverting it, with few steps."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...attention import AttentionPlan
from ...inversion import InfEdit as InfEditRule
from ...inversion import strength_to_index
from ..attending.plan_link import attention_input
from ..host.inputs import schedule_inputs, seed_input, setting_inputs, strength_input
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


class InfEdit(Node):
    """Edits by the difference of two clean predictions from shared noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "InfEdit",
            "Edits a picture or clip without inverting it: source and target prompt denoise the same "
            "noise, and their difference is the edit. Works in few steps, also with LCM sampling and LCM LoRAs. "
            "Xu et al. 2023, arXiv:2312.04965.",
            aliases=["DDCM", "virtual inversion", "inversion-free edit", "LCM edit"],
            inputs=[
                *subject_inputs(),
                *schedule_inputs(12, "sgm_uniform", "4 to 15 are usual."),
                *guidance_inputs(1.0, 2.3),
                strength_input("How far up the edit starts: 1 at pure noise for free edits, 0.7 keeps the layout."),
                *setting_inputs(InfEditRule, "eta"),
                seed_input(SHARED_SEED),
                *optional_inputs(),
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
        strength: float,
        eta: float,
        seed: int,
        negative: Any = None,
        sigmas: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        feather: int = 0,
        attention: AttentionPlan | None = None,
    ) -> io.NodeOutput:
        """Edit the latent."""
        rising = rising_sigmas(model, scheduler, steps) if sigmas is None else read_sigmas(sigmas)
        index = strength_to_index(strength, len(rising) - 1)
        rule = InfEditRule(eta=eta)
        return io.NodeOutput(
            run_inversion_free(
                model,
                Branch(source, negative, source_cfg),
                Branch(target, negative, target_cfg),
                latent,
                rule,
                Start(rising, index, seed),
                EditArea.of(mask, feather),
                attention,
            )
        )
