"""Unified attention control: the three branches of InfEdit."""

from __future__ import annotations

from ..plan import AttentionPlan
from ..preset import Preset, Where
from ..rules import SOURCE, TARGET, Take, Term, ValueMap
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

    def plan(self, where: Where) -> AttentionPlan:
        """Four rules and one more branch."""
        text, base = where.settings.text, MUTUAL if where.variant == "mutual" else SOURCE
        late = Term(q=Take(TARGET), k=Take(), v=Take())
        rules = (
            where.rule(Term(q=Take(), k=Take()), name="target"),
            where.rule(Term(q=Take(), k=Take(), v=Take()), name="mutual", branch=MUTUAL),
            where.rule(late, name="mutual late", branch=MUTUAL, window=Window(where.window.end, 1.0)),
            where.words(
                Term(q=Take(base), k=Take(base), values=ValueMap(text.taken, 0.0)), Term(values=ValueMap(text.own, 1.0))
            ),
        )
        acting = (rule for rule in rules if rule.window.start < rule.window.end)
        return where.plan(*acting, branches=(MUTUAL,), text=text)
