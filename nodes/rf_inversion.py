"""RFInversion: into the noise and back under controllers, for restyling."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..inversion import get_method
from .host.compat import schema
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
from .host.method_inputs import own_inputs


class RFInversion(io.ComfyNode):
    """Climbs towards a drawn noise; Resample then comes down pulled towards the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="RFInversion",
            display_name="RF-Inversion (Retrace)",
            category="Retrace/inversion",
            description="Inverts with a pull towards drawn noise (gamma), and lets Resample come down with a pull "
            "towards the picture (eta, start, stop). For restyling with flow and eps models. "
            "Rout et al. 2024, arXiv:2410.10792.",
            search_aliases=["RF-Inversion", "rectified flow inversion", "semantic image inversion", "controller"],
            inputs=invert_inputs(
                [],
                own_inputs("rf_inversion"),
                "Guidance while climbing, 1 in the paper, which also leaves the source prompt empty.",
            ),
            outputs=[inversion_output(), latent_output(), noise_output(), sigmas_output()],
        )

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
        return refusal(steps, strength, "rf_inversion", gamma=gamma, eta=eta, start=start, stop=stop, seed=seed)

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
        chosen = get_method("rf_inversion", settings)
        bundle = climb(model, source, latent, steps, scheduler, chosen, cfg, strength, negative, sigmas, keep_path)
        return io.NodeOutput(*single_state_outputs(model, bundle))
