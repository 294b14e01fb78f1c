"""Edits without an inversion under a plan that adds branches or blends the latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...attention import SOURCE, TARGET, AttentionPlan, Step
from ...inversion import BlendedFlowEdit, BranchedInfEdit, FlowEdit, InfEdit, InversionFreeEdit
from ..attending.attended import Attended


def branched(edit: InversionFreeEdit, plan: AttentionPlan, attended: Attended) -> InversionFreeEdit:
    """Return the edit as the plan needs it.

    Args:
        edit: The edit.
        plan: Its plan.
        attended: The plan in the runs of the guider.

    Returns:
        The same edit where nothing is added to it.

    Raises:
        ValueError: If the plan blends the latent of an edit that cannot blend.
    """
    if not plan.branches and not plan.latent_rules:
        return edit
    names = (SOURCE, TARGET, *plan.branches)

    def blend(index: int, total: int, sigma: float, states: Sequence[torch.Tensor]) -> torch.Tensor:
        return attended.running.blend(Step(index, total, sigma), dict(zip(names, states, strict=True)))

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
