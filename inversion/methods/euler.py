"""Euler in both directions: plain DDIM inversion."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.steps import Euler as EulerStep
from ...core.steps import Stepper
from ..method import SingleState


@dataclass(frozen=True)
class Euler(SingleState):
    """x' = x + (s' - s) * d(x, s), up and down."""

    name = "euler"
    label = "Euler (DDIM)"
    description = "One model call a step. The baseline: cheap, and visibly off unless there are many steps."
    reference = "Song et al. 2020, Denoising Diffusion Implicit Models, arXiv:2010.02502"
    order = 1
    added = (0, 1, 0)

    def up(self) -> Stepper:
        """Stepper for rising sigmas."""
        return EulerStep()

    def down(self) -> Stepper:
        """Stepper for falling sigmas."""
        return EulerStep()

    def evaluations(self, index: int, rising: bool = True) -> int:
        """One a step."""
        return index
