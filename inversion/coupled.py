"""Methods that carry two states, so that a step can be undone by algebra instead of by a second look at the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.space import Space
from ..core.steps import Euler, Step
from ..core.walk import AfterStep, OnStep, StepReport, walk
from .inversion import Inversion
from .method import Method, MethodState, Path


def two_step(
    x_prev: Tensor,
    x: Tensor,
    derivative: Tensor,
    sigma_prev: float,
    sigma: float,
    sigma_next: float,
    ratio: float,
) -> Tensor:
    """Go past x at sigma, away from x_prev, to sigma_next.

        x_next = x + (s_next - s) * d + r * (x_prev - x - (s_prev - s) * d),   d = d(x, s)

    A straight line along d, corrected by r times what the line to the other side missed. With x_next and x_prev
    exchanged and 1/r for r this is the same equation, solved for x_prev: the step is its own inverse. r = 0 is Euler.

    Args:
        x_prev: State on the side that the walk comes from.
        x: State in the middle.
        derivative: dx/dsigma at the middle.
        sigma_prev: Sigma of x_prev.
        sigma: Sigma of x.
        sigma_next: Sigma wanted, on the other side of sigma than sigma_prev.
        ratio: r.

    Returns:
        State at sigma_next, shape of x.
    """
    line = x + (sigma_next - sigma) * derivative
    return line + ratio * (x_prev - x - (sigma_prev - sigma) * derivative)


class Shear(NamedTuple):
    """u <- scale * u + move(denoiser, v), where u is one of two states and v the other.

    Undone by algebra, u <- (u - move(denoiser, v)) / scale, whatever the move is.

    Attributes:
        moved: Which of the two states is u: 0 or 1.
        scale: Not 0.
        move: Takes the denoiser and v; gives what is added, and the clean latent that the model predicted, or v.
        sigma: Sigma at which the model is asked, for messages.
    """

    moved: int
    scale: float
    move: Callable[[Denoiser, Tensor], Step]
    sigma: float


class Descent(NamedTuple):
    """The way down of a pair, written as shears of the states (x_k, mate).

    Attributes:
        shears: In walking order.
        result: Which of the two states is the result: 0 or 1.
    """

    shears: tuple[Shear, ...]
    result: int


@dataclass(frozen=True)
class Coupled(Method):
    """A method whose state is x_k and a mate."""

    @abstractmethod
    def descent(self, space: Space, sigmas: Sequence[float], index: int) -> Descent:
        """The way down that `replay` takes, step by step invertible, for gradients that keep no path.

        Args:
            space: "ve" or "flow".
            sigmas: Ascending grid.
            index: Index of x_k, min_index .. len(sigmas) - 1.
        """

    @abstractmethod
    def mate(self, denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], index: int) -> Tensor:
        """A mate for a state that has none: one to sample from, which does not come back to any source.

        Args:
            denoiser: The model under the conditioning to sample with.
            x: State at sigmas[index].
            sigmas: Ascending grid.
            index: Index of x.
        """

    def check(self, sigmas: Sequence[float], index: int) -> None:
        """Refuse settings that do not work on a grid; none by default.

        Raises:
            ValueError: If the walk would diverge.
        """


class _TwoStepper:
    """`two_step` in walking order; Euler where there is no state before. `before` is that state and its sigma."""

    def __init__(
        self, ratio: Callable[[float, float, float, Space], float], before: tuple[Tensor, float] | None = None
    ) -> None:
        self._ratio = ratio
        self.before = before

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
        derivative, denoised = denoiser.evaluate(x, sigma)
        if self.before is None:
            x_next = x + (sigma_next - sigma) * derivative
        else:
            x_prev, sigma_prev = self.before
            ratio = self._ratio(sigma_prev, sigma, sigma_next, denoiser.space)
            x_next = two_step(x_prev, x, derivative, sigma_prev, sigma, sigma_next, ratio)
        self.before = x, sigma
        return Step(x_next, denoised)


@dataclass(frozen=True)
class TwoStep(Coupled):
    """A member of the two-step family; the mate of x_k is x_{k-1}.

    Up it begins with an Euler step from x0. Down the pair itself is the beginning, so the highest step costs no
    call. A method of the family says only what its ratio is.
    """

    reversible = True
    min_index = 2

    @abstractmethod
    def ratio(self, sigma_high: float, sigma: float, sigma_low: float, space: Space) -> float:
        """The ratio r of `two_step` for the way down, from sigma_high past sigma to sigma_low; 1/r is used going up."""

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
        stepper = _TwoStepper(lambda low, sigma, high, space: 1.0 / self.ratio(high, sigma, low, space))
        path = Path(x0, keep_path)
        x = walk(denoiser, x0, sigmas[: index + 1], stepper, on_step, path)
        assert stepper.before is not None
        return MethodState(x, mate=stepper.before[0], path=path.states)

    def replay(
        self,
        inversion: Inversion,
        source: Denoiser,
        target: Denoiser | None = None,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Walk down; see Method.replay."""
        denoiser = source if target is None else target
        index, falling = inversion.index, inversion.falling
        above = inversion.x.to(device)
        x = self.begin(inversion, source, target, above)
        if after_step is not None:
            x = after_step(x, index - 1)

        def told(report: StepReport) -> None:
            assert on_step is not None
            if report.index == 0:
                # The first step is the mate. Its report waits for the first prediction, which is that of the mate.
                on_step(StepReport(0, index, falling[0], falling[1], x, report.denoised))
            on_step(replace(report, index=report.index + 1, total=index))

        stepper = _TwoStepper(self.ratio, (above, falling[0]))
        return walk(denoiser, x, falling[1:], stepper, None if on_step is None else told, after_step)

    def descent(self, space: Space, sigmas: Sequence[float], index: int) -> Descent:
        """x_{i-1} = r * x_{i+1} + A(x_i), A being `two_step` without its x_prev; see Coupled.descent."""

        def shear(i: int) -> Shear:
            around = (sigmas[i + 1], sigmas[i], sigmas[i - 1])
            ratio = self.ratio(*around, space)

            def move(denoiser: Denoiser, x: Tensor) -> Step:
                derivative, denoised = denoiser.evaluate(x, sigmas[i])
                return Step(two_step(torch.zeros_like(x), x, derivative, *around, ratio), denoised)

            return Shear((index - 1 - i) % 2, ratio, move, sigmas[i])

        # x_{k-2} is the first to be made, in the place of x_k.
        return Descent(tuple(shear(i) for i in range(index - 1, 0, -1)), index % 2)

    def evaluations(self, index: int, rising: bool = True) -> int:
        """One a step; none for the first step down."""
        return index if rising else index - 1

    def mate(self, denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], index: int) -> Tensor:
        """The state one Euler step below x; one call."""
        return Euler()(denoiser, x, sigmas[index], sigmas[index - 1]).x

    def begin(self, inversion: Inversion, source: Denoiser, target: Denoiser | None, x: Tensor) -> Tensor:
        """The state below x_k with which a replay begins: the mate."""
        return mate_of(inversion, x)


def mate_of(inversion: Inversion, like: Tensor) -> Tensor:
    """The mate of an inversion, on the device of a tensor.

    Raises:
        ValueError: If the inversion has none.
    """
    if inversion.mate is None:
        raise ValueError(
            f"An inversion of method {inversion.method} must hold two states, got one; "
            "invert again, the second cannot be computed from the first."
        )
    return inversion.mate.to(like.device)
