"""Edit-friendly DDPM inversion: a path of independent noises, and what each step of the source misses of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.denoiser import Denoiser
from ...core.noise import LARGEST_SEED, Noises
from ...core.settings import parameter
from ...core.space import Space, mix
from ...core.steps import Step
from ...core.walk import AfterStep, OnStep, walk
from ..inversion import Inversion, keep
from ..method import Method, MethodState, Path

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
    """D at the sigma where it was asked for."""

    denoised: Tensor
    sigma: float


def extrapolate(now: Prediction, before: Prediction | None, sigma_next: float, space: Space) -> Tensor:
    """What a second-order step from s down to t takes for D.

        D~ = D + (D - D_before) / (2 r),   r = ln(S_before / S) / ln(S / T)

    S is the sigma of the VE space: s, or s / (1 - s) for flow. With D~ the mean of the DDPM step becomes that of
    SDE-DPM-Solver++ (2M), Lu et al. 2022, arXiv:2211.01095.

    Args:
        now: D at s.
        before: D at the sigma above, None in the first step of a walk.
        sigma_next: t.
        space: "ve" or "flow".

    Returns:
        D~, or D itself where r is not finite and positive: after flow sigma 1, down to 0, and without one before.
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
    """Up: x*_i = x0 noised by a noise of its own for each i, and r_i = x*_{i-1} - mean(x*_i).

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
        """Noise x0 to each sigma and ask the model there; see Method.invert."""
        # Drawn step by step: the same up to every index.
        noises, space = Noises(self.seed, x0, shared=0, scale=denoiser.noise_scale), denoiser.space
        residuals: list[Tensor] = []
        missed_below: Callable[[Prediction | None], Tensor] | None = None

        def up(denoiser: Denoiser, below: Tensor, sigma: float, sigma_next: float) -> Step:
            nonlocal missed_below
            x = mix(x0, noises.draw(), sigma_next, space, sigmas[0])
            now = Prediction(denoiser(x, sigma_next), sigma_next)
            # The step down to below begins with what is predicted one sigma above.
            if missed_below is not None:
                residuals.append(missed_below(now))
            missed_below = partial(self._missed, below, x, now, sigma, space)
            return Step(x, now.denoised)

        path = Path(x0, keep_path)
        x = walk(denoiser, x0, sigmas[: index + 1], up, on_step, path)
        assert missed_below is not None
        residuals.append(missed_below(None))
        return MethodState(x, path=path.states, residuals=tuple(residuals), seed=self.seed)

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
        residuals = reversed(inversion.residuals)
        before: Prediction | None = None

        def down(denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
            nonlocal before
            now = Prediction(denoiser(x, sigma), sigma)
            mean = self._mean(x, now, before, sigma_next, denoiser.space)
            before = now
            return Step(mean + next(residuals).to(device), now.denoised)

        denoiser = source if target is None else target
        return walk(denoiser, inversion.x.to(device), inversion.falling, down, on_step, after_step)

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
