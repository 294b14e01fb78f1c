"""Unified attention control: the three branches of InfEdit."""

from __future__ import annotations

from ..plan import AttentionPlan, Serves
from ..preset import Preset, Where
from ..rules import SOURCE, TARGET, Rule, Take, Term, ValueMap
from ..timing import Window

MUTUAL = "mutual"


class Unified(Preset):
    """Cross-attention refined as in prompt-to-prompt, self-attention handed over between three branches.

    The branch "mutual" runs along under the source's prompt. Before the end of the window:
    target SDPA(q_s, k_s, v_t), mutual SDPA(q_s, k_s, v_s). After it: target untouched, mutual SDPA(q_t, k_s, v_s),
    which has the target's layout in the source's look. Text keys of the target: SDPA(q_b, k_b, W_taken V_t) +
    SDPA(q_t, k_t, W_own V_t) with the base b the source ("source", as the authors' demo) or the mutual branch
    ("mutual", as their benchmark).

    Official: all sites, both chunks, self-attention until 0.3 of the steps, words until 0.7, 15 LCM steps with guidance
    1 and 2; SD1.5 only. All other families are our own. The steps are counted from 0 here and from 1 there.
    """

    name = "unified"
    label = "Unified control (InfEdit)"
    description = "InfEdit's control for words and shape together; needs the third branch of UnifiedAttentionControl."
    reference = "Xu et al. 2023, InfEdit, arXiv:2312.04965"
    added = (0, 1, 0)
    variants = ("source", "mutual")
    layers = {"*": "all"}
    windows = {"*": (0.0, 0.3)}
    needs_text = True
    source_for = "both"
    mask_note = "Attention is controlled where the mask is white."

    def plan(self, where: Where, source_for: Serves) -> AttentionPlan:
        """Four rules and one more branch."""
        swap, every = Term(q=Take(), k=Take()), Term(q=Take(), k=Take(), v=Take())
        after = Window(where.window.end, 1.0)
        late = Term(q=Take(TARGET), k=Take(), v=Take())
        rules = [
            self._self(where, "target", swap, TARGET, where.window),
            self._self(where, "mutual", every, MUTUAL, where.window),
            self._self(where, "mutual late", late, MUTUAL, after),
            self._words(where),
        ]
        kept = tuple(rule for rule in rules if rule.window.start < rule.window.end)
        return AttentionPlan(kept, branches=(MUTUAL,), text=where.text, source_for=source_for)

    def _self(self, where: Where, name: str, term: Term, branch: str, window: Window) -> Rule:
        return Rule(
            f"{self.name} {name}",
            (term,),
            where.layers,
            window=window,
            branch=branch,
            strength=where.strength,
            mask=where.mask,
            group=where.group,
        )

    def _words(self, where: Where) -> Rule:
        base = MUTUAL if where.variant == "mutual" else SOURCE
        terms = (
            Term(q=Take(base), k=Take(base), values=ValueMap(where.text.taken, 0.0)),
            Term(values=ValueMap(where.text.own, 1.0)),
        )
        return Rule(
            f"{self.name} words",
            terms,
            where.layers,
            kinds=("cross", "joint"),
            chunks=("cond",),
            strength=where.strength,
            mask=where.mask,
            group="all",
            queries="image",
            gate=where.text.is_active,
            renormalise=where.renormalise,
        )
