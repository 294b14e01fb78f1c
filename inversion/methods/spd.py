"""SPDInv: the state from which the step down would arrive, found by gradient descent through the network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.adam import Adam
from ...core.denoiser import Denoiser
from ...core.fitting import Attempt, fit
from ...core.settings import Scalar, parameter
from ...core.steps import DDIMPredictor, Euler, Step, Stepper
from ..gradient import pull_back, watch
from ..method import SingleState

# Of torch's AdamW, which the published code leaves at its default.
WEIGHT_DECAY = 1e-2


class GradientDescent:
    """Going up, x' with x' = x + (s' - s) * d(x', s'), by descent from the state that `DDIMPredictor` gives.

        loss(z) = mean (z - a (x + (s' - s) d(z / a, s')))^2        z = a x', a = 1 / sqrt(1 + s'^2) for VE, 1 for flow

    The scale a makes z the variance-preserving latent of the paper, for which its rate and threshold hold. Rows of a
    batch descend each for itself and stop each for itself; of what a row has tried it keeps the best.

    Attributes:
        losses: Of each step the loss at its start and at its end, each of the worst row.
        updates: Updates of each step.
    """

    def __init__(self, iterations: int, learning_rate: float, stop: float) -> None:
        self._iterations, self._rate, self._stop = iterations, learning_rate, stop
        self.losses: list[tuple[float, float]] = []
        self.updates: list[int] = []

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
        """One step; see Stepper."""
        h, watched = sigma_next - sigma, watch(denoiser)
        scale = 1.0 / math.sqrt(1.0 + sigma_next**2) if denoiser.space == "ve" else 1.0
        # Whatever the caller's mode: a state made in inference mode could not carry a gradient.
        with torch.inference_mode(False), torch.no_grad():
            below = x.detach().clone()
            start = scale * DDIMPredictor()(denoiser, below, sigma, sigma_next).x

        def attempt(z: Tensor, number: int, wanted: bool) -> Attempt:
            leaf = z.detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                derivative, denoised = (watched if wanted else denoiser).evaluate(leaf / scale, sigma_next)
                missed = leaf - scale * (below + h * derivative)
            gradient = None
            if wanted:
                (gradient,) = pull_back([missed], [2.0 / missed[0].numel() * missed.detach()], [leaf], sigma_next)
            rows = missed.detach().square().flatten(1).mean(1)
            return Attempt(rows, (denoised.detach(),), gradient)

        fitted = fit(start, attempt, Adam(self._rate, WEIGHT_DECAY).step, self._iterations, self._stop)
        self.losses.append((float(fitted.first.max()), float(fitted.score.max())))
        self.updates.append(fitted.updates)
        return Step(fitted.value / scale, fitted.parts[0])


@dataclass(frozen=True)
class SPD(SingleState):
    """Up: descend on the squared distance from the fixed point x' = x + (s' - s) * d(x', s'). Down: Euler.

    As published, save that each row of a batch stops for itself and keeps the best that it has tried, which is the
    last unless an update went too far.

    The inversion's meta tells the loss that each step was left with ("losses"), the largest ("loss") and the number of
    updates ("updates").
    """

    name = "spd"
    label = "SPDInv (gradient fixed point)"
    description = "Plain Euler on the way down, found backwards by gradients. Slow; nearest where steps are small."
    reference = "Li et al. 2024, Source Prompt Disentangled Inversion, arXiv:2403.11105"
    order = 1
    added = (0, 1, 0)
    needs_gradients = True
    stops_early = True
    iterations: int = parameter(25, "Most updates of each step up.", minimum=1, maximum=1000)
    learning_rate: float = parameter(
        1e-3,
        "Of AdamW: how far an update may move a number of the latent. More than 0.002 overshoots.",
        minimum=0.0,
        maximum=1.0,
        step=1e-4,
    )
    stop: float = parameter(
        5e-6,
        "A step is done when its mean squared residual is below this. 0 always makes all updates.",
        minimum=0.0,
        maximum=1.0,
        step=1e-7,
    )

    def up(self) -> Stepper:
        """Stepper for rising sigmas."""
        return GradientDescent(self.iterations, self.learning_rate, self.stop)

    def down(self) -> Stepper:
        """Stepper for falling sigmas."""
        return Euler()

    def evaluations(self, index: int, rising: bool = True) -> int:
        """At most one for each update, one before and one after them, of each step up; one a step down."""
        return (self.iterations + 2) * index if rising else index

    def remarks(self, stepper: Stepper) -> dict[str, Scalar]:
        """Losses of the climb; see the class."""
        assert isinstance(stepper, GradientDescent)
        last = [after for _, after in stepper.losses]
        listed = " ".join(f"{before:.2e}>{after:.2e}" for before, after in stepper.losses)
        return {"loss": max(last), "losses": listed, "updates": sum(stepper.updates)}
