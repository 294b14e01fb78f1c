"""RF-Solver: the explicit midpoint rule in both directions."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.steps import Midpoint as MidpointStep
from ...core.steps import Stepper
from ..method import SingleState


@dataclass(frozen=True)
class Midpoint(SingleState):
    """x' = x + h * d(x + h/2 * d(x, s), s + h/2), h = s' - s, up and down.

    The paper writes x' = x + h*v + h^2/2 * v' with v' from a finite difference over half a step; that is this rule.
    """

    name = "midpoint"
    label = "RF-Solver (midpoint)"
    description = "Two model calls a step and second order: a close reconstruction for flow and eps models alike."
    reference = "Wang et al. 2024, Taming Rectified Flow for Inversion and Editing, arXiv:2411.04746"
    order = 2
    added = (0, 1, 0)

    def up(self) -> Stepper:
        """Stepper for rising sigmas."""
        return MidpointStep()

    def down(self) -> Stepper:
        """Stepper for falling sigmas."""
        return MidpointStep()

    def evaluations(self, index: int, rising: bool = True) -> int:
        """Two a step."""
        return 2 * index
