"""Playing an inversion back with the source beside the target, so that rules can read from it.

The source is pinned, at the state of the record for each noise level, or free: reconstructed in lockstep.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...attention import AttentionPlan, Cache
from ...inversion import (
    AfterStep,
    Inversion,
    OnStep,
    StepReport,
    blend,
    replay,
    work_dtype,
)
from ..host.denoiser import Callback, denoiser_of, refusing_denoiser, reporter
from ..inverting.link import Bundle
from ..inverting.sampling import ScriptedSampler
from .branches import Branch, BranchGuider

SOURCE, TARGET = "source", "target"


def replay_guider(
    model: Any,
    bundle: Bundle,
    target: Any,
    negative: Any,
    cfg: float,
    plan: AttentionPlan,
    together: bool | None = None,
    cache: Cache | None = None,
) -> BranchGuider:
    """Return a guider of an inversion's source and a target.

    Args:
        model: The MODEL; it is not changed.
        bundle: The inversion.
        target: CONDITIONING of the edit.
        negative: CONDITIONING, may be None at cfg 1.
        cfg: Guidance scale of the edit.
        plan: What the target reads from the source.
        together: As in BranchGuider.
        cache: As in BranchGuider; it holds what the plan reads from the source, which is not evaluated again.

    Raises:
        ValueError: If the source's conditioning is not known, or the plan or the model does not fit.
    """
    if bundle.source is None:
        raise ValueError(
            "source must be connected to control attention with an inversion that was loaded from a file, got nothing; "
            "connect the conditioning that it was inverted with."
        )
    source = Branch(bundle.source, bundle.negative, bundle.cfg)
    return BranchGuider(model, {SOURCE: source, TARGET: Branch(target, negative, cfg)}, plan, together, cache)


def with_pinned_source(
    guider: BranchGuider, record: Inversion, x: torch.Tensor, sigma: torch.Tensor, options: dict[str, Any] | None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Return rows, levels and options of a call for a target whose source stands where the record says.

    Args:
        guider: A running guider of source and target.
        record: The inversion.
        x: States of the target.
        sigma: Level of each row.
        options: The model_options of the run.

    Returns:
        The arguments of a call of the guider; the last rows of its answer are the target's.
    """
    level = float(sigma[0])
    if guider.cache is not None or not guider.active(options or {}, level):
        # The source costs nothing where nobody reads from it, or where what is read was kept.
        return x, sigma, guider.asking(options, [TARGET], [TARGET])
    source = record.state_at(level, x.device).to(x)
    asked = guider.asking(options, [SOURCE, TARGET], [TARGET])
    return torch.cat([source, x]), torch.cat([sigma, sigma]), asked


class PinnedSource:
    """The model function of a target whose source is pinned; what a sampler calls.

    It can stand in the place of a guider: what samplers want of one is the running guider's.

    Args:
        guider: A running guider of source and target.
        record: The inversion, in a precision that the device has.
    """

    def __init__(self, guider: BranchGuider, record: Inversion) -> None:
        self._guider = guider
        self._record = record
        self.model_patcher = guider.model_patcher
        self.inner_model = guider.inner_model

    def __call__(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Return the target's guided denoised."""
        rows, levels, options = with_pinned_source(self._guider, self._record, x, sigma, model_options)
        return self._guider(rows, levels, model_options=options, seed=seed)[-x.shape[0] :]


class AttendedReplay(ScriptedSampler[torch.Tensor]):
    """Plays a record back under a BranchGuider; ``result`` is the target's clean state.

    Args:
        record: The inversion.
        plan: The plan of the guider.
        grid: Weights on the latent grid outside which the source is kept, or None.
        tap: Told after every step, or None.
    """

    def __init__(
        self, record: Inversion, plan: AttentionPlan, grid: torch.Tensor | None = None, tap: OnStep | None = None
    ) -> None:
        self._record = record
        self._plan = plan
        self._grid = grid
        self._tap = tap
        self.result = None

    def sample(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Walk down; called by the host."""
        device, dtype = noise.device, work_dtype(noise.device)
        record = self._record.to_precision(dtype)
        free = self._plan.source == "free"
        walked = record.doubled() if free else record
        model = guider if free else PinnedSource(guider, record)
        denoiser = denoiser_of(model, guider.inner_model.model_sampling, extra_args, dtype, guider)
        reason = (
            f"attention must be left out for method {record.method}, got a plan; this solver only reconstructs here."
        )
        show = reporter(callback)

        def told(report: StepReport) -> None:
            report = of_target(report) if free else report
            if self._tap is not None:
                self._tap(report)
            show(report)

        after = after_step(guider, walked, record, free, self._grid, device)
        state = replay(
            walked, refusing_denoiser(denoiser, reason), denoiser, after_step=after, on_step=told, device=device
        )
        self.result = (state.chunk(2)[1] if free else state).cpu()
        return torch.zeros_like(noise)


def of_target(report: StepReport) -> StepReport:
    """Return the report of the second half of the rows."""
    return replace(report, x=report.x.chunk(2)[1], denoised=report.denoised.chunk(2)[1])


def after_step(
    guider: BranchGuider,
    walked: Inversion,
    record: Inversion,
    free: bool,
    grid: torch.Tensor | None,
    device: torch.device,
) -> AfterStep | None:
    """Return the hook of a replay: the plan's latent rules, then the mask."""
    assert guider.run is not None
    masked = None
    if grid is not None:
        batched = free and grid.shape[0] > 1
        masked = blend(walked, torch.cat([grid, grid]) if batched else grid, device)
    return guider.run.after_step(record.falling, None if free else record.state_at, masked)
