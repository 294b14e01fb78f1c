"""Negative-prompt inversion on a model of the host: a record's way down with the source as its own negative."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ...inversion import Denoiser, NegativePrompt, OnStep, blend, replay, slerp, work_dtype
from ..editing.inversion_free_run import PairedGuider, PairedSampler
from ..host.checks import refuse_other_guidance, refuse_skipping
from ..host.latents import keep_outside, out_of_model
from ..host.masks import on_latent_grid
from .link import Bundle, source_of
from .runs import check_model_fits, drive, warn_of_other_source

_logger = logging.getLogger(__name__)


def run_negative_prompt(
    model: Any,
    bundle: Bundle,
    target: Any,
    settings: NegativePrompt,
    interp: float = 1.0,
    negative: Any = None,
    mask: torch.Tensor | None = None,
    feather: int = 0,
) -> dict[str, Any]:
    """Play an inversion back towards a target, guided away from its own source.

    Args:
        model: The MODEL; it is not changed.
        bundle: The inversion.
        target: CONDITIONING of the edit.
        settings: Guidance and what is held back.
        interp: Where between the negative (0) and the source (1) the guidance starts.
        negative: Negative CONDITIONING, needed when interp is not 1.
        mask: MASK, white where the edit may act; outside it the result equals the source bit for bit.
        feather: Width in pixels of the mask of a ramp inside its edge.

    Returns:
        A LATENT.

    Raises:
        ValueError: If an input does not fit.
    """
    refuse_skipping(model)
    refuse_other_guidance(model)
    record = bundle.record
    check_model_fits(model, record)
    if record.embeddings:
        raise ValueError(
            f"inversion must have no fitted embeddings, got {len(record.embeddings)}; "
            "connect the one from before NullTextOptimize, or play this one back with Resample."
        )
    if bundle.source is None:
        raise ValueError(
            "source must be connected to play back an inversion that was loaded from a file, got nothing; "
            "connect the conditioning that it was inverted with."
        )
    if bundle.cfg == 1.0:
        warn_of_other_source(record, bundle.source, None, 1.0)
    else:
        _logger.warning(
            "Retrace: this inversion was made at cfg %g; negative-prompt inversion comes back to one made at cfg 1.",
            bundle.cfg,
        )
    base = between(negative, bundle.source, interp)
    samples = source_of(model, bundle)
    grid = None if mask is None else on_latent_grid(mask, record.shape, feather)

    def script(source: Denoiser, edit: Denoiser, device: torch.device, on_step: OnStep) -> torch.Tensor:
        fitted = record.to_precision(work_dtype(device))
        after_step = None if grid is None else blend(fitted, grid, device)
        guided = settings.denoiser(fitted, source, edit)
        return replay(fitted, source, guided, after_step=after_step, on_step=on_step, device=device).cpu()

    sampler = PairedSampler(script)
    drive(PairedGuider(model, base, target, None, 1.0, 1.0), sampler, samples, record.falling)
    assert sampler.result is not None
    edited = out_of_model(model, sampler.result, samples.dtype)
    if grid is not None:
        edited = keep_outside(grid, edited, samples)
    return {**bundle.extras, "samples": edited}


def between(negative: Any, source: Any, interp: float) -> Any:
    """Return the CONDITIONING between a negative (0) and a source (1), text and pooled text; the rest is the source's.

    Raises:
        ValueError: If interp is out of range, or the two cannot be mixed.
    """
    if not 0.0 <= interp <= 1.0:
        raise ValueError(f"interp must lie between 0 and 1, got {interp:g}; 1 is the source prompt alone.")
    if interp == 1.0:
        return source
    if negative is None:
        raise ValueError(f"interp must be 1 without a negative, got {interp:g}; connect negative or set interp to 1.")
    if len(source) != 1 or len(negative) != 1:
        raise ValueError(
            f"source and negative must be one prompt each to be mixed, got {len(source)} and {len(negative)}; "
            "set interp to 1."
        )
    (text, extras), (other, more) = source[0], negative[0]
    mixed = dict(extras)
    pooled = extras.get("pooled_output"), more.get("pooled_output")
    if all(isinstance(each, torch.Tensor) for each in pooled):
        mixed["pooled_output"] = slerp(pooled[1], pooled[0], interp)
    return [[slerp(other, text, interp), mixed]]
