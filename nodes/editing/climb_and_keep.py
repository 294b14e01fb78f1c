"""RF-Edit on the host: a climb that keeps what the edit will read, and the way down that reads it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...attention import SOURCE, TARGET, AttentionPlan, ClimbCache, RunCache, Step, place
from ...core.denoiser import Denoiser, work_dtype
from ...inversion import Inversion, SingleState, sigmas_asked
from ..attending.attended import Attended
from ..host.parametrisation import model_sampling_of, sigma_floor, space_of
from ..host.session import Branch, Call, Forward, Guider
from ..inverting.link import LinkedInversion
from ..inverting.runs import Climb, run_invert

GIGABYTE = 2**30

_logger = logging.getLogger(__name__)


class KeepingAttention(Attended):
    """Keeps what rules of the edit read from the source while that climbs.

    The first evaluation is counted, so that the size of the whole is known while nothing has been spent yet.

    Args:
        model: The MODEL.
        source: The source.
        plan: What the edit reads.
        cache: Where it is kept.
        steps: What is kept, an entry for each evaluation.
        told: Told the bytes of the whole after the first evaluation; what it raises ends the run.
    """

    def __init__(
        self,
        model: Any,
        source: Branch,
        plan: AttentionPlan,
        cache: ClimbCache,
        steps: tuple[Step, ...],
        told: Callable[[int], None],
    ) -> None:
        super().__init__(model, {SOURCE: source, TARGET: source}, plan, cache=cache)
        self._climb = cache
        self._steps = steps
        self._told = told
        self._counting = True

    def step(self, options: dict[str, Any], sigma: float) -> Step:
        """Return where it is read what a climb sees at a sigma; the first entry while the size is not known."""
        return self._steps[0] if self._counting else self._climb.upward(sigma)

    def forwards(
        self,
        guider: Guider,
        call: Call,
        states: Mapping[str, torch.Tensor],
        sigmas: torch.Tensor,
        options: dict[str, Any],
        answers: dict[tuple[str, str], torch.Tensor],
    ) -> Generator[Forward, None, None]:
        """Yield the forwards of a call; see Attention."""
        forwards = super().forwards(guider, call, states, sigmas, options, answers)
        if not self._counting:
            yield from forwards
            return
        self._climb.measure(float(sigmas[0]))
        try:
            yield from forwards
        finally:
            self._counting = False
            self._climb.measured()
        assert self._climb.each is not None
        self._told(self._climb.each * len(self._steps))


@dataclass(frozen=True)
class Keeping:
    """How much is kept, and where.

    Attributes:
        limit: Largest size in bytes.
        on_device: Bytes of it that may stay on the device.
        aligned: Whether it is kept by the sigma instead of the step.
        told: Told the size, as a sentence, as soon as it is known.
    """

    limit: int
    on_device: int
    aligned: bool
    told: Callable[[str], None]


def climb_and_keep(
    model: Any, source: Branch, latent: dict[str, Any], climb: Climb, plan: AttentionPlan, keeping: Keeping
) -> tuple[LinkedInversion, ClimbCache, str]:
    """Invert a LATENT and keep what a plan reads from it.

    Args:
        model: The MODEL; it is not changed.
        source: What describes the source.
        latent: The LATENT.
        climb: How it is taken into the noise; by a method of one state.
        plan: What the edit reads.
        keeping: How much is kept, and where.

    Returns:
        The inversion, what was kept, and its size as a sentence.

    Raises:
        ValueError: If it would exceed the limit, or an input does not fit.
    """
    method, sigmas, index = climb.method, climb.sigmas, climb.index
    if not isinstance(method, SingleState) or method.needs_gradients:
        raise ValueError(
            f"method must keep one state to keep its attention, got {method.name}; use midpoint or fireflow, or "
            "evaluate the source beside the edit."
        )
    space = space_of(model_sampling_of(model))
    floor = sigma_floor(model, space, work_dtype(model.load_device))
    up, down = sigmas_asked(method, sigmas, index, space, floor)
    lowest = Denoiser(lambda x, sigma: x, space, floor).sigma_floor
    falling = (*sigmas[index:0:-1], max(sigmas[0], lowest))
    cache = ClimbCache(
        RunCache(keeping.limit, keeping.on_device), falling, plan.start().active, keeping.aligned, not plan.reads_uncond
    )
    cache.check(up, down)
    steps = cache.steps(up)
    sentences: list[str] = []

    def size(total: int) -> None:
        sentences.append(
            f"attention kept of the source: {total / GIGABYTE:.3g} GB for {len(steps)} evaluations, of "
            f"{keeping.limit / GIGABYTE:.3g} GB"
        )
        _logger.info("Retrace: %s.", sentences[0])
        keeping.told(sentences[0])
        if total > keeping.limit:
            raise ValueError(
                f"memory must be at least {total / GIGABYTE:.3g} GB to keep the attention of {len(steps)} evaluations, "
                f"got {keeping.limit / GIGABYTE:.3g} GB; raise it, inject fewer steps or layers, or evaluate the "
                "source beside the edit."
            )

    def at_top(denoiser: Denoiser, inversion: Inversion, device: torch.device) -> None:
        if keeping.aligned:
            denoiser(inversion.x.to(device), inversion.sigma)
        cache.cache.freeze()

    attention = KeepingAttention(model, source, plan, cache, steps, size)
    inversion = run_invert(model, source, latent, climb, attention, at_top)
    return inversion, cache, sentences[0]


def describe_beside(climb: Climb, plan: AttentionPlan, model: Any) -> str:
    """Return what it costs to evaluate the source beside an edit instead of keeping it."""
    space = space_of(model_sampling_of(model))
    _, down = sigmas_asked(climb.method, climb.sigmas, climb.index, space)
    falling, run = climb.sigmas[climb.index :: -1], plan.start()
    count = sum(run.active(place(falling, sigma)) for sigma in down)
    return f"nothing is kept: the source is evaluated beside the edit, {count} evaluations more"
