"""O-BELM: the two-step pair whose ratio gives the smallest local error."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...core.denoiser import Denoiser
from ...core.settings import parameter
from ...core.space import Space
from ..coupled import TwoStep, mate_of
from ..inversion import Inversion


@dataclass(frozen=True)
class BELM(TwoStep):
    """Two-step pair with r = (h_low / h_high)^2 going down, h the two step widths; the same rule in both spaces.

    The paper's form, with rho = h_low / h_high: x_{i-1} = rho^2 x_{i+1} + (1 - rho^2) x_i - h_low (1 + rho) d_i.

    Under the source it comes back exactly. Another prompt is a kick that the pair rings with; `reseed` replaces the
    mate by an Euler step under the target, so that both states of the pair belong to the target.
    """

    name = "belm"
    label = "O-BELM"
    description = "Comes back exactly at one model call a step, with second order and no knob. Best to reconstruct."
    reference = "Wang et al. 2024, BELM: Bidirectional Explicit Linear Multi-step Sampler, arXiv:2410.07273"
    order = 2
    added = (0, 1, 0)
    reseed: bool = parameter(
        True,
        "Begin an edit with a new pair under its prompt, for one more model call. Without it edits ring; "
        "a reconstruction is the same with and without.",
    )

    def ratio(self, sigma_high: float, sigma: float, sigma_low: float, space: Space) -> float:
        """See the class."""
        return ((sigma - sigma_low) / (sigma_high - sigma)) ** 2

    def begin(self, inversion: Inversion, source: Denoiser, target: Denoiser | None, x: Tensor) -> Tensor:
        """The mate, or a new one for another prompt."""
        # A target that is the source itself is a reconstruction.
        if not self.reseed or target is None or target is source:
            return mate_of(inversion, x)
        return self.mate(target, x, inversion.sigmas, inversion.index)
