"""Noise optimisation on a model of the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...inversion import (
    Denoiser,
    Inversion,
    MisfitError,
    NoiseReport,
    OnStep,
    SingleState,
    meet,
    noise_optimize,
    own_method,
    with_noise,
    work_dtype,
)
from ..host.checks import check_cfg, refuse_skipping
from ..host.gradients import refuse_quantised
from ..host.latents import into_model, source_samples
from ..host.masks import on_latent_grid
from ..host.unfinished import keep_unfinished
from .link import Bundle, source_of
from .runs import check_model_fits, conditioning_of, run_replay, run_script

_UNFINISHED = "retrace/noise_optimize_unfinished"

Listener = Callable[[NoiseReport], None]


@dataclass(frozen=True)
class DescentSettings:
    """Settings of an optimisation, as in inversion.noise_optimize."""

    norm: str
    iterations: int
    learning_rate: float
    pull: float


def run_noise_optimize(
    model: Any,
    bundle: Bundle,
    reference: dict[str, Any],
    settings: DescentSettings,
    positive: Any = None,
    negative: Any = None,
    cfg: float = 1.0,
    mask: torch.Tensor | None = None,
    feather: int = 0,
    save_unfinished: bool = True,
    tap: Listener | None = None,
) -> tuple[Bundle, dict[str, Any]]:
    """Optimise the noise of an inversion, so that what it is played back to meets a reference.

    Args:
        model: The MODEL that made it; it is not changed.
        bundle: The inversion.
        reference: LATENT to meet, of its size; one picture stands for a whole batch.
        settings: Loss and settings of the optimiser.
        positive: CONDITIONING of the way down; None plays the inversion back under its own.
        negative: Negative CONDITIONING of the way down.
        cfg: Guidance scale of the way down.
        mask: MASK, white where the reference is to be met.
        feather: Width in pixels of the mask of a ramp inside its edge.
        save_unfinished: Whether an interrupt leaves the best so far as a record in the output folder.
        tap: Told of every noise that is tried.

    Returns:
        The inversion with its new noise, and the LATENT that Resample makes of it under these conditionings.

    Raises:
        ValueError: If something does not fit.
    """
    refuse_skipping(model)
    refuse_quantised(model)
    record = bundle.record
    check_model_fits(model, record)
    method = own_method(record)
    if not isinstance(method, SingleState):
        raise MisfitError(
            f"inversion must come from a method that keeps one latent, got {method.name}; "
            "invert with midpoint, fireflow, ddim or another of that kind."
        )
    own = (positive, negative, cfg)
    positive, negative, cfg = conditioning_of(bundle, record, positive, negative, cfg)
    check_cfg(cfg, negative)
    wanted = _wanted(model, reference, record)
    grid = None if mask is None else on_latent_grid(mask, record.shape, feather)
    loss = meet(wanted, grid, settings.norm)
    latest: list[NoiseReport] = []

    def descend(denoiser: Denoiser, device: torch.device, on_step: OnStep) -> Inversion:
        def told(report: NoiseReport) -> None:
            latest[:] = [report]
            if tap is not None:
                tap(report)
            on_step(report)

        return noise_optimize(
            record.to_precision(work_dtype(device)),
            denoiser,
            loss,
            settings.iterations,
            settings.learning_rate,
            settings.pull,
            told,
            device,
        )

    try:
        source = source_of(model, bundle)
        found = run_script(model, positive, negative, cfg, source, record.falling, descend, gradients=True)
        # In the record's own precision, whatever the device had.
        optimised = replace(bundle, record=replace(with_noise(record, found.x), meta=found.meta))
        return optimised, run_replay(model, optimised, *own)
    except BaseException:  # the host's interrupt is no Exception from 0.30 on
        if save_unfinished and latest:
            keep_unfinished(
                with_noise(record, latest[0].best),
                _UNFINISHED,
                f"{latest[0].index} of {settings.iterations} updates",
                "Load that with LoadInversion, for Resample or for NoiseOptimize to go on from there.",
            )
        raise


def _wanted(model: Any, reference: dict[str, Any], record: Inversion) -> torch.Tensor:
    samples = source_samples(model, reference, "reference")
    if tuple(samples.shape[1:]) != record.shape[1:] or samples.shape[0] not in (1, record.shape[0]):
        raise ValueError(
            f"reference must have the inversion's size {record.shape}, or that of one of its rows, "
            f"got {tuple(samples.shape)}; encode a picture of the same size."
        )
    return into_model(model, samples)
