"""FreeFlux: keys and values of the source in layers chosen by the task."""

from __future__ import annotations

from ..masks import complement
from ..plan import AttentionPlan
from ..preset import Preset, Where
from ..rules import Take, Term
from .masactrl import MasaCtrl


class FreeFlux(Preset):
    """SDPA(q_t, k_s, v_s) at image tokens, in layers that depend on position or on content.

    "add" (an object appears; with a mask, its tokens stay free) takes Flux layers 1, 2, 4, 26, 30, 54, 55 of 57,
    "non_rigid" (a pose changes) 0, 7 to 10, 18, 25, 28, 37, 42, 45, 50, 56, "background" (what is white stays, its
    surroundings change) the values alone in all layers, in the first 44 of 50 steps. These are official; all other
    families take the layers of `masactrl`, our own choice.
    """

    name = "free_flux"
    label = "Task layers (FreeFlux)"
    description = "Adds an object, changes a pose or replaces the background on Flux, each with its own layers."
    reference = "Wei et al. 2025, FreeFlux, arXiv:2503.16153"
    added = (0, 1, 0)
    variants = ("add", "non_rigid", "background")
    layers = {
        **MasaCtrl.layers,
        "flux add": "double:1,2,4; single:7,11,35,36",
        "flux non_rigid": "double:0,7-10,18; single:6,9,18,23,26,31,37",
        "flux background": "all",
    }
    windows = {"background": (0.0, 0.88), "*": (0.0, 1.0)}
    needs_mask = ("background",)
    mask_note = 'For "add", white is where the object may appear; else the target reads the source where it is white.'

    def plan(self, where: Where) -> AttentionPlan:
        """One rule."""
        mask = where.settings.mask
        term = Term(v=Take()) if where.variant == "background" else Term(k=Take(), v=Take())
        if where.variant == "add" and mask is not None:
            mask = complement(mask)
        return where.plan(where.rule(term, mask=mask))
