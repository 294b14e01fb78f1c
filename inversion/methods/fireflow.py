"""FireFlow: second order at the price of first."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.steps import FireFlow as FireFlowStep
from ...core.steps import Stepper
from ..method import SingleState


@dataclass(frozen=True)
class FireFlow(SingleState):
    """Midpoint whose first stage reuses the midpoint derivative of the step before; started anew in each walk."""

    name = "fireflow"
    label = "FireFlow"
    description = "One model call a step and one more at the start, second order: the fastest close reconstruction."
    reference = (
        "Deng et al. 2024, FireFlow: Fast Inversion of Rectified Flow for Image Semantic Editing, arXiv:2412.07517"
    )
    order = 2
    added = (0, 1, 0)

    def up(self) -> Stepper:
        """Stepper for rising sigmas."""
        return FireFlowStep()

    def down(self) -> Stepper:
        """Stepper for falling sigmas."""
        return FireFlowStep()

    def evaluations(self, index: int, rising: bool = True) -> int:
        """One a step and one at the start."""
        return index + 1
