"""RF-Edit and FireFlow: values of the source in the first steps."""

from __future__ import annotations

from ..plan import AttentionPlan
from ..preset import Preset, Where
from ..rules import Add, Take, Term


class RFEdit(Preset):
    """SDPA(q_t, k_t, v_s), or v_t + strength * v_s with "add".

    Official: RF-Edit takes the values of all tokens in Flux single blocks 20 to 37 and HunyuanVideo single blocks 21 to
    39, in the first 2 to 5 of 15 to 25 steps (HunyuanVideo 1 to 3 of 25); FireFlow (Deng et al. 2024,
    arXiv:2412.07517) in the first of 8, and may add. Text tokens only count where both prompts have one length, so
    that other families than Flux take image tokens; their layers, and all of a UNet's, are our own.
    """

    name = "rf_edit"
    label = "Values (RF-Edit, FireFlow)"
    description = "Keeps background and identity under a flow model; raise the end for more of the source."
    reference = "Wang et al. 2024, RF-Solver, arXiv:2411.04746"
    added = (0, 1, 0)
    variants = ("replace", "add")
    layers = {"flux": "single:20-37", "hunyuan_video": "single:21-39", "*": "0.5-1.0"}
    windows = {"hunyuan_video": (0.0, 0.12), "*": (0.0, 0.2)}
    groups = {"flux": "all", "*": "image"}

    def plan(self, where: Where) -> AttentionPlan:
        """One rule."""
        return where.plan(where.rule(Term(v=Add() if where.variant == "add" else Take())))
