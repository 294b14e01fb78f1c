"""The exact pairs as nodes of their own: EDICTCouple, BDIAInvert, BELMInvert."""

from __future__ import annotations

from .inputs import refusal
from .method_node import MethodNode


class EDICTCouple(MethodNode):
    """Climbs with two coupled states that step in turn, each with the model's answer at the other."""

    NODE_ID, TITLE, METHOD = "EDICTCouple", "EDICT Couple", "edict"
    ABOUT = (
        "Inverts with two coupled states (EDICT) and comes back exactly, at two model calls a step. The coupling damps "
        "what a new prompt stirs up. Play it back with Resample."
    )
    ALIASES = ("EDICT", "exact inversion", "coupled transformations")

    @classmethod
    def validate_inputs(
        cls, steps: int | None = None, strength: float | None = None, p: float | None = None
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(steps, strength, cls.METHOD, p=p)


class BDIAInvert(MethodNode):
    """Climbs with the two latest states, damped by gamma."""

    NODE_ID, TITLE, METHOD = "BDIAInvert", "BDIA Invert", "bdia"
    ABOUT = (
        "Inverts with the two latest states (BDIA) and comes back exactly, at one model call a step. Play it back with "
        "Resample."
    )
    ALIASES = ("BDIA", "exact inversion", "bi-directional integration approximation")

    @classmethod
    def validate_inputs(
        cls, steps: int | None = None, strength: float | None = None, gamma: float | None = None
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(steps, strength, cls.METHOD, gamma=gamma)


class BELMInvert(MethodNode):
    """Climbs with the two latest states, weighted for the smallest local error."""

    NODE_ID, TITLE, METHOD = "BELMInvert", "O-BELM Invert", "belm"
    ABOUT = (
        "Inverts with the two latest states (O-BELM) and comes back exactly, at one model call a step. Best to "
        "reconstruct. Play it back with Resample."
    )
    ALIASES = ("BELM", "O-BELM", "exact inversion", "bidirectional explicit linear multi-step")

    @classmethod
    def validate_inputs(
        cls, steps: int | None = None, strength: float | None = None, reseed: bool | None = None
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(steps, strength, cls.METHOD, reseed=reseed)
