"""InfEdit: virtual inversion by the denoising diffusion consistent model (DDCM).

    x*_i = mix(x0, n, s_i)      z_i = mix(z, n, s_i)
    z   <- x0 + D_tgt(z_i, s_i) - D_src(x*_i, s_i)
    n   <- sqrt(1 - eta) (n + e_tgt - e_src) + sqrt(eta) fresh

D is the model's clean prediction and e the noise that belongs to it, (x - (1 - s) D) / s for flow and (x - D) / s
otherwise. At eta 1 every level has fresh noise of its own, which is the form of multistep consistency sampling, so
that few-step (LCM) models fit. Xu et al. 2023, arXiv:2312.04965.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core.space import mix
from .inversion_free import Branches, EditStep, EditTask, InversionFreeEdit, edit_walk


@dataclass(frozen=True)
class InfEdit(InversionFreeEdit):
    """InfEdit's edit; one call of each denoiser a level.

    Attributes:
        eta: 1 draws fresh noise at every level (the paper's choice), 0 carries one noise all the way.

    Raises:
        ValueError: If eta lies outside 0 .. 1.
    """

    name = "InfEdit"
    reference = "Xu et al. 2023, arXiv:2312.04965"
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie between 0 and 1, got {self.eta:g}; 1 is the paper's choice.")

    def evaluations(self, index: int) -> tuple[int, int]:
        """One call of each denoiser at every level."""
        return index, index

    def _run(self, task: EditTask, falling: Sequence[float]) -> Tensor:
        return edit_walk(task, falling, Consistent(self.eta))


class Consistent:
    """The rule at every level; holds the noise that an eta below 1 carries on."""

    def __init__(self, eta: float) -> None:
        self._eta = eta
        self._carried: Tensor | None = None

    def __call__(self, task: EditTask, z: Tensor, sigma: float, sigma_next: float) -> EditStep:
        """Move the edited latent on by one level."""
        space, x0 = task.source.space, task.x0
        noise = self._noise(task)
        asked = task.ask(mix(x0, noise, sigma, space), mix(z, noise, sigma, space), sigma)
        self._carry(asked, task, noise, z, sigma)
        edited = x0 + (asked.target_denoised - asked.source_denoised)
        return EditStep(edited, edited)

    def _noise(self, task: EditTask) -> Tensor:
        if self._carried is None:
            return task.noises.draw()
        carried = math.sqrt(1.0 - self._eta) * self._carried
        # Without fresh noise none is drawn: 0 * noise would cost a draw and give the same.
        return carried if self._eta == 0.0 else carried + math.sqrt(self._eta) * task.noises.draw()

    def _carry(self, asked: Branches, task: EditTask, noise: Tensor, z: Tensor, sigma: float) -> None:
        if self._eta < 1.0:
            # e = x + (1 - s) d for flow, d otherwise: the noise parts of the two states, which share n.
            self._carried = noise + self._noise_difference(asked, task.x0, z, sigma, task.source.space == "flow")

    @staticmethod
    def _noise_difference(asked: Branches, x0: Tensor, z: Tensor, sigma: float, flow: bool) -> Tensor:
        difference = asked.target_derivative - asked.source_derivative
        # The states differ by (1 - s) (z - x0) in a flow.
        return (1.0 - sigma) * ((z - x0) + difference) if flow else difference
