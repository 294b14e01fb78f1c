"""One-step maps from sigma to sigma_next, the same code for rising and falling sigmas."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from .denoiser import Denoiser


class Step(NamedTuple):
    """State at sigma_next and the last clean latent that the model predicted on the way."""

    x: Tensor
    denoised: Tensor


class Stepper(Protocol):
    """Moves x from sigma to sigma_next. May hold history, so every walk takes a fresh one."""

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float, /) -> Step:
        """State at sigma_next, shape, dtype and device of x, with x untouched."""


@runtime_checkable
class Carrying(Protocol):
    """A stepper whose next step starts from the derivative along which it made its last one.

    That derivative is all the history it has, and belongs to the step: x' = x + (s' - s) * derivative. So a walk can be
    taken up again between any two of its states, and gradients pass from one step to the next through it.

    Attributes:
        derivative: Shape of x; None before the first step, and where nothing is carried.
    """

    derivative: Tensor | None


class Euler:
    """x' = x + (s' - s) * d(x, s); one evaluation, order 1. In the VE space this is the DDIM step."""

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
        """One step; see Stepper."""
        derivative, denoised = denoiser.evaluate(x, sigma)
        return Step(x + (sigma_next - sigma) * derivative, denoised)


class Midpoint:
    """x' = x + h * d(x + h/2 * d(x, s), s + h/2), h = s' - s; two evaluations, order 2.

    RF-Solver's second-order Taylor step with its finite difference written out is this formula.
    """

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
        """One step; see Stepper."""
        h = sigma_next - sigma
        middle = x + 0.5 * h * denoiser.evaluate(x, sigma).derivative
        derivative, denoised = denoiser.evaluate(middle, sigma + 0.5 * h)
        return Step(x + h * derivative, denoised)


class FireFlow:
    """Midpoint whose first stage is the previous step's midpoint derivative; one evaluation a step and one more."""

    def __init__(self) -> None:
        self.derivative: Tensor | None = None

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
        """One step; see Stepper."""
        h = sigma_next - sigma
        previous = denoiser.evaluate(x, sigma).derivative if self.derivative is None else self.derivative
        derivative, denoised = denoiser.evaluate(x + 0.5 * h * previous, sigma + 0.5 * h)
        self.derivative = derivative
        return Step(x + h * derivative, denoised)


class DDIMPredictor:
    """x' = x + (s' - s) * d(c*x, s'), c = sqrt(1 + s'^2) / sqrt(1 + s^2) for VE and 1 for flow; rising sigmas only.

    The lower latent is shown to the network with the higher timestep and the network's tensor unchanged: in VE the
    network sees x / sqrt(1 + s^2), so the state that stands for that tensor at s' is c*x.
    """

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
        """One step; see Stepper."""
        scale = math.sqrt((1.0 + sigma_next**2) / (1.0 + sigma**2)) if denoiser.space == "ve" else 1.0
        derivative, denoised = denoiser.evaluate(scale * x, sigma_next)
        return Step(x + (sigma_next - sigma) * derivative, denoised)
