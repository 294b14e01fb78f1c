"""Attention control inside a SAMPLER: the target is the guider's, the source stands where an inversion says.

A SAMPLER is called with a guider in the middle of its run. Its conditionings are the target's; the source's own are
prepared beside them, and each call of the solver asks both.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import comfy.samplers
import torch

from ...attention import SOURCE, TARGET, AttentionPlan
from ..host.checks import check_state_fits
from ..host.misfits import explained
from ..host.session import NEGATIVE, Branch, Guider, Session
from ..inverting.link import LinkedInversion
from ..inverting.runs import check_model_fits
from ..inverting.sampler_scripts import SIGMA_TOLERANCE, Blends, Script
from .attended import ALONE, Attended, attended_guider


def attended_script(make: Callable[[Blends | None], Script], plan: AttentionPlan, inversion: LinkedInversion) -> Script:
    """Return another script, whose target reads from the source of an inversion.

    Args:
        make: Makes the script, from the blends that follow its steps, or None.
        plan: What the target reads.
        inversion: The inversion, with the conditioning of its source.

    Raises:
        ValueError: If the plan or the inversion is not fit for a sampler. The script, if the guider, the latent or the
            sigmas do not fit.
    """
    source = inversion.branch("control attention with an inversion", standing=True)
    if plan.source == "free":
        raise ValueError(
            "attention must have its source pinned inside a sampler, got free; set source to pinned, or edit with "
            "Resample."
        )

    def script(session: Session) -> torch.Tensor:
        first, last = float(session.sigmas[0]), float(session.sigmas[-1])
        if last > first:
            raise ValueError(
                f"sigmas must fall for a sampler with attention, got {first:.6g} to {last:.6g}; "
                "leave attention out of the sampler that inverts."
            )
        check_model_fits(session.guider.model_patcher, inversion)
        check_state_fits(inversion, session.noise.shape)
        check_first_sigma(inversion, first)
        with running_beside(session, source, plan) as guider:
            attention = guider.attention
            assert isinstance(attention, Attended)
            blends = functools.partial(attention.running.after_step, source=source.at) if plan.latent_rules else None
            return make(blends)(replace(session, guider=guider))

    return script


def check_first_sigma(inversion: LinkedInversion, first: float) -> None:
    """Refuse a run that starts above the inversion, where nobody knows its source.

    Raises:
        ValueError: If it does.
    """
    if first > inversion.sigma * (1.0 + SIGMA_TOLERANCE):
        raise ValueError(
            f"sigmas must start at or below the inversion's sigma {inversion.sigma:.6g}, got {first:.6g}; "
            "connect the SIGMAS output of Invert."
        )


@contextlib.contextmanager
def running_beside(session: Session, source: Branch, plan: AttentionPlan) -> Iterator[Guider]:
    """Put the source of an inversion beside the target of a guider that is running.

    Args:
        session: A session of the guider; the guider is not changed.
        source: The source.
        plan: What the target reads from it.

    Yields:
        A guider that takes part in the run.

    Raises:
        ValueError: If the guider guides in another way, or a conditioning cannot be evaluated beside another.
    """
    theirs = session.guider
    # Another answer than classifier-free guidance of a positive and a negative.
    if type(theirs).predict_noise is not comfy.samplers.CFGGuider.predict_noise:
        raise ValueError(
            "guider must be CFGGuider or BasicGuider for a sampler with attention, got "
            f"{type(theirs).__name__}; use one of these."
        )
    if any(entry.get("area") is not None for entry in theirs.conds["positive"]):
        raise ValueError(
            "positive of the guider must be one prompt for the whole picture for a sampler with attention, got "
            "areas; edit with Resample."
        )
    for entry in (*source.positive, *(source.negative or ())):
        alone = [part for part in ALONE if entry[1].get(part) is not None]
        if alone:
            raise ValueError(
                f"source of the inversion must be a plain prompt for a sampler with attention, got one with "
                f"{alone[0]}; edit with Resample."
            )
    negative = theirs.conds.get(NEGATIVE)
    target = Branch([], None if negative is None else [], theirs.cfg)
    own_negative = source.negative if source.cfg != 1.0 else None
    branches = {SOURCE: replace(source, negative=own_negative), TARGET: target}
    guider = attended_guider(theirs.model_patcher, branches, plan)
    guider.inner_model, guider.model_options = theirs.inner_model, theirs.model_options
    conds = {
        name: [dict(entry) for entry in entries]
        for name, entries in guider.original_conds.items()
        if name not in (TARGET, NEGATIVE)
    }
    # The source's conditioning is that of the inversion, the target's that of the guider.
    with explained(guider):
        guider.conds = comfy.samplers.process_conds(
            guider.inner_model,
            session.noise,
            conds,
            session.device,
            session.latent_image,
            session.denoise_mask,
            session.extra_args.get("seed"),
            latent_shapes=[session.noise.shape],
        )
        guider.conds.update({TARGET: theirs.conds["positive"], NEGATIVE: negative})
        assert guider.attention is not None
        guider.attention.begin(session.noise.shape)
        try:
            yield guider
        finally:
            guider.attention.end()
            del guider.inner_model, guider.conds
