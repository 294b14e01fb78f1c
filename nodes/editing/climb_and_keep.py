"""RF-Edit on the host: a climb that keeps what the edit will read, and the way down that reads it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from ...attention import AttentionPlan, ClimbCache, RunCache, Step, place
from ...inversion import Denoiser, Inversion, Method, SingleState, sigmas_asked, strength_to_index, work_dtype
from ..attending.branches import Branch, BranchGuider
from ..attending.replay import SOURCE, TARGET
from ..host.parametrisation import model_sampling_of, sigma_floor, space_of
from ..inverting.link import Bundle
from ..inverting.runs import run_invert

GIGABYTE = 2**30

_logger = logging.getLogger(__name__)


class ClimbGuider(BranchGuider):
    """Answers for the source alone and keeps what rules of the edit read from it.

    The first evaluation is counted, so that the size of the whole is known while nothing has been spent yet.
    """

    def __init__(
        self,
        model: Any,
        source: Branch,
        plan: AttentionPlan,
        climb_cache: ClimbCache,
        steps: tuple[Step, ...],
        told: Callable[[int], None],
    ) -> None:
        """Set up the branch.

        Args:
            model: The MODEL; it is not changed.
            source: The source.
            plan: What the edit reads.
            climb_cache: Where it is kept.
            steps: What is kept, an entry for each evaluation.
            told: Told the bytes of the whole after the first evaluation; what it raises ends the run.
        """
        super().__init__(model, {SOURCE: source, TARGET: source}, plan, cache=climb_cache)
        self._climb_cache = climb_cache
        self._steps = steps
        self._told = told
        self._counting = False

    def step(self, options: dict[str, Any], sigma: float) -> Step:
        """Return where it is read what a climb sees at a level."""
        return self._steps[0] if self._counting else self._climb_cache.upward(sigma)

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Return the source's guided denoised."""
        options = self.asking(model_options, [SOURCE], [SOURCE])
        if self._climb_cache.each is not None:
            return super().predict_noise(x, timestep, options, seed)
        self._climb_cache.measure(float(timestep[0]))
        self._counting = True
        try:
            answer = super().predict_noise(x, timestep, options, seed)
        finally:
            self._counting = False
            self._climb_cache.measured()
        self._told(self._climb_cache.each * len(self._steps))
        return answer


def climb_and_keep(
    model: Any,
    source: Any,
    latent: dict[str, Any],
    sigmas: tuple[float, ...],
    strength: float,
    method: Method,
    plan: AttentionPlan,
    limit: int,
    on_device: int,
    aligned: bool,
    cfg: float = 1.0,
    negative: Any = None,
    told: Callable[[str], None] | None = None,
    keep_path: bool = False,
) -> tuple[Bundle, ClimbCache, str]:
    """Invert a LATENT and keep what a plan reads from it.

    Args:
        model: The MODEL; it is not changed.
        source: CONDITIONING that describes the source.
        latent: The LATENT.
        sigmas: Rising levels from 0.
        strength: Fraction of the steps to climb, in (0, 1].
        method: How to climb; a method of one state.
        plan: What the edit reads.
        limit: Largest size of what is kept, in bytes.
        on_device: Bytes of it that may stay on the device.
        aligned: Whether it is kept by the level instead of the step.
        cfg: Guidance scale of the climb.
        negative: CONDITIONING, needed when cfg is not 1.
        told: Told the size, as a sentence, as soon as it is known.
        keep_path: Whether to record the state of every step.

    Returns:
        The inversion, what was kept, and its size as a sentence.

    Raises:
        ValueError: If it would exceed the limit, or an input does not fit.
    """
    if not isinstance(method, SingleState) or method.needs_gradients:
        raise ValueError(
            f"method must keep one state to keep its attention, got {method.name}; use midpoint or fireflow, or "
            "evaluate the source beside the edit."
        )
    level = strength_to_index(strength, len(sigmas) - 1)
    sampling = model_sampling_of(model)
    space = space_of(sampling)
    floor = sigma_floor(sampling, space, work_dtype(model.load_device))
    up, down = sigmas_asked(method, sigmas, level, space, floor)
    probe = plan.start()
    lowest = Denoiser(lambda x, sigma: x, space, floor).sigma_floor
    falling = (*sigmas[level:0:-1], max(sigmas[0], lowest))
    shared = not plan.reads_uncond
    climb_cache = ClimbCache(RunCache(limit, on_device), falling, probe.active, aligned, shared)
    climb_cache.check(up, down)
    steps = climb_cache.steps(up)
    sentences: list[str] = []

    def size(total: int) -> None:
        sentence = (
            f"attention kept of the source: {total / GIGABYTE:.3g} GB for {len(steps)} evaluations, of "
            f"{limit / GIGABYTE:.3g} GB"
        )
        sentences.append(sentence)
        _logger.info("Retrace: %s.", sentence)
        if told is not None:
            told(sentence)
        if total > limit:
            raise ValueError(
                f"memory must be at least {total / GIGABYTE:.3g} GB to keep the attention of {len(steps)} evaluations, "
                f"got {limit / GIGABYTE:.3g} GB; raise it, inject fewer steps or layers, or evaluate the source beside "
                "the edit."
            )

    def at_top(denoiser: Denoiser, record: Inversion, device: torch.device) -> None:
        if aligned:
            denoiser(record.x.to(device), record.sigma)
        climb_cache.cache.freeze()

    guider = ClimbGuider(model, Branch(source, negative if cfg != 1.0 else None, cfg), plan, climb_cache, steps, size)
    bundle = run_invert(
        model, source, latent, sigmas, strength, method, cfg, negative, keep_path, guider=guider, at_top=at_top
    )
    return bundle, climb_cache, sentences[0]


def describe_beside(method: Method, sigmas: tuple[float, ...], level: int, plan: AttentionPlan, model: Any) -> str:
    """Return what it costs to evaluate the source beside an edit instead of keeping it."""
    space = space_of(model_sampling_of(model))
    _, down = sigmas_asked(method, sigmas, level, space)
    falling, run = sigmas[level::-1], plan.start()
    count = sum(run.active(place(falling, sigma)) for sigma in down)
    return f"nothing is kept: the source is evaluated beside the edit, {count} evaluations more"
