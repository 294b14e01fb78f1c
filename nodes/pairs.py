"""The exact pairs as nodes of their own: EDICTCouple, BDIAInvert, BELMInvert.

A pair fits neither a LATENT nor a NOISE, which hold one state: it travels in the INVERSION.
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


class EDICTCouple(io.ComfyNode):
    """Climbs with two coupled states that step in turn, each with the model's answer at the other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="EDICTCouple",
            display_name="EDICT Couple (Retrace)",
            category="Retrace/inversion",
            description="Inverts with two coupled states (EDICT) and comes back exactly, at two model calls a step. "
            "The coupling damps what a new prompt stirs up. Play it back with Resample.",
            search_aliases=["EDICT", "exact inversion", "coupled transformations"],
            inputs=invert_inputs([], own_inputs("edict")),
            outputs=[inversion_output(), sigmas_output()],
        )

    @classmethod
    def validate_inputs(
        cls, steps: int | None = None, strength: float | None = None, p: float | None = None
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(steps, strength, "edict", p=p)

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
        chosen = get_method("edict", settings)
        bundle = climb(model, source, latent, steps, scheduler, chosen, cfg, strength, negative, sigmas, keep_path)
        return io.NodeOutput(bundle, falling_tensor(bundle.record))


class BDIAInvert(io.ComfyNode):
    """Climbs with the two latest states, damped by gamma."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="BDIAInvert",
            display_name="BDIA Invert (Retrace)",
            category="Retrace/inversion",
            description="Inverts with the two latest states (BDIA) and comes back exactly, at one model call a step. "
            "Play it back with Resample.",
            search_aliases=["BDIA", "exact inversion", "bi-directional integration approximation"],
            inputs=invert_inputs([], own_inputs("bdia")),
            outputs=[inversion_output(), sigmas_output()],
        )

    @classmethod
    def validate_inputs(
        cls, steps: int | None = None, strength: float | None = None, gamma: float | None = None
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(steps, strength, "bdia", gamma=gamma)

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
        chosen = get_method("bdia", settings)
        bundle = climb(model, source, latent, steps, scheduler, chosen, cfg, strength, negative, sigmas, keep_path)
        return io.NodeOutput(bundle, falling_tensor(bundle.record))


class BELMInvert(io.ComfyNode):
    """Climbs with the two latest states, weighted for the smallest local error."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="BELMInvert",
            display_name="O-BELM Invert (Retrace)",
            category="Retrace/inversion",
            description="Inverts with the two latest states (O-BELM) and comes back exactly, at one model call a step. "
            "Best to reconstruct. Play it back with Resample.",
            search_aliases=["BELM", "O-BELM", "exact inversion", "bidirectional explicit linear multi-step"],
            inputs=invert_inputs([], own_inputs("belm")),
            outputs=[inversion_output(), sigmas_output()],
        )

    @classmethod
    def validate_inputs(
        cls, steps: int | None = None, strength: float | None = None, reseed: bool | None = None
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(steps, strength, "belm", reseed=reseed)

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
        chosen = get_method("belm", settings)
        bundle = climb(model, source, latent, steps, scheduler, chosen, cfg, strength, negative, sigmas, keep_path)
        return io.NodeOutput(bundle, falling_tensor(bundle.record))
