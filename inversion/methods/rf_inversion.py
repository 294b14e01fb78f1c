"""RF-Inversion: controllers that pull the way up towards a drawn noise, and the way down towards the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.denoiser import Denoiser
from ...core.noise import LARGEST_SEED, Noises
from ...core.settings import parameter
from ...core.steps import Step
from ...core.walk import AfterStep, OnStep, walk
from ..inversion import Inversion
from ..method import Method, MethodState, Path


class UpController:
    """Euler's step along the derivative pulled towards a straight line to the noise y1.

        flow:  x' = x + (s' - s) * ((1 - gamma) * d + gamma * (y1 - x) / (1 - s))
        VE:    x' = x + (s' - s) * ((1 - gamma) * d + gamma * y1)

    The flow formula is the paper's. In terms of the predicted noise N it exchanges N for (1 - gamma) N + gamma y1;
    with u = x / (1 - s) and S = s / (1 - s), the same latent in the VE space, N is du/dS = d, which gives the second
    line. gamma 1 ends at x0 mixed with y1, which is y1 itself at flow sigma 1.
    """

    def __init__(self, gamma: float, noise: Tensor) -> None:
        """Set the walk up.

        Args:
            gamma: Weight of the pull, 0 .. 1.
            noise: y1, broadcastable to the state.
        """
        self._gamma = gamma
        self._noise = noise

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
        """One step; see Stepper."""
        derivative, denoised = denoiser.evaluate(x, sigma)
        line = self._noise if denoiser.space == "ve" else (self._noise - x) / (1.0 - sigma)
        pulled = (1.0 - self._gamma) * derivative + self._gamma * line
        return Step(x + (sigma_next - sigma) * pulled, denoised)


class DownController:
    """Euler's step with the prediction D pulled towards the picture x0 in a window of the steps.

        D' = (1 - eta) * D + eta * x0,      x' = x + (s' - s) * (x - D') / s

    It is the paper's controlled velocity, and holds in both spaces.
    """

    def __init__(self, eta: float, clean: Tensor, top: float, bottom: float) -> None:
        """Set the walk up.

        The window is one of sigmas and not of counted steps, so that a step can be taken again by itself.

        Args:
            eta: Weight of the pull, 0 .. 1.
            clean: x0.
            top: Steps from this sigma or below are pulled.
            bottom: Steps from this sigma or below are not.
        """
        self._eta = eta
        self._clean = clean
        self._top, self._bottom = top, bottom

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
        """One step; see Stepper."""
        derivative, denoised = denoiser.evaluate(x, sigma)
        if self._bottom < sigma <= self._top:
            pulled = (1.0 - self._eta) * denoised + self._eta * self._clean
            derivative = (x - pulled) / max(sigma, denoiser.sigma_floor)
        return Step(x + (sigma_next - sigma) * derivative, denoised)


@dataclass(frozen=True)
class RFInversion(Method):
    """Up: Euler pulled by gamma towards the noise y1 of a seed. Down: Euler pulled by eta towards x0 in a window.

    gamma and eta 0 are plain Euler; gamma 1 noises x0 with y1; eta 1 to the last step comes back exactly, at any
    gamma and under any prompt. In between it trades likeness against freedom and does not reconstruct.

    Every row of a batch gets the same y1, so that it is what it is alone.

    Raises:
        ValueError: If the window ends before it begins.
    """

    name = "rf_inversion"
    label = "RF-Inversion"
    description = "For restyling: keeps as much of the picture as eta and its window say. Does not come back by itself."
    reference = "Rout et al. 2024, Semantic Image Inversion and Editing using Rectified SDEs, arXiv:2410.10792"
    order = None
    added = (0, 1, 0)
    gamma: float = parameter(
        0.5,
        "Pull of the climb towards drawn noise: 0 is plain Euler, 1 only noise.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    eta: float = parameter(
        0.9,
        "Pull of the way down towards the picture: 0 is plain Euler, 1 the picture.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    start: float = parameter(
        0.0, "Where on the way down the pull begins, as a share of the steps.", minimum=0.0, maximum=1.0, step=0.01
    )
    stop: float = parameter(
        0.25,
        "Where on the way down the pull ends, as a share of the steps; 1 pulls to the last.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    seed: int = parameter(0, "Seed of the noise of the climb.", minimum=0, maximum=LARGEST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        # Such a window is empty, and eta would act nowhere without a word.
        if self.start > self.stop:
            raise ValueError(
                f"start of method rf_inversion must not lie above stop, got {self.start:g} and {self.stop:g}; "
                "raise stop, or set eta to 0 for no pull."
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
        """Walk up under the first controller; see Method.invert."""
        controller = UpController(self.gamma, Noises(self.seed, x0, shared=0, scale=denoiser.noise_scale).draw())
        path = Path(x0, keep_path)
        x = walk(denoiser, x0, sigmas[: index + 1], controller, on_step, path)
        return MethodState(x, path=path.states, seed=self.seed)

    def replay(
        self,
        inversion: Inversion,
        source: Denoiser,
        target: Denoiser | None = None,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Walk down under the second controller; see Method.replay."""
        total, falling = inversion.index, inversion.falling
        top, bottom = (falling[round(share * total)] for share in (self.start, self.stop))
        controller = DownController(self.eta, inversion.x0.to(device), top, bottom)
        denoiser = source if target is None else target
        return walk(denoiser, inversion.x.to(device), falling, controller, on_step, after_step)

    def evaluations(self, index: int, rising: bool = True) -> int:
        """One a step."""
        return index
