"""When a rule acts: a step of the sampler, and a window of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

# Far below 1/n of any schedule, far above the rounding of i/n.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Step:
    """One evaluation of a network within a sampling run.

    Attributes:
        index: Step i, 0 at the noisiest level; number of the sigmas after the first that are at least its own.
        total: Number of steps n.
        sigma: Noise level of the evaluation.
        evaluation: Which evaluation of the step, 0 at a sigma of the schedule.
    """

    index: int
    total: int
    sigma: float
    evaluation: int = 0

    @property
    def fraction(self) -> float:
        """I / n."""
        return self.index / max(self.total, 1)


@dataclass(frozen=True)
class Window:
    """Steps with start <= i / n < end; a window that ends at 1 holds the last step whatever its fraction."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(
                f"start and end must satisfy 0 <= start <= end <= 1, got {self.start} and {self.end}; start is the "
                "noisy end."
            )

    def holds(self, step: Step) -> bool:
        """Whether a step lies in the window."""
        fraction = step.fraction
        if self.start >= self.end:
            return False
        before = self.end >= 1.0 or fraction < self.end - TOLERANCE
        return self.start - TOLERANCE <= fraction and before


ALWAYS = Window()


def place(sigmas: Sequence[float], sigma: float) -> Step:
    """Where sigma stands among those of a run; in a rising run, all is mirrored.

    Args:
        sigmas: Noise levels in walking order.
        sigma: A noise level.
    """
    total = len(sigmas) - 1
    # float32 SIGMAS against sigmas in double precision.
    near = 1e-5 * max(1e-3, abs(sigma))
    if sigmas[-1] < sigmas[0]:
        passed = sum(each >= sigma - near for each in sigmas[1:])
    else:
        passed = sum(each <= sigma + near for each in sigmas[1:])
    index = min(passed, max(total - 1, 0))
    between = abs(sigmas[index] - sigma) > near
    return Step(index=index, total=total, sigma=sigma, evaluation=int(between))


def mirrored(step: Step) -> Step:
    """The step between the same two sigmas in a walk the other way."""
    return replace(step, index=step.total - 1 - step.index)
