"""What a source leaves inside attention while it climbs into the noise, for the edit that comes down.

RF-Edit (Wang et al. 2024, arXiv:2411.04746) and FireFlow (Deng et al. 2024, arXiv:2412.07517) keep values of the
inversion instead of asking for the source a second time. A step i, between s_i and s_(i+1), is asked at its
lower end and, in methods of second order, in its middle; on the way down it is asked at its upper end and in its
middle. Two ways to bring both together:

    as published: by the step. The middle is the same sigma; what is read at s_(i+1) was seen at s_i.
    aligned:      by the sigma. What is read at s_(i+1) was seen there, by the next step; the climb asks once more at
                  its top, where no step begins.

An end of a step at which the climb did not ask (FireFlow asks in the middle alone) takes what was seen in its middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from .cached_operand import CachedOperand
from .rows import Who
from .rules import Name
from .run_cache import RunCache, bytes_of
from .sites import Site
from .timing import Step, mirrored, place


class ClimbCache:
    """A cache that is filled on the way up and read on the way down.

    Args:
        cache: What holds the operands.
        sigmas: Noise levels of the way down, falling.
        acts: Whether a rule reads in a step.
        aligned: See the module.
        cond_only: Whether what the uncond chunk of the source shows is read by nobody.
    """

    def __init__(
        self,
        cache: RunCache,
        sigmas: Sequence[float],
        acts: Callable[[Step], bool],
        aligned: bool = False,
        cond_only: bool = True,
    ):
        self.cache = cache
        self.sigmas = tuple(float(sigma) for sigma in sigmas)
        self.acts = acts
        self.aligned = aligned
        self._cond_only = cond_only
        self._each: int | None = None
        self._measured: Step | None = None

    @property
    def each(self) -> int | None:
        """Bytes of one evaluation, None before one was measured."""
        return self._each

    def upward(self, sigma: float) -> Step:
        """Where on the way down it is read what a climb sees at sigma."""
        if self.aligned:
            return place(self.sigmas, sigma)
        return mirrored(place(self.sigmas[::-1], sigma))

    def downward(self, sigma: float) -> Step:
        """The step of sigma on the way down."""
        return place(self.sigmas, sigma)

    def steps(self, asked: Iterable[float]) -> tuple[Step, ...]:
        """What is kept of a climb that asks at these sigmas; later ones take the place of earlier ones.

        Args:
            asked: Sigmas at which the climb asks, in its order.
        """
        asked = [*asked, self.sigmas[0]] if self.aligned else list(asked)
        last = {(step.index, step.evaluation): step for step in map(self.upward, asked) if self.acts(step)}
        return tuple(last.values())

    def check(self, climbed: Iterable[float], asked: Iterable[float]) -> None:
        """Refuse a pair of walks of which the way down reads what the climb does not see.

        Args:
            climbed: Sigmas at which the climb asks.
            asked: Sigmas at which the way down asks.

        Raises:
            ValueError: If a step has nothing to read.
        """
        seen = {(step.index, step.evaluation) for step in self.steps(climbed)}
        for step in map(self.downward, asked):
            if self.acts(step) and not {(step.index, step.evaluation), (step.index, 1)} & seen:
                raise ValueError(
                    f"The inversion must ask the model within step {step.index + 1} of {step.total} to keep what the "
                    "edit reads there, got a method that does not; use midpoint or fireflow, or evaluate the source "
                    "beside the edit."
                )

    def measure(self, sigma: float) -> None:
        """Count the bytes of the coming evaluation, at this sigma, until `measured` is called."""
        self._each = 0
        self._measured = self.upward(sigma)

    def measured(self) -> None:
        """End of the evaluation that was counted."""
        self._measured = None

    def put(self, site: Site, step: Step, who: Who, name: Name, operand: CachedOperand) -> None:
        """Keep an operand, or only count it; see Cache."""
        if self._cond_only and who[1].partition(":")[0] != "cond":
            return
        if self._measured is not None:
            assert self._each is not None
            self._each += bytes_of(operand)
            if not self.acts(self._measured):
                return
            step = self._measured
        self.cache.put(site, step, who, name, operand)

    def get(self, site: Site, step: Step, who: Who, name: Name) -> CachedOperand | None:
        """What was kept, of the middle of the step where there is nothing else; see Cache."""
        own = self.cache.get(site, step, who, name)
        return self.cache.get(site, replace(step, evaluation=1), who, name) if own is None else own
