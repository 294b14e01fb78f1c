"""Prompt-to-prompt: attention to unchanged words is the source's."""

from __future__ import annotations

from ..plan import AttentionPlan, Serves
from ..preset import UNETS, Preset, Where
from ..rules import Rule, Take, Term, ValueMap
from ..sites import Layers

# Self-attention of the source up to 32 x 32 tokens of a 64 x 64 latent, as in the notebook for real pictures.
SELF_LIMIT = 0.5
# Shin et al., who give q and k on transformers, leave the second attention of SD3.5-medium alone.
SELF_LAYERS = {"sd3": "joint"}


class PromptToPrompt(Preset):
    """Columns of the source's probabilities in the target's, as value maps of a token map.

    Text keys: SDPA(q_s, k_s, W_taken V_t) + SDPA(q_t, k_t, W_own V_t) for the image queries, at cross sites and at the
    text columns of joint sites. Image columns of a joint site are the target's own with "text" and the source's with
    "joint". Self-attention: q and k of the source in the window of the steps, at UNets only on grids of up to half the
    latent's side. "reweight" scales the words of the target alone and reads no source. Modes, words and their windows
    are the token map's.

    Official: all cross sites, self-attention in the first 0.4 of the steps. On Flux the double blocks and single blocks
    0 to 25, as ReFlex (Kim et al. 2025, arXiv:2507.01496), with q and k in the first fifth of the steps (Shin et al.
    2025, arXiv:2508.07519). The layers of Qwen-Image and HunyuanVideo are our own.
    """

    name = "p2p"
    label = "Prompt-to-prompt"
    description = "Changes words while the layout of all others stays."
    reference = "Hertz et al. 2022, Prompt-to-Prompt, arXiv:2208.01626"
    added = (0, 1, 0)
    variants = ("text", "joint", "reweight")
    layers = {"flux": "double; single:0-25", "hunyuan_video": "double; single:0-25", "*": "all"}
    windows = {"sd15": (0.0, 0.4), "sdxl": (0.0, 0.4), "*": (0.0, 0.2)}
    needs_text = True
    source_for = "cond"
    mask_note = "Attention follows the source where the mask is white."

    def plan(self, where: Where, source_for: Serves) -> AttentionPlan:
        """The rule for words, and the rule for self-attention unless it only reweights."""
        words = self._words(where)
        if where.variant == "reweight":
            return AttentionPlan((words,), text=where.text, source_for=source_for)
        own = Rule(
            f"{self.name} self",
            (Term(q=Take(), k=Take()),),
            where.layers if where.chosen else Layers.parse(SELF_LAYERS.get(where.family, "all")),
            window=where.window,
            strength=where.strength,
            mask=where.mask,
            limit=SELF_LIMIT if where.family in UNETS else None,
        )
        closed = where.window.start >= where.window.end
        return AttentionPlan((words,) if closed else (own, words), text=where.text, source_for=source_for)

    def _words(self, where: Where) -> Rule:
        text = where.text
        if where.variant == "reweight":
            terms: tuple[Term, ...] = (Term(values=ValueMap(text.reweighted)),)
        else:
            rest = 1.0 if where.variant == "joint" else 0.0
            terms = (
                Term(q=Take(), k=Take(), values=ValueMap(text.taken, rest)),
                Term(values=ValueMap(text.own, 1.0 - rest)),
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
            gate=text.is_active,
            renormalise=where.renormalise,
        )
