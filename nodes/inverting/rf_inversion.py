"""RFInversion: into the noise and back under controllers, for restyling."""

from __future__ import annotations

from typing import Any

from .inputs import (
    inversion_output,
    latent_output,
    noise_output,
    refusal,
    sigmas_output,
    single_state_outputs,
)
from .link import LinkedInversion
from .method_node import MethodNode


class RFInversion(MethodNode):
    """Climbs towards a drawn noise; Resample then comes down pulled towards the picture."""

    NODE_ID, TITLE, METHOD = "RFInversion", "RF-Inversion", "rf_inversion"
    ABOUT = (
        "Inverts with a pull towards drawn noise (gamma), and lets Resample come down with a pull towards the picture "
        "(eta, start, stop). For restyling with flow and eps models. Rout et al. 2024, arXiv:2410.10792."
    )
    ALIASES = ("RF-Inversion", "rectified flow inversion", "semantic image inversion", "controller")
    GUIDANCE = "Guidance while climbing, 1 in the paper, which also leaves the source prompt empty."

    @classmethod
    def outputs(cls) -> list[Any]:
        """The state for stock samplers too."""
        return [inversion_output(), latent_output(), noise_output(), sigmas_output()]

    @classmethod
    def results(cls, model: Any, inversion: LinkedInversion) -> tuple[Any, ...]:
        """The values of `outputs`."""
        return single_state_outputs(model, inversion)

    @classmethod
    def validate_inputs(
        cls,
        steps: int | None = None,
        strength: float | None = None,
        gamma: float | None = None,
        eta: float | None = None,
        start: float | None = None,
        stop: float | None = None,
        seed: int | None = None,
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        # None: the value comes over a link, and then the window is checked when the node runs.
        if start is None or stop is None:
            start = stop = None
        return refusal(steps, strength, cls.METHOD, gamma=gamma, eta=eta, start=start, stop=stop, seed=seed)
