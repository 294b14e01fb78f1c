"""Edits without an inversion: source and target side by side in one run of the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...attention import SOURCE, TARGET, AttentionPlan, Step
from ...inversion import EditOptions, InfEdit, InversionFreeEdit
from ..attending.attended import Attended
from ..host.checks import check_cfg, refuse_skipping
from ..host.latents import into_model, keep_outside, out_of_model, source_samples
from ..host.masks import EditArea
from ..host.parametrisation import model_sampling_of, space_of
from ..host.session import Branch, Guider, Session
from ..inverting.runs import extras_of


@dataclass(frozen=True)
class Start:
    """Where an edit starts, and from which noise.

    Attributes:
        sigmas: Rising sigmas from 0.
        index: Place in them to start from.
        seed: Seed of the noise.
    """

    sigmas: tuple[float, ...]
    index: int
    seed: int


def run_inversion_free(
    model: Any,
    source: Branch,
    target: Branch,
    latent: dict[str, Any],
    edit: InversionFreeEdit,
    start: Start,
    area: EditArea | None = None,
    attention: AttentionPlan | None = None,
) -> dict[str, Any]:
    """Edit a LATENT.

    A noise_mask is not applied, for the reason given at ``run_invert``. It stays in the LATENT.

    Args:
        model: The MODEL; it is not changed.
        source: What describes the source.
        target: The edit.
        latent: The LATENT. Its batch_index, if it has one, numbers the rows for the noise.
        edit: The method.
        start: Where it starts.
        area: Where the edit may act; outside it the result equals the source bit for bit.
        attention: What the target reads from the source, or None.

    Returns:
        A LATENT.

    Raises:
        ValueError: If an input does not fit.
        TypeError: If the latent holds several streams.
    """
    refuse_skipping(model)
    check_cfg(source.cfg, source.negative, "source_cfg")
    check_cfg(target.cfg, target.negative, "target_cfg")
    edit.check(start.index)
    samples = source_samples(model, latent)
    clean = into_model(model, samples)
    # A model that mixes noise in another way is refused before it is loaded.
    space_of(model_sampling_of(model))
    grid = None if area is None else area.on(samples.shape)
    branches = {SOURCE: source, TARGET: target}
    attended = None
    if attention is not None:
        if isinstance(edit, InfEdit):
            # The third branch of unified control runs under the source's prompt.
            branches.update({name: source for name in attention.branches})
        attended = Attended(model, branches, attention)

    def blend(number: int, total: int, sigma: float, latents: Sequence[torch.Tensor]) -> torch.Tensor:
        assert attended is not None
        return attended.running.blend(Step(number, total, sigma), dict(zip(branches, latents, strict=True)))

    def script(session: Session) -> torch.Tensor:
        state = clean.to(session.dtype).to(session.device)
        both = None if attended is None else session.denoiser()
        one, other = (session.denoiser(SOURCE), session.denoiser(TARGET)) if both is None else (both, both)
        options = EditOptions(
            start.seed,
            latent.get("batch_index"),
            grid,
            session.tell,
            both,
            len(branches) - 2,
            blend if attention is not None and attention.latent_rules else None,
        )
        return edit.edit(one, other, state, start.sigmas, start.index, options).cpu()

    state = Guider(model, branches, attended).run(samples, start.sigmas[start.index :: -1], script)
    edited = out_of_model(model, state, samples.dtype)
    if grid is not None:
        edited = keep_outside(grid, edited, samples)
    return {**extras_of(latent), "samples": edited}
