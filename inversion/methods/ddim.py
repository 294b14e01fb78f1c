"""DDIM inversion as the official codes run it: the lower latent under the higher timestep."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.steps import DDIMPredictor, Euler, Stepper
from ..method import SingleState


@dataclass(frozen=True)
class DDIM(SingleState):
    """Up: x' = x + (s' - s) * d(c*x, s') with c*x the state of the same network tensor at s'. Down: Euler.

    One round of the fixed point that would undo the Euler step exactly, hence as a rule nearer than Euler going up.
    """

    name = "ddim"
    label = "DDIM inversion (official)"
    description = "One model call a step, as null-text and prompt-to-prompt codes invert; as a rule nearer than Euler."
    reference = "Mokady et al. 2022, Null-text Inversion, arXiv:2211.09794 (code); Song et al. 2020, arXiv:2010.02502"
    order = 1
    added = (0, 1, 0)

    def up(self) -> Stepper:
        """Stepper for rising sigmas."""
        return DDIMPredictor()

    def down(self) -> Stepper:
        """Stepper for falling sigmas."""
        return Euler()

    def evaluations(self, index: int, rising: bool = True) -> int:
        """One a step."""
        return index
