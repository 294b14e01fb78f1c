"""Direct (PnP) inversion: the source is put back onto its own path after every step, so that no guidance loses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.denoiser import Denoiser
from ...core.settings import parameter
from ...core.steps import DDIMPredictor, Euler, Step
from ...core.walk import AfterStep, OnStep, walk
from ..inversion import Inversion, keep
from ..method import Method, MethodState, Path


@dataclass(frozen=True)
class Direct(Method):
    """Up: the path x*_0 .. x*_k of DDIM inversion, unguided. Down: Euler steps f under guidance, each put right.

        source:  x*_i -> x*_{i-1}                          the path itself, whatever f gave
        target:  z    -> f_tgt(z) + carry * r_i            r_i = x*_{i-1} - f_src(x*_i)

    r_i is what the guided source misses at each step. The paper adds it to the source alone (carry 0), whose exact row
    its attention methods read from; the target is a plain DDIM edit then. With carry 1 the target gets all of it, so
    that the source's own prompt as a target comes back as well.

    The residuals are those of the denoiser's guidance, the path is climbed by its `unguided` side, at one price per
    step as a climb and a walk down. A denoiser without such a side climbs as it is.
    """

    name = "direct"
    label = "Direct (PnP) inversion"
    description = (
        "Comes back exactly at any guidance: the source is put back onto its path after each step, and what that takes "
        "is carried over to the edit."
    )
    reference = "Ju et al. 2023, Direct Inversion, arXiv:2310.01506"
    order = None
    reversible = True
    corrects_guidance = True
    added = (0, 1, 0)
    carry: float = parameter(
        1.0,
        "How much of the source's correction an edit gets. 1 keeps most of the source; 0 is the paper's, for attention "
        "methods that read from the exact source.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )

    def invert(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        sigmas: Sequence[float],
        index: int,
        keep_path: bool = False,
        on_step: OnStep | None = None,
    ) -> MethodState:
        """Climb, and ask after each step what the way down would miss there; see Method.invert.

        The path is always kept.
        """
        predictor, euler, plain = DDIMPredictor(), Euler(), denoiser.unguided
        residuals: list[Tensor] = []

        def up(denoiser: Denoiser, below: Tensor, sigma: float, sigma_next: float) -> Step:
            x, denoised = predictor(plain, below, sigma, sigma_next)
            if self.carry > 0.0:
                back, denoised = euler(denoiser, x, sigma_next, sigma)
                residuals.append(keep(below - back))
            return Step(x, denoised)

        path = Path(x0)
        x = walk(denoiser, x0, sigmas[: index + 1], up, on_step, path)
        return MethodState(x, path=path.states, residuals=tuple(residuals) if residuals else None)

    def replay(
        self,
        inversion: Inversion,
        source: Denoiser,
        target: Denoiser | None = None,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Walk down along the path, or beside it; see Method.replay.

        Raises:
            ValueError: If the inversion has no path, or no residuals to carry over.
        """
        path, residuals = inversion.path, inversion.residuals
        if path is None:
            raise ValueError("An inversion of method direct must hold its path, got none; invert again.")
        carries = target is not None and self.carry > 0.0
        if carries and residuals is None:
            raise ValueError("An inversion of method direct must hold its residuals, got none; invert again.")

        def correct(x: Tensor, index: int) -> Tensor:
            if target is None:
                x = path[index].to(device)
            elif carries:
                assert residuals is not None
                x = x + self.carry * residuals[index].to(device)
            return x if after_step is None else after_step(x, index)

        denoiser = source if target is None else target
        return walk(denoiser, inversion.x.to(device), inversion.falling, Euler(), on_step, correct)

    def evaluations(self, index: int, rising: bool = True) -> int:
        """Two a step up, one of the climb and one for the residual; one a step otherwise."""
        return 2 * index if rising and self.carry > 0.0 else index
