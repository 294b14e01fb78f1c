"""Negative-prompt inversion on a model of the host: an inversion's way down with the source as its own negative."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ...inversion import NegativePrompt, blend, replay, slerp
from ..host.checks import refuse_other_guidance, refuse_skipping
from ..host.latents import keep_outside, out_of_model
from ..host.masks import EditArea
from ..host.session import Branch, Guider, Session
from .link import LinkedInversion, source_samples_of
from .runs import SOURCE, TARGET, check_model_fits, warn_of_other_source

_logger = logging.getLogger(__name__)


def run_negative_prompt(
    model: Any,
    inversion: LinkedInversion,
    target: Any,
    settings: NegativePrompt,
    interp: float = 1.0,
    negative: Any = None,
    area: EditArea | None = None,
) -> dict[str, Any]:
    """Play an inversion back towards a target, guided away from its own source.

    Args:
        model: The MODEL; it is not changed.
        inversion: The inversion.
        target: CONDITIONING of the edit.
        settings: Guidance and what is held back.
        interp: Where between the negative (0) and the source (1) the guidance starts.
        negative: Negative CONDITIONING, needed when interp is not 1.
        area: Where the edit may act; outside it the result equals the source bit for bit.

    Returns:
        A LATENT.

    Raises:
        ValueError: If an input does not fit.
    """
    refuse_skipping(model)
    refuse_other_guidance(model)
    check_model_fits(model, inversion)
    if inversion.embeddings:
        raise ValueError(
            f"inversion must have no fitted embeddings, got {len(inversion.embeddings)}; "
            "connect the one from before NullTextOptimize, or play this one back with Resample."
        )
    source = inversion.branch("play back an inversion")
    if source.cfg == 1.0:
        warn_of_other_source(inversion, source)
    else:
        _logger.warning(
            "Retrace: this inversion was made at cfg %g; negative-prompt inversion comes back to one made at cfg 1.",
            source.cfg,
        )
    samples = source_samples_of(model, inversion)
    grid = None if area is None else area.on(inversion.shape)

    def script(session: Session) -> torch.Tensor:
        own, base = inversion.to_precision(session.dtype), session.denoiser(SOURCE)
        after_step = None if grid is None else blend(own, grid, session.device)
        guided = settings.denoiser(own, base, session.denoiser(TARGET))
        return replay(own, base, guided, after_step=after_step, on_step=session.tell, device=session.device).cpu()

    sides = {SOURCE: Branch(between(negative, source.positive, interp)), TARGET: Branch(target)}
    edited = out_of_model(model, Guider(model, sides).run(samples, inversion.falling, script), samples.dtype)
    if grid is not None:
        edited = keep_outside(grid, edited, samples)
    return {**inversion.extras, "samples": edited}


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
