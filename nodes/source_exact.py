"""Methods whose record holds what each step of the source misses, as nodes: DirectInversion and NoiseMapInvert.

The residuals fit neither a LATENT nor a NOISE: they travel in the INVERSION.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..inversion import get_method
from .host.compat import schema
from .host.grid import falling_tensor
from .host.inverting import climb, inversion_output, invert_inputs, refusal, sigmas_output
from .host.method_inputs import own_inputs


class DirectInversion(io.ComfyNode):
    """Climbs by DDIM inversion and records how to stay on that path under guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="DirectInversion",
            display_name="Direct Inversion (Retrace)",
            category="Retrace/inversion",
            description="Comes back exactly at any cfg: on the way down the source is put back onto its own path after "
            "each step (Direct or PnP inversion), and an edit gets the same correction. Play it back with Resample.",
            search_aliases=["Direct Inversion", "PnP inversion", "PnPInversion", "exact inversion"],
            inputs=invert_inputs(
                [],
                own_inputs("direct"),
                "Guidance that the edit will have in Resample; the correction is recorded for it. The climb itself is "
                "never guided. Needs a negative unless it is 1.",
                path=False,
            ),
            outputs=[inversion_output(), sigmas_output()],
        )

    @classmethod
    def validate_inputs(
        cls, steps: int | None = None, strength: float | None = None, carry: float | None = None
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(steps, strength, "direct", carry=carry)

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
        **settings: Any,
    ) -> io.NodeOutput:
        """Invert; ``settings`` are the method's own."""
        chosen = get_method("direct", settings)
        bundle = climb(model, source, latent, steps, scheduler, chosen, cfg, strength, negative, sigmas, False)
        return io.NodeOutput(bundle, falling_tensor(bundle.record))


class NoiseMapInvert(io.ComfyNode):
    """Noises the picture to each level anew and records what each sampling step misses of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="NoiseMapInvert",
            display_name="Noise Map Invert (Retrace)",
            category="Retrace/inversion",
            description="Edit-friendly DDPM inversion, with the stepper of LEDITS++ as an option. Comes back exactly "
            "at any cfg and needs no accurate solver; edits keep the layout. Play it back with Resample.",
            search_aliases=["edit-friendly DDPM", "DDPM inversion", "LEDITS++", "noise maps", "exact inversion"],
            inputs=invert_inputs(
                [],
                own_inputs("noise_map"),
                "Guidance of the source while its noise maps are recorded; the paper takes 3.5. Needs a negative "
                "unless it is 1.",
            ),
            outputs=[inversion_output(), sigmas_output()],
        )

    @classmethod
    def validate_inputs(
        cls,
        steps: int | None = None,
        strength: float | None = None,
        seed: int | None = None,
        stepper: str | None = None,
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(steps, strength, "noise_map", seed=seed, stepper=stepper)

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
        chosen = get_method("noise_map", settings)
        bundle = climb(model, source, latent, steps, scheduler, chosen, cfg, strength, negative, sigmas, keep_path)
        return io.NodeOutput(bundle, falling_tensor(bundle.record))
