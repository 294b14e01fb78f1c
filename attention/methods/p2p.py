"""Prompt-to-prompt: attention to unchanged words is the source's."""

from __future__ import annotations

from ..plan import AttentionPlan
from ..preset import Preset, Where
from ..rules import Take, Term, ValueMap
from ..sites import Layers

# Self-attention of the source up to 32 x 32 tokens of a 64 x 64 latent, as in the notebook for real pictures.
SELF_LIMITS = {"sd15": 0.5, "sdxl": 0.5}
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
    layers = {"flux": "double; single:0-25", "*": "all"}
    windows = {"sd15": (0.0, 0.4), "sdxl": (0.0, 0.4), "*": (0.0, 0.2)}
    needs_text = True
    source_for = "cond"
    mask_note = "Attention follows the source where the mask is white."

    def plan(self, where: Where) -> AttentionPlan:
        """The rule for words, and the rule for self-attention unless it only reweights."""
        text, rest = where.settings.text, 1.0 if where.variant == "joint" else 0.0
        if where.variant == "reweight":
            return where.plan(where.words(Term(values=ValueMap(text.reweighted))), text=text)
        words = where.words(
            Term(q=Take(), k=Take(), values=ValueMap(text.taken, rest)), Term(values=ValueMap(text.own, 1.0 - rest))
        )
        if where.window.start >= where.window.end:
            return where.plan(words, text=text)
        layers = where.layers if where.settings.layers.strip() else Layers.parse(SELF_LAYERS.get(where.family, "all"))
        limit = SELF_LIMITS.get(where.family)
        return where.plan(
            where.rule(Term(q=Take(), k=Take()), name="self", layers=layers, limit=limit), words, text=text
        )
