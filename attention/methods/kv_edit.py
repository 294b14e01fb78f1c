"""KV-Edit: outside a mask, keys and values of the source everywhere and always."""

from __future__ import annotations

from ..masks import complement, protected
from ..plan import AttentionPlan
from ..preset import Preset, Where
from ..rules import Take, Term


class KVEdit(Preset):
    """k, v <- where(mask, own, source) at image tokens: what is made inside the mask sees the true background.

    Official: all blocks of Flux, all steps (the run itself skips the first 4 of 28). A token belongs to the mask if any
    of its cells does. The background itself is only kept bit for bit by a mask on the latent as well.
    """

    name = "kv_edit"
    label = "Background k, v (KV-Edit)"
    description = "Makes something new inside a mask while everything outside stays the source's."
    reference = "Zhu et al. 2025, KV-Edit, arXiv:2502.17363"
    added = (0, 1, 0)
    layers = {"*": "all"}
    needs_mask = ("*",)
    mask_note = "White is made anew; keys and values are the source's where the mask is black."

    def plan(self, where: Where) -> AttentionPlan:
        """One rule."""
        mask = where.settings.mask
        assert mask is not None
        return where.plan(where.rule(Term(k=Take(), v=Take()), mask=complement(protected(mask))))
