"""Stable Flow: keys and values of the source in the layers that a picture hangs on."""

from __future__ import annotations

from ..plan import AttentionPlan
from ..preset import Preset, Where
from ..rules import Take, Term
from .masactrl import MasaCtrl


class StableFlow(Preset):
    """SDPA(q_t, k_s, v_s) at the image tokens of the vital layers, all steps.

    Official: Flux double blocks 0, 1, 17, 18 and single blocks 6, 9, 34, 35, 37; 15 steps for made pictures and 50 for
    real ones. Which layers are vital was measured on Flux; all other families take the layers of `masactrl`, our own
    choice.
    """

    name = "stable_flow"
    label = "Vital layers (Stable Flow)"
    description = "Small changes and additions on Flux that leave the rest of the picture alone."
    reference = "Avrahami et al. 2024, Stable Flow, arXiv:2411.14430"
    added = (0, 1, 0)
    layers = {**MasaCtrl.layers, "flux": "double:0,1,17,18; single:6,9,34,35,37"}

    def plan(self, where: Where) -> AttentionPlan:
        """One rule."""
        return where.plan(where.rule(Term(k=Take(), v=Take())))
