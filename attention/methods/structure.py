"""Structure: the target takes queries and keys of the source, so that its attention maps are the source's."""

from __future__ import annotations

from ..plan import AttentionPlan
from ..preset import Preset, Where
from ..rules import Take, Term


class Structure(Preset):
    """Self-attention maps of the source on the target's values: SDPA(q_s, k_s, v_t), image tokens only.

    Official: SD1.5 output blocks 4 to 11 in the first half of the steps (plug-and-play). Flux single blocks, SD3 and
    HunyuanVideo all blocks, as ConsistEdit does (Yin et al. 2025, arXiv:2510.17803), in the first fifth of the
    steps (Shin et al. 2025, arXiv:2508.07519). The latter leave the second attention of SD3.5-medium's first blocks
    alone, which sees the image only; so do the layers here. The layers of SDXL and of the other families are our own.
    """

    name = "structure"
    label = "Structure q, k"
    description = "Keeps the layout of the source while the prompt changes material, colour or style."
    reference = "Tumanyan et al. 2022, Plug-and-Play, arXiv:2211.12572"
    added = (0, 1, 0)
    layers = {"sd15": "output:4-11", "sd3": "joint", "flux": "single", "*": "all"}
    windows = {"sd15": (0.0, 0.5), "sdxl": (0.0, 0.5), "*": (0.0, 0.2)}

    def plan(self, where: Where) -> AttentionPlan:
        """One rule."""
        return where.plan(where.rule(Term(q=Take(), k=Take())))
