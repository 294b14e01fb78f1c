"""Fixed-point inversion: the state from which the step down would arrive, found by iteration."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ...core.settings import Scalar, parameter
from ...core.steps import Euler, Stepper
from ..fixed_point import ImplicitEuler
from ..method import SingleState

_logger = logging.getLogger(__name__)

# A residual below this is the rounding of float32 networks, which no iteration improves on.
ROUNDING = 1e-6
# A residual that all iterations together did not even bring down to this share of the first one is not shrinking.
SHRUNK = 0.5


@dataclass(frozen=True)
class FixedPoint(SingleState):
    """Up: solve x' = x + (s' - s) * d(x', s'). Down: Euler, which undoes it as nearly as it was solved.

    The inversion's meta tells the relative residual before the last iteration of each step ("residuals"), the largest
    ("residual"), and in how many steps it did not shrink ("diverged"); if there are any, a warning is logged.

    ReNoise: memory 0 and a window of several iterations. AIDI: memory 1 to 3. Uni-Inv: one iteration, warm start.
    """

    name = "fixed_point"
    label = "Fixed point (ReNoise, AIDI)"
    description = "Plain Euler on the way down, found backwards by iteration: as close as you pay for, at cfg 1."
    reference = (
        "Garibi et al. 2024, ReNoise, arXiv:2403.14602; Pan et al. 2023, AIDI, arXiv:2309.04907; "
        "Jiao et al. 2025, UniEdit-Flow (Uni-Inv), arXiv:2504.13109"
    )
    order = 1
    added = (0, 1, 0)
    iterations: int = parameter(5, "Model calls for each step up.", minimum=1, maximum=100)
    memory: int = parameter(
        2,
        "Earlier iterates that Anderson acceleration combines, as in AIDI. 0 is the plain iteration of ReNoise.",
        minimum=0,
        maximum=10,
    )
    window: int = parameter(
        1,
        "Mean of so many of the last iterates, as in ReNoise; needs memory 0. 1 takes the last.",
        minimum=1,
        maximum=100,
    )
    warm_start: bool = parameter(
        False, "Begin each step along the derivative of the step before; with one iteration this is Uni-Inv."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window > 1 and self.memory > 0:
            raise ValueError(
                f"window of method fixed_point must be 1 with memory above 0, got {self.window}; set memory to 0."
            )
        if self.window > self.iterations:
            raise ValueError(
                f"window of method fixed_point must not exceed the iterations {self.iterations}, got {self.window}; "
                "raise the iterations."
            )

    def up(self) -> Stepper:
        """Stepper for rising sigmas."""
        return ImplicitEuler(self.iterations, self.memory, self.window, self.warm_start)

    def down(self) -> Stepper:
        """Stepper for falling sigmas."""
        return Euler()

    def evaluations(self, index: int, rising: bool = True) -> int:
        """The iterations of each step up, one a step down."""
        return self.iterations * index if rising else index

    def remarks(self, stepper: Stepper) -> dict[str, Scalar]:
        """Residuals of the climb; see the class."""
        assert isinstance(stepper, ImplicitEuler)
        last = [step[-1] for step in stepper.residuals]
        diverged = sum(len(step) > 1 and step[-1] > max(SHRUNK * step[0], ROUNDING) for step in stepper.residuals)
        if diverged:
            _logger.warning(
                "Retrace: the fixed point was not found in %d of %d steps, largest residual %.1e; "
                "invert at cfg 1 or with more steps.",
                diverged,
                len(last),
                max(last),
            )
        listed = " ".join(f"{residual:.2e}" for residual in last)
        return {"residual": max(last), "residuals": listed, "diverged": diverged}
