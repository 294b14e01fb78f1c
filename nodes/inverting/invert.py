"""Invert: a picture or clip into a model's noise."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..host.compat import declare, schema
from .inputs import (
    climb,
    inversion_output,
    invert_inputs,
    latent_output,
    noise_output,
    refusal,
    sigmas_output,
    single_state_outputs,
)
from .method_inputs import chosen_method, method_names, parameter_inputs


class Invert(io.ComfyNode):
    """Carries a latent up the model's noise levels, so that sampling from there comes back to it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="Invert",
            display_name="Invert (Retrace)",
            category="Retrace/inversion",
            description="Takes a picture or clip into the model's noise, to be reconstructed and edited from there.",
            search_aliases=["inversion", "unsampler", "DDIM inversion", "RF inversion", "noise a real image"],
            inputs=invert_inputs(
                [
                    declare(
                        io.Combo.Input,
                        "method",
                        options=method_names(),
                        default="midpoint",
                        tooltip="How to climb. midpoint (RF-Solver) is accurate at two model calls a step, fireflow at "
                        "one; euler and ddim are the plain first-order ways; edict, bdia and belm come back exactly.",
                    ),
                ],
                parameter_inputs(),
            ),
            outputs=[inversion_output(), latent_output(), noise_output(), sigmas_output()],
        )

    @classmethod
    def validate_inputs(cls, steps: int | None = None, strength: float | None = None) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(steps, strength)

    @classmethod
    def execute(
        cls,
        model: Any,
        source: Any,
        latent: dict[str, Any],
        steps: int,
        scheduler: str,
        method: str,
        cfg: float,
        strength: float,
        negative: Any = None,
        sigmas: torch.Tensor | None = None,
        keep_path: bool = False,
        **settings: Any,
    ) -> io.NodeOutput:
        """Invert; ``settings`` are the inputs made from the methods' own parameters."""
        chosen = chosen_method(method, settings)
        bundle = climb(model, source, latent, steps, scheduler, chosen, cfg, strength, negative, sigmas, keep_path)
        return io.NodeOutput(*single_state_outputs(model, bundle))
