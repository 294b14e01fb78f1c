"""SPDInvert: the state from which the plain step down arrives, found by gradients."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.compat import declare
from .inputs import (
    inversion_output,
    latent_output,
    noise_output,
    refusal,
    sigmas_output,
    single_state_outputs,
)
from .link import LinkedInversion
from .measure import describe_residuals
from .method_node import MethodNode


class SPDInvert(MethodNode):
    """Descends, step by step, to the state that Euler's step down undoes, and tells how near it came."""

    NODE_ID, TITLE, METHOD = "SPDInvert", "SPD Invert", "spd"
    ABOUT = (
        "Inverts plain Euler sampling by gradient descent through the model (SPDInv) and reports the loss of each "
        "step. Slow; use it with cfg 1."
    )
    ALIASES = ("SPDInv", "source prompt disentangled inversion", "gradient fixed point")

    @classmethod
    def outputs(cls) -> list[Any]:
        """The state for stock samplers too, and how near it came."""
        return [
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
        ]

    @classmethod
    def results(cls, model: Any, inversion: LinkedInversion) -> tuple[Any, ...]:
        """The values of `outputs`."""
        report = "\n".join(describe_residuals(inversion))
        return *single_state_outputs(model, inversion), float(inversion.meta["loss"]), report

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
        return refusal(steps, strength, cls.METHOD, iterations=iterations, learning_rate=learning_rate, stop=stop)
