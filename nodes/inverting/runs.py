"""Runs of a model: into the noise and back, under a guider of the pack."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...attention import AttentionPlan, Cache
from ...core.denoiser import Denoiser
from ...core.settings import Scalar
from ...core.walk import StepReport
from ...inversion import Inversion, Method, adopt, blend, check_fit, invert, own_method, strength_to_index
from ...version import VERSION
from ..attending.attended import Attended
from ..host.checks import check_cfg, refuse_skipping
from ..host.compat import host_version, whole_model
from ..host.fingerprint import fingerprint_conditioning, fingerprint_model
from ..host.gradients import refuse_quantised
from ..host.latents import into_model, keep_outside, out_of_model, source_samples
from ..host.masks import EditArea
from ..host.parametrisation import model_sampling_of, space_of
from ..host.schedule import read_sigmas, rising_sigmas
from ..host.session import Attention, Branch, Guider, Session, refusing
from .link import LinkedInversion, source_samples_of

SOURCE, TARGET = "source", "target"

_logger = logging.getLogger(__name__)

# The samples travel by themselves; the ratios describe an empty latent that newer hosts resize before sampling.
_NOT_CARRIED = frozenset({"samples", "downscale_ratio_spacial", "downscale_ratio_temporal"})


@dataclass(frozen=True)
class Climb:
    """How a latent is taken into the noise.

    Attributes:
        sigmas: Rising sigmas from 0.
        index: Place in them to stop at.
        method: How to climb.
        keep_path: Whether the state of every step is kept.
    """

    sigmas: tuple[float, ...]
    index: int
    method: Method
    keep_path: bool = False


def climb_of(
    model: Any,
    steps: int,
    scheduler: str,
    strength: float,
    method: Method,
    sigmas: torch.Tensor | None = None,
    keep_path: bool = False,
) -> Climb:
    """Return the climb that a node's inputs describe.

    Args:
        model: The MODEL, whose schedule it is.
        steps: Steps of the whole schedule.
        scheduler: A name in the host's list.
        strength: Fraction of the steps to climb, in (0, 1].
        method: How to climb.
        sigmas: SIGMAS in place of steps and scheduler.
        keep_path: Whether the state of every step is kept.

    Raises:
        ValueError: If a value does not fit.
    """
    rising = rising_sigmas(model, scheduler, steps) if sigmas is None else read_sigmas(sigmas)
    return Climb(rising, strength_to_index(strength, len(rising) - 1), method, keep_path)


def run_invert(
    model: Any,
    source: Branch,
    latent: dict[str, Any],
    climb: Climb,
    attention: Attention | None = None,
    at_top: Callable[[Denoiser, Inversion, torch.device], None] | None = None,
) -> LinkedInversion:
    """Invert a LATENT.

    A noise_mask is not applied: under a mask the host shows the network the clean latent at every sigma, so that
    the inversion would not be one. It stays among the extras.

    Args:
        model: The MODEL; it is not changed.
        source: What describes the source.
        latent: The LATENT.
        climb: How it is taken into the noise.
        attention: What keeps something of the attention on the way, or None.
        at_top: Called once with (denoiser, inversion, device) before the run ends.

    Returns:
        The inversion.

    Raises:
        ValueError: If an input does not fit.
        TypeError: If the latent holds several streams.
    """
    method = climb.method
    refuse_skipping(model)
    if method.needs_gradients:
        refuse_quantised(model)
    check_cfg(source.cfg, source.negative)
    samples = source_samples(model, latent)
    clean = into_model(model, samples)
    # A model that cannot be inverted is refused before it is loaded.
    space_of(model_sampling_of(model))
    fingerprints = {"model": fingerprint_model(model), "source": fingerprint_source(source)}
    meta: dict[str, Scalar] = {
        "cfg": float(source.cfg),
        "host": host_version(),
        "pack": VERSION,
        "latent_dtype": str(samples.dtype).removeprefix("torch."),
    }

    def script(session: Session) -> Inversion:
        denoiser, device = session.denoiser(), session.device
        start = clean.to(session.dtype).to(device)
        inversion = invert(denoiser, start, climb.sigmas, climb.index, method, climb.keep_path, session.tell)
        inversion = inversion.marked(fingerprints, meta)
        if at_top is not None:
            at_top(denoiser, inversion, device)
        return inversion

    guider = Guider(whole_model(model) if method.needs_gradients else model, {SOURCE: source}, attention)
    inversion = guider.run(samples, climb.sigmas[climb.index :: -1], script, method.needs_gradients)
    return LinkedInversion.of(
        inversion, source=source.positive, negative=source.negative, samples=samples, extras=extras_of(latent)
    )


def run_replay(
    model: Any,
    inversion: LinkedInversion,
    target: Branch | None = None,
    area: EditArea | None = None,
    method: str | None = None,
    tap: Callable[[StepReport], None] | None = None,
    attention: AttentionPlan | None = None,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """Play an inversion back, towards a target or, without one, to its own source.

    Args:
        model: The MODEL; it is not changed.
        inversion: The inversion.
        target: What is wanted; None reconstructs under the source's own conditioning and guidance.
        area: Where the edit may act; outside it the result equals the source bit for bit.
        method: Name of another solver for the way down; None for the inversion's own.
        tap: Told after every step.
        attention: What the target reads from the source; without a target it is not used.
        cache: What was kept of the source for that; None evaluates the source beside the target.

    Returns:
        A LATENT.

    Raises:
        ValueError: If an input does not fit the inversion.
    """
    refuse_skipping(model)
    inversion = inversion if method is None else adopt(inversion, method)
    check_model_fits(model, inversion)
    wanted = target_of(inversion, target)
    check_cfg(wanted.cfg, wanted.negative)
    plan = None if target is None else attention
    free = plan is not None and plan.source == "free"
    branches, attended = {SOURCE if target is None else "positive": wanted}, None
    if plan is not None:
        source = inversion.branch("control attention with an inversion", standing=not free)
        branches = {SOURCE: source, TARGET: replace(wanted, negative=wanted.negative if wanted.cfg != 1.0 else None)}
        attended = Attended(model, branches, plan, cache=cache)
    scheme = own_method(inversion)
    samples = source_samples_of(model, inversion)
    grid = None if area is None else area.on(inversion.shape)

    def script(session: Session) -> torch.Tensor:
        own, denoiser = inversion.to_precision(session.dtype), session.denoiser()
        walked = own.doubled() if free else own
        after_step = None
        if grid is not None:
            after_step = blend(walked, torch.cat([grid, grid]) if free and grid.shape[0] > 1 else grid, session.device)
        if attended is not None:
            after_step = attended.running.after_step(own.falling, None if free else own.state_at, after_step)

        def told(report: StepReport) -> None:
            report = of_target(report) if free else report
            if tap is not None:
                tap(report)
            session.tell(report)

        # A solver whose way down asks the source too would get the target's answers: it is refused instead.
        what = "positive" if plan is None else "attention"
        reason = f"{what} must be left out for method {own.method}, got one; this solver only reconstructs here."
        edit = None if target is None else denoiser
        source_side = denoiser if target is None else refusing(denoiser, reason)
        state = scheme.replay(walked, source_side, edit, after_step, told, session.device)
        return (state.chunk(2)[1] if free else state).cpu()

    with torch.no_grad():
        state = Guider(model, branches, attended).run(samples, inversion.falling, script)
    edited = out_of_model(model, state, samples.dtype)
    if grid is not None:
        edited = keep_outside(grid, edited, samples)
    return {**inversion.extras, "samples": edited}


def of_target(report: StepReport) -> StepReport:
    """The report of the second half of the rows."""
    return replace(report, x=report.x.chunk(2)[1], denoised=report.denoised.chunk(2)[1])


def target_of(inversion: LinkedInversion, target: Branch | None) -> Branch:
    """Return what an inversion is played back to.

    Args:
        inversion: The inversion, as it is to be played.
        target: The edit; None reconstructs, with a negative of another inversion's file.

    Raises:
        ValueError: If a conditioning that is needed is missing.
    """
    if target is None:
        own = inversion.branch("reconstruct an inversion")
        if own.cfg != 1.0 and own.negative is None:
            raise ValueError(
                f"negative must be connected to reconstruct a loaded inversion that was made at cfg {own.cfg:g}, "
                "got nothing; connect the negative that it was inverted with."
            )
        warn_of_other_source(inversion, own)
        return own
    fitted_cfg = None
    if inversion.embeddings:
        # The embeddings stand in the place of this negative's text; what else it holds is part of the fit.
        negative = target.negative if inversion.negative is None else inversion.negative
        target, fitted_cfg = replace(target, negative=negative), "the embeddings of this inversion were fitted for"
    elif own_method(inversion).corrects_guidance and inversion.residuals is not None:
        fitted_cfg = "the correction of this inversion was recorded at"
    if fitted_cfg is not None and target.cfg != inversion.cfg:
        _logger.warning(
            "Retrace: cfg is %g, but %s %g; what is not edited comes back best at that.",
            target.cfg,
            fitted_cfg,
            inversion.cfg,
        )
    return target


def extras_of(latent: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a LATENT that an edited one keeps."""
    return {key: value for key, value in latent.items() if key not in _NOT_CARRIED}


def check_model_fits(model: Any, inversion: Inversion) -> None:
    """Refuse a MODEL that did not make an inversion, before it is loaded.

    Raises:
        ValueError: If the space, the latent or the weights differ.
    """
    probe = Denoiser(lambda x, sigma: x, space_of(model_sampling_of(model)))
    check_fit(inversion, probe, fingerprints={"model": fingerprint_model(model)})


def fingerprint_source(source: Branch) -> str:
    """Return the fingerprint of all conditioning that an inversion is reconstructed under."""
    # At cfg 1 the host leaves the negative out.
    return fingerprint_conditioning([source.positive, source.cfg, source.negative if source.cfg != 1.0 else None])


def warn_of_other_source(inversion: Inversion, source: Branch) -> None:
    """Say so where the conditioning at hand is not the one that an inversion was made with."""
    # A text encoder in another precision gives other bits for the same prompt, so this is no refusal.
    if inversion.fingerprints.get("source") not in (None, fingerprint_source(source)):
        _logger.warning(
            "Retrace: source conditioning differs from the one that this inversion was made with; "
            "the reconstruction is as near as the two are."
        )
