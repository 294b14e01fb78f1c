"""EDICT: two coupled states that step in turn, each with the model's answer at the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.denoiser import Denoiser
from ...core.settings import parameter
from ...core.space import Space
from ...core.steps import Step
from ...core.walk import AfterStep, OnStep, walk
from ..coupled import Coupled, Descent, Shear, mate_of
from ..inversion import Inversion
from ..method import MethodState, Path

# The paper's mixing, for 50 steps.
OFFICIAL_P = 0.93
# Going up, the mixing multiplies x - y by p^-2 a step. exp(-1.5 / N) bounds the product over N steps by exp(3), which
# keeps the inverted noise within 1.0 to 1.4 of its right strength for 20 to 200 steps on an exact model.
LARGEST_EXPONENT = 1.5
# Beyond the seven digits of float32 such a growth leaves neither noise nor a round trip.
LARGEST_GROWTH = 1e7


@dataclass(frozen=True)
class EDICT(Coupled):
    """A pair (x, y) at each sigma, stepped and mixed.

    Down, from s to t:

        x' = x + (t - s) * d(y, s)
        y' = y + (t - s) * d(c(x'), s)          c(x) = sqrt(1 + s^2) / sqrt(1 + t^2) * x for VE, x for flow
        x <- p * x' + (1 - p) * y'
        y <- p * y' + (1 - p) * x               with the new x

    c(x) is the state at s for which the network is shown what it is shown for x at t. Every other step, counted from
    the noisiest, x and y change places in the first two lines. Each line is undone by algebra; going up, they run
    backwards from x = y = x0. The model is only asked at the noisier sigma, never at 0.
    """

    name = "edict"
    label = "EDICT"
    description = "Comes back exactly, two model calls a step, first order. The pair damps what a new prompt stirs up."
    reference = "Wallace et al. 2022, EDICT: Exact Diffusion Inversion via Coupled Transformations, arXiv:2211.12446"
    order = 1
    reversible = True
    added = (0, 1, 0)
    p: float = parameter(
        0.0,
        "How the two states are mixed after each step. 0 chooses max(0.93, exp(-1.5 / steps)), which keeps the noise "
        "sound; 0.93 is the paper's, for 50 steps. Values from 0.5.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0.0 < self.p < 0.5:
            raise ValueError(f"p of method edict must be 0 or at least 0.5, got {self.p:g}; 0 chooses it by the steps.")

    def mixing(self, steps: int) -> float:
        """The p that is used on a grid of so many steps."""
        return self.p if self.p else max(OFFICIAL_P, math.exp(-LARGEST_EXPONENT / steps))

    def check(self, sigmas: Sequence[float], index: int) -> None:
        """Refuse a p with which the way up diverges.

        Raises:
            ValueError: If x - y would grow beyond what float32 can tell apart.
        """
        smallest = LARGEST_GROWTH ** (-0.5 / index)
        if self.mixing(len(sigmas) - 1) < smallest:
            enough = min(1.0, math.ceil(smallest * 100.0) / 100.0)
            raise ValueError(
                f"p of method edict must be 0 or at least {enough:.2f} to climb {index} steps, got {self.p:g}; "
                "set it to 0, or use fewer steps."
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
        """Walk up; see Method.invert."""
        self.check(sigmas, index)
        stepper = _Sheared(reversed(self._steps(sigmas, index)), x0)
        path = Path(x0, keep_path)
        x = walk(denoiser, x0, sigmas[: index + 1], stepper, on_step, path)
        return MethodState(x, mate=stepper.mate, path=path.states)

    def replay(
        self,
        inversion: Inversion,
        source: Denoiser,
        target: Denoiser | None = None,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Walk down; see Method.replay. after_step is applied to both states, which both end as the result."""
        x = inversion.x.to(device)
        stepper = _Sheared(iter(self._steps(inversion.sigmas, inversion.index)), mate_of(inversion, x))

        def after_both(x: Tensor, index: int) -> Tensor:
            assert after_step is not None
            x, stepper.mate = after_step(x, index), after_step(stepper.mate, index)
            return x

        denoiser = source if target is None else target
        return walk(denoiser, x, inversion.falling, stepper, on_step, after_step and after_both)

    def descent(self, space: Space, sigmas: Sequence[float], index: int) -> Descent:
        """Each of the four lines of a step is a shear; see Coupled.descent."""
        return Descent(tuple(shear for step in self._steps(sigmas, index) for shear in step), 0)

    def _steps(self, sigmas: Sequence[float], index: int) -> list[tuple[Shear, ...]]:
        """The shears of each step down, from the noisiest."""
        p, steps = self.mixing(len(sigmas) - 1), list[tuple[Shear, ...]]()
        for i in range(index, 0, -1):
            s, t = sigmas[i], sigmas[i - 1]

            def first(denoiser: Denoiser, y: Tensor, s: float = s, t: float = t) -> Step:
                derivative, denoised = denoiser.evaluate(y, s)
                return Step((t - s) * derivative, denoised)

            def second(denoiser: Denoiser, x: Tensor, s: float = s, t: float = t) -> Step:
                # The network of a VE model sees x / sqrt(1 + sigma^2).
                scale = math.sqrt((1.0 + s**2) / (1.0 + t**2)) if denoiser.space == "ve" else 1.0
                return first(denoiser, scale * x, s, t)

            def share(denoiser: Denoiser, other: Tensor) -> Step:
                return Step((1.0 - p) * other, other)

            x, y = (0, 1) if (index - i) % 2 == 0 else (1, 0)
            steps.append(
                (Shear(x, 1.0, first, s), Shear(y, 1.0, second, s), Shear(0, p, share, s), Shear(1, p, share, s))
            )
        return steps

    def evaluations(self, index: int, rising: bool = True) -> int:
        """Two a step."""
        return 2 * index

    def mate(self, denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], index: int) -> Tensor:
        """The state itself, without a call."""
        return x


class _Sheared:
    """Carries a state and its mate through the shears of each step: down as they stand, up undone from the last."""

    def __init__(self, steps: Iterator[tuple[Shear, ...]], mate: Tensor) -> None:
        self._steps = steps
        self.mate = mate

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
        pair, denoised, shears = [x, self.mate], x, next(self._steps)
        rising = sigma_next > sigma
        for number in (3, 2, 1, 0) if rising else (0, 1, 2, 3):
            moved, scale, move, _ = shears[number]
            step = move(denoiser, pair[1 - moved])
            pair[moved] = (pair[moved] - step.x) / scale if rising else scale * pair[moved] + step.x
            if number < 2:  # the others mix the two states and ask no model
                denoised = step.denoised
        x, self.mate = pair
        return Step(x, denoised)
