"""FixedPointInvert: the state from which the plain step down arrives, found by iteration."""

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


class FixedPointInvert(io.ComfyNode):
    """Solves each step up so that Euler's step down undoes it, and tells how well it was solved."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="FixedPointInvert",
            display_name="Fixed-Point Invert (Retrace)",
            category="Retrace/inversion",
            description="Inverts plain Euler sampling by fixed-point iteration (ReNoise, AIDI, Uni-Inv) and reports "
            "what each step was left with. Use it with cfg 1; the way down is the cheapest there is.",
            search_aliases=["ReNoise", "AIDI", "Uni-Inv", "fixed point inversion", "Anderson acceleration"],
            inputs=invert_inputs([], own_inputs("fixed_point")),
            outputs=[
                inversion_output(),
                latent_output(),
                noise_output(),
                sigmas_output(),
                declare(
                    io.Float.Output,
                    display_name="residual",
                    tooltip="Largest relative residual that a step was left with; 0 is a fixed point.",
                ),
                declare(
                    io.String.Output,
                    display_name="report",
                    tooltip="The residual of each step, and whether the iteration converged.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        steps: int | None = None,
        strength: float | None = None,
        iterations: int | None = None,
        memory: int | None = None,
        window: int | None = None,
        warm_start: bool | None = None,
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(
            steps, strength, "fixed_point", iterations=iterations, memory=memory, window=window, warm_start=warm_start
        )

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
        chosen = get_method("fixed_point", settings)
        bundle = climb(model, source, latent, steps, scheduler, chosen, cfg, strength, negative, sigmas, keep_path)
        return io.NodeOutput(
            *single_state_outputs(model, bundle),
            float(bundle.record.meta["residual"]),
            "\n".join(describe_residuals(bundle.record)),
        )
