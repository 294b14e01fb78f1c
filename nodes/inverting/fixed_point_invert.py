"""FixedPointInvert: the state from which the plain step down arrives, found by iteration."""

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


class FixedPointInvert(MethodNode):
    """Solves each step up so that Euler's step down undoes it, and tells how well it was solved."""

    NODE_ID, TITLE, METHOD = "FixedPointInvert", "Fixed-Point Invert", "fixed_point"
    ABOUT = (
        "Inverts plain Euler sampling by fixed-point iteration (ReNoise, AIDI, Uni-Inv) and reports what each step was "
        "left with. Use it with cfg 1; the way down is the cheapest there is."
    )
    ALIASES = ("ReNoise", "AIDI", "Uni-Inv", "fixed point inversion", "Anderson acceleration")

    @classmethod
    def outputs(cls) -> list[Any]:
        """The state for stock samplers too, and how well it was solved."""
        return [
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
        ]

    @classmethod
    def results(cls, model: Any, inversion: LinkedInversion) -> tuple[Any, ...]:
        """The values of `outputs`."""
        report = "\n".join(describe_residuals(inversion))
        return *single_state_outputs(model, inversion), float(inversion.meta["residual"]), report

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
        settings = {"iterations": iterations, "memory": memory, "window": window, "warm_start": warm_start}
        return refusal(steps, strength, cls.METHOD, **settings)
