"""When a rule acts: a step of the sampler, and a window of steps."""

from __future__ import annotations

from dataclasses import dataclass

# Far below 1/n of any schedule, far above the rounding of i/n.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Step:
    """One evaluation of a network within a sampling run.

    Attributes:
        index: Step i, 0 at the noisiest level; number of the levels after the first that are at least sigma.
        total: Number of steps n.
        sigma: Noise level of the evaluation.
        evaluation: Which evaluation of the step, 0 at a level of the schedule.
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
