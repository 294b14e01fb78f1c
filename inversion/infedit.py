"""InfEdit: virtual inversion by the denoising diffusion consistent model (DDCM).

    x*_i = mix(x0, n, s_i)      z_i = mix(z, n, s_i)
    z   <- x0 + D_tgt(z_i, s_i) - D_src(x*_i, s_i)
    n   <- sqrt(1 - eta) (n + e_tgt - e_src) + sqrt(eta) fresh

D is the model's clean prediction and e the noise that belongs to it, (x - (1 - s) D) / s for flow and (x - D) / s
otherwise. At eta 1 every step has fresh noise of its own, which is the form of multistep consistency sampling, so that
few-step (LCM) models fit. A further branch moves as the target does, by its own D. Xu et al. 2023, arXiv:2312.04965.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core.settings import parameter
from ..core.space import mix
from .inversion_free import EditStep, EditTask, InversionFreeEdit, edit_walk


@dataclass(frozen=True)
class InfEdit(InversionFreeEdit):
    """InfEdit's edit; one call of each denoiser a step."""

    name = "InfEdit"
    reference = "Xu et al. 2023, arXiv:2312.04965"
    eta: float = parameter(
        1.0,
        "1 draws new noise at every step, as the paper does and LCM needs; 0 carries one noise all the way.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )

    def evaluations(self, index: int) -> tuple[int, int]:
        """One call of each denoiser a step."""
        return index, index

    def _run(self, task: EditTask) -> Tensor:
        return edit_walk(task, _Consistent(self.eta), task.total)


class _Consistent:
    """The rule; holds the noise that an eta below 1 carries on."""

    def __init__(self, eta: float) -> None:
        self._eta = eta
        self._carried: Tensor | None = None

    def __call__(self, task: EditTask, latents: Sequence[Tensor], sigma: float, sigma_next: float) -> EditStep:
        """One step; see EditRule. All branches share the noise."""
        space, x0 = task.source.space, task.x0
        noise = self._noise(task)
        source, *branches = task.ask([mix(latent, noise, sigma, space) for latent in (x0, *latents)], sigma)
        if self._eta < 1.0:
            # e = x + (1 - s) d for flow, d otherwise: the noise parts of the two states, which share n.
            difference = branches[0].derivative - source.derivative
            if space == "flow":
                # The states differ by (1 - s) (z - x0).
                difference = (1.0 - sigma) * ((latents[0] - x0) + difference)
            self._carried = noise + difference
        return EditStep([x0 + (branch.denoised - source.denoised) for branch in branches])

    def _noise(self, task: EditTask) -> Tensor:
        if self._carried is None:
            return task.noises.draw()
        carried = math.sqrt(1.0 - self._eta) * self._carried
        # Without fresh noise none is drawn: 0 * noise would cost a draw and give the same.
        return carried if self._eta == 0.0 else carried + math.sqrt(self._eta) * task.noises.draw()
