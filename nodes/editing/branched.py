"""Edits without an inversion under a plan that adds branches or blends the latent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...attention import AttentionPlan, AttentionRun, Step
from ...inversion import BlendedFlowEdit, BranchedInfEdit, FlowEdit, InfEdit, InversionFreeEdit


def branched(edit: InversionFreeEdit, plan: AttentionPlan, run: Callable[[], AttentionRun | None]) -> InversionFreeEdit:
    """Return the edit as the plan needs it.

    Args:
        edit: The edit.
        plan: Its plan.
        run: Gives the run that is under way.

    Returns:
        The same edit where nothing is added to it.

    Raises:
        ValueError: If the plan blends the latent of an edit that cannot blend.
    """
    if not plan.branches and not plan.latent_rules:
        return edit

    def blend(index: int, total: int, sigma: float, states: Sequence[torch.Tensor]) -> torch.Tensor:
        under_way = run()
        assert under_way is not None
        return under_way.blend(Step(index, total, sigma), dict(zip(under_way.branches, states, strict=True)))

    blended = blend if plan.latent_rules else None
    if isinstance(edit, InfEdit):
        return BranchedInfEdit(eta=edit.eta, others=len(plan.branches), blend=blended)
    if isinstance(edit, FlowEdit):
        return BlendedFlowEdit(n_avg=edit.n_avg, n_min=edit.n_min, pull=edit.pull, blend=blended)
    if plan.latent_rules:
        raise ValueError(
            f"attention must hold no local blend for {edit.name}, got one; leave LocalBlend out, or connect a mask."
        )
    return edit
