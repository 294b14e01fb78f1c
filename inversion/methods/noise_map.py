"""Edit-friendly DDPM inversion: a path of independent noises, and what each step of the source misses of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.denoiser import Denoiser
from ...core.noise import LARGEST_SEED, Noises
from ...core.settings import parameter
from ...core.space import Space, mix
from ...core.walk import AfterStep, OnStep, StepReport
from ..inversion import Inversion, keep
from ..method import Method, MethodState

STEPPERS = ("ddpm", "dpmpp_2m_sde")


def posterior_mean(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float, space: Space) -> Tensor:
    """Mean of the ancestral (DDPM) step from s down to t.

        VE:    D + t^2 / s^2 * (x - D)
        flow:  (1 - t) * (D + T^2 / S * n),   n = (x - (1 - s) * D) / s,   S = s / (1 - s),   T = t / (1 - t)

    It is the mean of x_t given x_s and a clean latent D, where x_s has all the noise of x_t and independent noise more.

    Args:
        x: State at s.
        denoised: D(x, s).
        sigma: s, above t; up to 1 for flow.
        sigma_next: t, from 0.
        space: "ve" or "flow".

    Returns:
        Tensor of the shape of x.
    """
    if space == "ve":
        return denoised + (sigma_next / sigma) ** 2 * (x - denoised)
    noise = (x - (1.0 - sigma) * denoised) / sigma
    # 1 / S is written so that it is 0 at s = 1.
    ratio = (sigma_next / (1.0 - sigma_next)) ** 2 * (1.0 - sigma) / sigma
    return (1.0 - sigma_next) * (denoised + ratio * noise)


class Prediction(NamedTuple):
    """D at the level where it was asked for."""

    denoised: Tensor
    sigma: float


def extrapolate(now: Prediction, before: Prediction | None, sigma_next: float, space: Space) -> Tensor:
    """What a second-order step from s down to t takes for D.

        D~ = D + (D - D_before) / (2 r),   r = ln(S_before / S) / ln(S / T)

    S is the level in the VE space: s, or s / (1 - s) for flow. With D~ the mean of the DDPM step becomes that of
    SDE-DPM-Solver++ (2M), Lu et al. 2022, arXiv:2211.01095.

    Args:
        now: D at s.
        before: D at the level above, None in the first step of a walk.
        sigma_next: t.
        space: "ve" or "flow".

    Returns:
        D~, or D itself where r is not finite and positive: after flow level 1, down to 0, and without a level before.
    """
    top = math.inf if space == "ve" else 1.0
    if before is None or before.sigma >= top or sigma_next == 0.0:
        return now.denoised
    above, here, below = (
        math.log(sigma if space == "ve" else sigma / (1.0 - sigma)) for sigma in (before.sigma, now.sigma, sigma_next)
    )
    return now.denoised + 0.5 * (here - below) / (above - here) * (now.denoised - before.denoised)


@dataclass(frozen=True)
class NoiseMap(Method):
    """Up: x*_i = x0 noised by a noise of its own for each level i, and r_i = x*_{i-1} - mean(x*_i).

    Down from x*_k:

        x_{i-1} = mean(x_i) + r_i

    mean is that of the DDPM step under the source going up and under the target coming down; under the source it gives
    the path again, at any guidance, whatever the model is. The paper divides r_i by the deviation of the step and calls
    it the noise map; stored as it is, it needs no division where that deviation is 0.

    stepper "dpmpp_2m_sde" is LEDITS++: the mean of SDE-DPM-Solver++ (2M) in the place of DDPM's, second order in the
    step size, for fewer steps. Its history begins at x*_k in both directions.

    Because the noises are independent, neighbouring residuals are large and pull against each other, which ties an edit
    to the picture's layout. Every row of a batch gets the same noises, so that it is what it is alone.
    """

    name = "noise_map"
    label = "Edit-friendly DDPM"
    description = (
        "Comes back exactly at any guidance, one model call a step. Edits keep the layout; a lower strength keeps more."
    )
    reference = (
        "Huberman-Spiegelglas et al. 2023, An Edit Friendly DDPM Noise Space, arXiv:2304.06140; "
        "Brack et al. 2023, LEDITS++, arXiv:2311.16711"
    )
    order = None
    reversible = True
    added = (0, 1, 0)
    seed: int = parameter(0, "Seed of the noises on the way up.", minimum=0, maximum=LARGEST_SEED)
    stepper: str = parameter(
        "ddpm", "ddpm is the paper's step; dpmpp_2m_sde that of LEDITS++, for 20 to 30 steps.", options=STEPPERS
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
        """Noise x0 to each level and ask the model there; see Method.invert."""
        # Drawn step by step: the same up to every index.
        noises = Noises(self.seed, x0, shared=0)
        path, residuals = [keep(x0)], []
        x, lower = x0, None
        for i in range(1, index + 1):
            below, start = x, sigmas[i - 1]
            x = mix(x0, noises.draw(), sigmas[i], denoiser.space, sigmas[0])
            denoised = denoiser(x, sigmas[i])
            now = Prediction(denoised, sigmas[i])
            # The step down to here begins with what is predicted one level above.
            if lower is not None:
                residuals.append(lower(now))
            lower = partial(self._missed, below, x, now, start, denoiser.space)
            if keep_path:
                path.append(keep(x))
            if on_step is not None:
                on_step(StepReport(i - 1, index, start, sigmas[i], x, denoised))
        assert lower is not None
        residuals.append(lower(None))
        return MethodState(x, path=tuple(path) if keep_path else None, residuals=tuple(residuals), seed=self.seed)

    def replay(
        self,
        inversion: Inversion,
        source: Denoiser,
        target: Denoiser | None = None,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Sample down with the stored residuals; see Method.replay.

        Raises:
            ValueError: If the inversion has no residuals.
        """
        if inversion.residuals is None:
            raise ValueError("An inversion of method noise_map must hold its residuals, got none; invert again.")
        denoiser = source if target is None else target
        index, sigmas = inversion.index, inversion.sigmas
        x, before = inversion.x.to(device), None
        for i in range(index, 0, -1):
            denoised = denoiser(x, sigmas[i])
            now = Prediction(denoised, sigmas[i])
            x = self._mean(x, now, before, sigmas[i - 1], denoiser.space) + inversion.residuals[i - 1].to(device)
            before = now
            if after_step is not None:
                x = after_step(x, i - 1)
            if on_step is not None:
                on_step(StepReport(index - i, index, sigmas[i], sigmas[i - 1], x, denoised))
        return x

    def evaluations(self, index: int, rising: bool = True) -> int:
        """One a step."""
        return index

    def _mean(self, x: Tensor, now: Prediction, before: Prediction | None, sigma_next: float, space: Space) -> Tensor:
        denoised = now.denoised if self.stepper == "ddpm" else extrapolate(now, before, sigma_next, space)
        return posterior_mean(x, denoised, now.sigma, sigma_next, space)

    def _missed(
        self, below: Tensor, x: Tensor, now: Prediction, sigma_next: float, space: Space, before: Prediction | None
    ) -> Tensor:
        """What the step from x down to below misses."""
        return keep(below - self._mean(x, now, before, sigma_next, space))
