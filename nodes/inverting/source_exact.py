"""Methods whose inversion holds what each step of the source misses, as nodes: DirectInversion and NoiseMapInvert."""

from __future__ import annotations

from .inputs import refusal
from .method_node import MethodNode


class DirectInversion(MethodNode):
    """Climbs by DDIM inversion and records how to stay on that path under guidance."""

    NODE_ID, TITLE, METHOD = "DirectInversion", "Direct Inversion", "direct"
    ABOUT = (
        "Comes back exactly at any cfg: on the way down the source is put back onto its own path after each step "
        "(Direct or PnP inversion), and an edit gets the same correction. Play it back with Resample."
    )
    ALIASES = ("Direct Inversion", "PnP inversion", "PnPInversion", "exact inversion")
    GUIDANCE = (
        "Guidance that the edit will have in Resample; the correction is recorded for it. The climb itself is never "
        "guided. Needs a negative unless it is 1."
    )
    PATH = False

    @classmethod
    def validate_inputs(
        cls, steps: int | None = None, strength: float | None = None, carry: float | None = None
    ) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        return refusal(steps, strength, cls.METHOD, carry=carry)


class NoiseMapInvert(MethodNode):
    """Noises the picture to each level anew and records what each sampling step misses of it."""

    NODE_ID, TITLE, METHOD = "NoiseMapInvert", "Noise Map Invert", "noise_map"
    ABOUT = (
        "Edit-friendly DDPM inversion, with the stepper of LEDITS++ as an option. Comes back exactly at any cfg and "
        "needs no accurate solver; edits keep the layout. Play it back with Resample."
    )
    ALIASES = ("edit-friendly DDPM", "DDPM inversion", "LEDITS++", "noise maps", "exact inversion")
    GUIDANCE = (
        "Guidance of the source while its noise maps are recorded; the paper takes 3.5. Needs a negative unless it is "
        "1."
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
        return refusal(steps, strength, cls.METHOD, seed=seed, stepper=stepper)
