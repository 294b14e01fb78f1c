"""Reference: the target also reads keys and values of another picture."""

from __future__ import annotations

from ..plan import AttentionPlan
from ..preset import Preset, Where
from ..rules import OWN, SOURCE, Join, Take, Term


class Reference(Preset):
    """SDPA(q_t, [k_t; k_r], [v_t; v_r]) as in style-aligned generation, or SDPA(q_t, k_r, v_r) with "replace".

    "replace" is the rule of VisCtrl (Li et al. 2024, arXiv:2406.06258): SD1.5 self sites 1 to 15. "join" acts in all
    layers, as StyleAligned does; for other families than SD1.5 the layers of "replace" are our own.
    """

    name = "reference"
    label = "Reference k, v"
    description = "Carries style or subject of a reference picture into the target."
    reference = "Hertz et al. 2023, StyleAligned, arXiv:2312.02133"
    added = (0, 1, 0)
    variants = ("join", "replace")
    layers = {"sd15 replace": "self#1-15", "*": "all"}
    mask_note = "The target reads the reference where the mask is white."

    def plan(self, where: Where) -> AttentionPlan:
        """One rule."""
        both = Join((OWN, SOURCE))
        return where.plan(where.rule(Term(k=both, v=both) if where.variant == "join" else Term(k=Take(), v=Take())))
