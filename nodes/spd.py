"""SPDInvert: the state from which the plain step down arrives, found by gradients."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..inversion import get_method
from .host.compat import declare, schema
from .host.inverting import (
    climb,
    inversion_output,
    invert_inputs,
    latent_output,
    noise_output,
    refusal,
    sigmas_output,
    single_state_outputs,
)
from .host.measure import describe_residuals
from .host.method_inputs import own_inputs


class SPDInvert(io.ComfyNode):
    """Descends, step by step, to the state that Euler's step down undoes, and tells how near it came."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="SPDInvert",
            display_name="SPD Invert (Retrace)",
            category="Retrace/inversion",
            description="Inverts plain Euler sampling by gradient descent through the model (SPDInv) and reports the "
            "loss of each step. Slow; use it with cfg 1.",
            search_aliases=["SPDInv", "source prompt disentangled inversion", "gradient fixed point"],
            inputs=invert_inputs([], own_inputs("spd")),
            outputs=[
                inversion_output(),
                latent_output(),
                noise_output(),
                sigmas_output(),
                declare(
                    io.Float.Output,
                    display_name="loss",
                    tooltip="Largest mean squared residual that a step was left with; 0 is a fixed point.",
                ),
                declare(io.String.Output, display_name="report", tooltip="The loss of each step, before and after."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        steps: int | None = None,
        strength: float | None = None,
        iterations: int | None = None,
        learning_rate: float | None = None,
        stop: float | None = None,
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(steps, strength, "spd", iterations=iterations, learning_rate=learning_rate, stop=stop)

    @classmethod
    def execute(
        cls,
        model: Any,
        source: Any,
        latent: dict[str, Any],
        steps: int,
        scheduler: str,
        cfg: float,
        strength: float,
        negative: Any = None,
        sigmas: torch.Tensor | None = None,
        keep_path: bool = False,
        **settings: Any,
    ) -> io.NodeOutput:
        """Invert; ``settings`` are the method's own."""
        chosen = get_method("spd", settings)
        bundle = climb(model, source, latent, steps, scheduler, chosen, cfg, strength, negative, sigmas, keep_path)
        return io.NodeOutput(
            *single_state_outputs(model, bundle),
            float(bundle.record.meta["loss"]),
            "\n".join(describe_residuals(bundle.record)),
        )
