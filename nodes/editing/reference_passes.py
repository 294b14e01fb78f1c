"""Edits in passes that read from other pictures: VisCtrl.

Each pass inverts the target as it is by then, and comes back from there while the target's queries meet keys and
values of a reference, which stands at the state of its own inversion of each step. Latents go from pass to pass.
Li et al. 2024, VisCtrl, arXiv:2406.06258.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...attention import SOURCE, TARGET, AttentionPlan, Gather, Layers, Mask, Rule, Take, Term, Window
from ...inversion import Inversion, drawn, get_method, moved, replay
from ..attending.attended import attended_guider
from ..attending.listing import check_layers
from ..attending.resolvers import resolver_for
from ..host.checks import check_cfg
from ..host.latents import out_of_model
from ..host.session import Branch, Session
from ..inverting.link import LinkedInversion, standing_at
from ..inverting.runs import climb_of, run_invert

# More than any network has.
_LAST_LAYER = 9999


@dataclass(frozen=True)
class Pass:
    """Settings of a pass.

    Attributes:
        steps: Steps up and down.
        start: Steps at the noisy end that read nothing.
        cfg: Guidance scale, up and down.
    """

    steps: int
    start: int
    cfg: float


@dataclass(frozen=True, eq=False)
class Subject:
    """What all passes have in common.

    Attributes:
        model: The MODEL; it is not changed.
        reference_prompt: CONDITIONING of the references.
        target_prompt: CONDITIONING of the target.
        negative: CONDITIONING, needed where a scale is not 1.
        method: Name of a method whose state is its latent alone.
        scheduler: Name of a scheduler.
        layers: Layers in which the target reads.
        alpha: Share of each pass, where there are several references.
        seed: Seed of the draws among several references.
    """

    model: Any
    reference_prompt: Any
    target_prompt: Any
    negative: Any
    method: str
    scheduler: str
    layers: Layers
    alpha: float
    seed: int


def layers_from(start: int, text: str) -> Layers:
    """Return the layers of a text, or, where it is empty, all from a running number on."""
    return Layers.parse(text if text.strip() else f"self#{start}-{_LAST_LAYER}; joint#{start}-{_LAST_LAYER}")


def check_pass(one_pass: Pass, negative: Any, which: str = "") -> None:
    """Refuse a pass in which nothing would be read.

    Raises:
        ValueError: If it is one, or a negative is missing.
    """
    if not 0 <= one_pass.start < one_pass.steps:
        raise ValueError(
            f"{which}start_step must be below the {one_pass.steps} steps of a pass, got {one_pass.start}; lower it."
        )
    check_cfg(one_pass.cfg, negative, f"{which}cfg")


def as_large_as(reference: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return references in the target's shape; a picture serves all frames of a clip.

    Raises:
        ValueError: If they have another size.
    """
    if target.ndim == 5 and reference.shape[2] == 1:
        reference = reference.expand(-1, -1, target.shape[2], -1, -1)
    if reference.shape[1:] != target.shape[1:]:
        have, wanted = (" x ".join(map(str, each.shape[2:])) for each in (reference, target))
        raise ValueError(
            f"reference must have the target's size, {wanted} in the latent, got {have}; scale the picture, or crop."
        )
    return reference


def run_passes(
    subject: Subject,
    reference: torch.Tensor,
    target: torch.Tensor,
    passes: Sequence[Pass],
    rows: Sequence[int],
    seen: torch.Tensor | None = None,
    where: torch.Tensor | None = None,
) -> torch.Tensor:
    """Carry what references look like into a target.

    Args:
        subject: Model, prompts and settings.
        reference: Samples of the references, (R, C, *).
        target: Samples of the target, (B, C, *).
        passes: The passes, in order.
        rows: Number of each picture of the target, for the draws.
        seen: Weights (R, frames or 1, h, w) of what of the references is read, or None for all.
        where: Weights (B, frames or 1, h, w) of where the target reads, or None for everywhere.

    Returns:
        Samples of the edit, shape and dtype of the target's.

    Raises:
        ValueError: If something does not fit.
    """
    reference = as_large_as(reference, target)
    count, alpha = reference.shape[0], subject.alpha if reference.shape[0] > 1 else 1.0
    plans = [_plan(subject, one_pass, None, where) for one_pass in passes]
    check_layers(plans[0], resolver_for(subject.model.model.diffusion_model), target.shape)
    known: dict[Pass, Inversion] = {}
    samples, start = target, None
    for one_pass, chosen in zip(passes, drawn(count, len(passes), subject.seed, rows), strict=True):
        if one_pass not in known:
            known[one_pass] = _inverted(subject, one_pass, subject.reference_prompt, reference, True)
        inversion = moved(_inverted(subject, one_pass, subject.target_prompt, samples, False), start, alpha)
        start = inversion.x
        plan = _plan(subject, one_pass, None if seen is None else seen[list(chosen)], where)
        samples = _descend(subject, one_pass, known[one_pass].of_rows(chosen), inversion, plan, target)
    return samples


def _inverted(subject: Subject, one_pass: Pass, prompt: Any, samples: torch.Tensor, keep_path: bool) -> LinkedInversion:
    climb = climb_of(
        subject.model, one_pass.steps, subject.scheduler, 1.0, get_method(subject.method), keep_path=keep_path
    )
    return run_invert(subject.model, Branch(prompt, subject.negative, one_pass.cfg), {"samples": samples}, climb)


def _plan(subject: Subject, one_pass: Pass, seen: torch.Tensor | None, where: torch.Tensor | None) -> AttentionPlan:
    read = Take() if seen is None else Gather(SOURCE, Mask(seen))
    rule = Rule(
        "visctrl",
        (Term(k=read, v=read),),
        subject.layers,
        window=Window(one_pass.start / one_pass.steps, 1.0),
        mask=None if where is None else Mask(where),
        # Of the outputs: the target's places in the mask see the reference alone, the others themselves alone.
        blend="operand" if where is None else "output",
    )
    return AttentionPlan((rule,), source_for="both")


def _descend(
    subject: Subject,
    settings: Pass,
    reference: Inversion,
    inversion: Inversion,
    plan: AttentionPlan,
    like: torch.Tensor,
) -> torch.Tensor:
    sides = {
        SOURCE: Branch(subject.reference_prompt, subject.negative, settings.cfg, standing_at(reference)),
        TARGET: Branch(subject.target_prompt, subject.negative, settings.cfg),
    }

    def script(session: Session) -> torch.Tensor:
        own = replace(inversion, path=None).to_precision(session.dtype)
        return replay(own, session.denoiser(), on_step=session.tell, device=session.device).cpu()

    state = attended_guider(subject.model, sides, plan).run(like, inversion.falling, script)
    return out_of_model(subject.model, state, like.dtype)
