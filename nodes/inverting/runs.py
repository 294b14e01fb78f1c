"""Runs of a model: into the noise and back, under a guider of the pack."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import comfy.utils
import latent_preview
import torch

from ...attention import AttentionPlan, Cache
from ...inversion import (
    Denoiser,
    Inversion,
    Method,
    OnStep,
    StepReport,
    adopt,
    blend,
    check_fit,
    invert,
    own_method,
    replay,
    strength_to_index,
    work_dtype,
)
from ...version import VERSION
from ..attending.replay import AttendedReplay, replay_guider
from ..host.checks import check_cfg, refuse_skipping
from ..host.compat import host_version
from ..host.denoiser import refusing_denoiser
from ..host.fingerprint import fingerprint_conditioning, fingerprint_model
from ..host.gradients import refuse_quantised, whole_model
from ..host.guider import SteadyGuider
from ..host.latents import into_model, keep_outside, out_of_model, source_samples
from ..host.masks import on_latent_grid
from ..host.parametrisation import model_sampling_of, space_of
from .link import Bundle, source_of
from .sampling import ScriptedSampler

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)

# The samples travel by themselves; the ratios describe an empty latent that newer hosts resize before sampling.
_NOT_CARRIED = frozenset({"samples", "downscale_ratio_spacial", "downscale_ratio_temporal"})


def run_invert(
    model: Any,
    source: Any,
    latent: dict[str, Any],
    sigmas: tuple[float, ...],
    strength: float,
    method: Method,
    cfg: float = 1.0,
    negative: Any = None,
    keep_path: bool = False,
    guider: Any = None,
    at_top: Callable[[Denoiser, Inversion, torch.device], None] | None = None,
) -> Bundle:
    """Invert a LATENT.

    A noise_mask is not applied: under a mask the host shows the network the clean latent at every level, so that
    the inversion would not be one. It stays among the extras.

    Args:
        model: The MODEL; it is not changed.
        source: CONDITIONING that describes the source.
        latent: The LATENT.
        sigmas: Rising levels from 0.
        strength: Fraction of the steps to climb, in (0, 1].
        method: How to climb.
        cfg: Guidance scale.
        negative: CONDITIONING, needed when cfg is not 1.
        keep_path: Whether to record the state of every step.
        guider: What answers in place of a guider of the source alone; it must answer for the same conditionings.
        at_top: Called once with (denoiser, record, device) before the run ends.

    Returns:
        The inversion.

    Raises:
        ValueError: If an input does not fit.
        TypeError: If the latent holds several streams.
    """
    refuse_skipping(model)
    if method.needs_gradients:
        refuse_quantised(model)
    check_cfg(cfg, negative)
    samples = source_samples(model, latent)
    clean = into_model(model, samples)
    # A model that cannot be inverted is refused before it is loaded.
    space_of(model_sampling_of(model))
    level = strength_to_index(strength, len(sigmas) - 1)
    fingerprints = {
        "model": fingerprint_model(model),
        "source": fingerprint_source(source, negative, cfg),
    }
    meta = {
        "cfg": float(cfg),
        "host": host_version(),
        "pack": VERSION,
        "latent_dtype": str(samples.dtype).removeprefix("torch."),
    }

    def climb(denoiser: Denoiser, device: torch.device, on_step: OnStep) -> Inversion:
        start = clean.to(work_dtype(device)).to(device)
        record = invert(denoiser, start, sigmas, level, method, keep_path, fingerprints, meta, on_step)
        if at_top is not None:
            at_top(denoiser, record, device)
        return record

    falling = sigmas[level::-1]
    gradients = method.needs_gradients
    record = run_script(model, source, negative, cfg, samples, falling, climb, gradients, guider, called="source")
    return Bundle(record, source, negative, samples, extras_of(latent))


def run_replay(
    model: Any,
    bundle: Bundle,
    target: Any = None,
    negative: Any = None,
    cfg: float = 1.0,
    mask: torch.Tensor | None = None,
    feather: int = 0,
    method: str | None = None,
    tap: Callable[[StepReport], None] | None = None,
    attention: AttentionPlan | None = None,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """Play an inversion back, towards a target or, without one, to its own source.

    Args:
        model: The MODEL; it is not changed.
        bundle: The inversion.
        target: CONDITIONING of the edit; None reconstructs under the source's own conditioning and guidance.
        negative: Negative CONDITIONING of the edit.
        cfg: Guidance scale of the edit.
        mask: MASK, white where the edit may act; outside it the result equals the source bit for bit.
        feather: Width in pixels of the mask of a ramp inside its edge.
        method: Name of another solver for the way down; None for the record's own.
        tap: Told after every step.
        attention: What the target reads from the source; without a target it is not used.
        cache: What was kept of the source for that; None evaluates the source beside the target.

    Returns:
        A LATENT.

    Raises:
        ValueError: If an input does not fit the record.
    """
    refuse_skipping(model)
    record = bundle.record if method is None else adopt(bundle.record, method)
    check_model_fits(model, record)
    reconstructs = target is None
    target, negative, cfg = conditioning_of(bundle, record, target, negative, cfg)
    check_cfg(cfg, negative)
    source = source_of(model, bundle)
    grid = None if mask is None else on_latent_grid(mask, record.shape, feather)

    def descend(denoiser: Denoiser, device: torch.device, on_step: OnStep) -> torch.Tensor:
        fitted = record.to_precision(work_dtype(device))

        def told(report: StepReport) -> None:
            if tap is not None:
                tap(report)
            on_step(report)

        after_step = None if grid is None else blend(fitted, grid, device)
        if reconstructs:
            return replay(fitted, denoiser, after_step=after_step, on_step=told, device=device).cpu()
        # A solver whose way down asks the source too would get the target's answers: it is refused instead.
        reason = f"positive must be left out for method {record.method}, got one; this solver only reconstructs here."
        source_denoiser = refusing_denoiser(denoiser, reason)
        return replay(fitted, source_denoiser, denoiser, after_step=after_step, on_step=told, device=device).cpu()

    if attention is None or reconstructs:
        called = "source" if reconstructs else "positive"
        state = run_script(model, target, negative, cfg, source, record.falling, descend, called=called)
    else:
        uncond = negative if cfg != 1.0 else None
        guider = replay_guider(model, bundle, target, uncond, cfg, attention, cache=cache)
        sampler = AttendedReplay(record, attention, grid, tap)
        drive(guider, sampler, source, record.falling)
        assert sampler.result is not None
        state = sampler.result
    samples = out_of_model(model, state, source.dtype)
    if grid is not None:
        samples = keep_outside(grid, samples, source)
    return {**bundle.extras, "samples": samples}


def conditioning_of(
    bundle: Bundle, record: Inversion, target: Any, negative: Any, cfg: float
) -> tuple[Any, Any, float]:
    """Return positive, negative and cfg under which a record is played back.

    Args:
        bundle: The inversion.
        record: Its record, as it is to be played.
        target: CONDITIONING of the edit; None reconstructs.
        negative: Negative CONDITIONING of the edit.
        cfg: Guidance scale of the edit.

    Raises:
        ValueError: If a conditioning that is needed is missing.
    """
    if target is None:
        if bundle.source is None:
            raise ValueError(
                "source must be connected to reconstruct an inversion that was loaded from a file, got nothing; "
                "connect the conditioning that it was inverted with, or a positive to edit."
            )
        target, negative, cfg = bundle.source, bundle.negative, bundle.cfg
        if cfg != 1.0 and negative is None:
            raise ValueError(
                f"negative must be connected to reconstruct a loaded inversion that was made at cfg {cfg:g}, "
                "got nothing; connect the negative that it was inverted with."
            )
        warn_of_other_source(record, target, negative, cfg)
    elif record.embeddings:
        # The embeddings stand in the place of this negative's text; what else it holds is part of the fit.
        negative = negative if bundle.negative is None else bundle.negative
        if cfg != bundle.cfg:
            _logger.warning(
                "Retrace: cfg is %g, but the embeddings of this inversion were fitted for %g; "
                "what is not edited comes back best at that.",
                cfg,
                bundle.cfg,
            )
    elif own_method(record).corrects_guidance and record.residuals is not None and cfg != bundle.cfg:
        _logger.warning(
            "Retrace: cfg is %g, but the correction of this inversion was recorded at %g; "
            "what is not edited comes back best at that.",
            cfg,
            bundle.cfg,
        )
    return target, negative, cfg


def extras_of(latent: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a LATENT that an edited one keeps."""
    return {key: value for key, value in latent.items() if key not in _NOT_CARRIED}


def check_model_fits(model: Any, record: Inversion) -> None:
    """Refuse a MODEL that did not make a record, before it is loaded.

    Raises:
        ValueError: If the space, the latent or the weights differ.
    """
    probe = Denoiser(lambda x, sigma: x, space_of(model_sampling_of(model)))
    check_fit(record, probe, fingerprints={"model": fingerprint_model(model)})


def fingerprint_source(source: Any, negative: Any, cfg: float) -> str:
    """Return the fingerprint of all conditioning that a record is reconstructed under."""
    # At cfg 1 the host leaves the negative out.
    return fingerprint_conditioning([source, cfg, negative if cfg != 1.0 else None])


def warn_of_other_source(record: Inversion, source: Any, negative: Any, cfg: float) -> None:
    """Say so where the conditioning at hand is not the one that a record was made with."""
    # A text encoder in another precision gives other bits for the same prompt, so this is no refusal.
    if record.fingerprints.get("source") not in (None, fingerprint_source(source, negative, cfg)):
        _logger.warning(
            "Retrace: source conditioning differs from the one that this inversion was made with; "
            "the reconstruction is as near as the two are."
        )


def run_script(
    model: Any,
    positive: Any,
    negative: Any,
    cfg: float,
    samples: torch.Tensor,
    falling: tuple[float, ...],
    script: Callable[[Denoiser, torch.device, Any], Result],
    gradients: bool = False,
    guider: Any = None,
    called: str = "positive",
) -> Result:
    """Run a function on the denoiser of a MODEL under conditionings.

    Args:
        model: The MODEL; it is not changed.
        positive: CONDITIONING.
        negative: CONDITIONING, unused at cfg 1.
        cfg: Guidance scale.
        samples: Samples of a LATENT in the model's channels, for shape and device.
        falling: Levels of the run.
        script: Called once with (denoiser, device, on_step).
        gradients: Whether gradients are to pass through the denoiser.
        guider: What answers; None for a guider of the conditionings.
        called: The user's name of the positive, for errors.

    Returns:
        What the script returns.
    """
    sampler: ScriptedSampler[Result] = ScriptedSampler(script, gradients)
    if guider is None:
        whole = whole_model(model) if gradients else model
        guider = SteadyGuider(whole, positive, negative if cfg != 1.0 else None, cfg, called)
    drive(guider, sampler, samples, falling)
    assert sampler.result is not None
    return sampler.result


def drive(guider: Any, sampler: Any, samples: torch.Tensor, falling: tuple[float, ...]) -> None:
    """Run a SAMPLER of the pack under a guider of the pack, with the host's progress bar, preview and interrupt.

    Args:
        guider: The guider; its model is not changed.
        sampler: What is run; its results leave by itself.
        samples: Samples of a LATENT in the model's channels, for shape and device.
        falling: Levels of the run.
    """
    # The host shows the levels of a run to the network and to patches. They fall in both directions, so that both
    # ask the same denoiser.
    sigmas = torch.tensor(falling, dtype=torch.float32)
    guider.sample(
        torch.zeros_like(samples),
        samples,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=latent_preview.prepare_callback(guider.model_patcher, len(falling) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=0,
    )
