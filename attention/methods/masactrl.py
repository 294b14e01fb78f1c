"""MasaCtrl: the target keeps its queries and reads keys and values of the source."""

from __future__ import annotations

from ..masks import complement
from ..plan import AttentionPlan
from ..preset import Preset, Where
from ..rules import OWN, SOURCE, Gather, Join, Take, Term


class MasaCtrl(Preset):
    """Mutual self-attention: SDPA(q_t, k_s, v_s).

    "union" reads [k_s; k_t]. "masked" reads the source's foreground where the target has foreground and its background
    elsewhere, two calls on gathered keys: m SDPA(q_t, k_s[fg], v_s[fg]) + (1 - m) SDPA(q_t, k_s[bg], v_s[bg]).

    Official: SD1.5 self sites 10 to 15 of 16 from step 4 of 50; SDXL sites 44 to 69 of 70. Flux takes the layers that
    FreeFlux (Wei et al. 2025, arXiv:2503.16153) gives for non-rigid edits. The layers of all others are our own.
    """

    name = "masactrl"
    label = "Mutual k, v (MasaCtrl)"
    description = "Keeps the look of the source while the prompt changes its pose or layout."
    reference = "Cao et al. 2023, MasaCtrl, arXiv:2304.08465"
    added = (0, 1, 0)
    variants = ("mutual", "union", "masked")
    layers = {
        "sd15": "self#10-15",
        "sdxl": "self#44-69",
        "flux": "double:0,7-10,18; single:6,9,18,23,26,31,37",
        "*": "0.33-1.0",
    }
    windows = {"*": (0.08, 1.0)}
    needs_mask = ("masked",)
    tells_source = ("masked",)
    mask_note = 'The target reads the source where the mask is white; for "masked", white is the foreground.'

    def plan(self, where: Where) -> AttentionPlan:
        """One rule."""
        settings = where.settings
        if where.variant == "masked":
            assert settings.mask is not None
            source_mask = settings.mask if settings.source_mask is None else settings.source_mask
            front, back = Gather(SOURCE, source_mask), Gather(SOURCE, complement(source_mask))
            inside = Term(k=front, v=front, where=settings.mask)
            outside = Term(k=back, v=back, where=complement(settings.mask))
            return where.plan(where.rule(inside, outside, mask=None))
        both = Join((OWN, SOURCE)) if where.variant == "union" else Take()
        return where.plan(where.rule(Term(k=both, v=both)))
