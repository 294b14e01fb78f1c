"""Noise optimisation on a model of the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...core.settings import parameter
from ...inversion import (
    Inversion,
    MisfitError,
    NoiseDescent,
    NoiseReport,
    SingleState,
    meet,
    noise_optimize,
    own_method,
    with_noise,
)
from ...inversion.noise_optimize import NORMS
from ..host.checks import check_cfg, refuse_skipping
from ..host.compat import whole_model
from ..host.gradients import refuse_quantised
from ..host.latents import into_model, source_samples
from ..host.masks import EditArea
from ..host.session import Branch, Guider, Session
from ..host.unfinished import keep_unfinished
from .link import LinkedInversion, source_samples_of
from .runs import check_model_fits, run_replay, target_of

_UNFINISHED = "retrace/noise_optimize_unfinished"

Listener = Callable[[NoiseReport], None]


@dataclass(frozen=True)
class DescentSettings(NoiseDescent):
    """Settings of an optimisation, and the norm of its loss."""

    norm: str = parameter(
        NORMS[0],
        "L2 evens the whole area out. L1 lets single spots differ and meets the rest closer.",
        options=NORMS,
    )


def run_noise_optimize(
    model: Any,
    inversion: LinkedInversion,
    reference: dict[str, Any],
    settings: DescentSettings,
    target: Branch | None = None,
    area: EditArea | None = None,
    save_unfinished: bool = True,
    tap: Listener | None = None,
) -> tuple[LinkedInversion, dict[str, Any]]:
    """Optimise the noise of an inversion, so that what it is played back to meets a reference.

    Args:
        model: The MODEL that made it; it is not changed.
        inversion: The inversion.
        reference: LATENT to meet, of its size; one picture stands for a whole batch.
        settings: Loss and settings of the optimiser.
        target: What the way down is asked for; None plays the inversion back under its own.
        area: Where the reference is to be met.
        save_unfinished: Whether an interrupt leaves the best so far as a file in the output folder.
        tap: Told of every noise that is tried.

    Returns:
        The inversion with its new noise, and the LATENT that Resample makes of it under these conditionings.

    Raises:
        ValueError: If something does not fit.
    """
    refuse_skipping(model)
    refuse_quantised(model)
    check_model_fits(model, inversion)
    method = own_method(inversion)
    if not isinstance(method, SingleState):
        raise MisfitError(
            f"inversion must come from a method that keeps one latent, got {method.name}; "
            "invert with midpoint, fireflow, ddim or another of that kind."
        )
    wanted = target_of(inversion, target)
    check_cfg(wanted.cfg, wanted.negative)
    met = _reference(model, reference, inversion)
    loss = meet(met, None if area is None else area.on(inversion.shape), settings.norm)
    latest: list[NoiseReport] = []

    def script(session: Session) -> LinkedInversion:
        def told(report: NoiseReport) -> None:
            latest[:] = [report]
            if tap is not None:
                tap(report)
            session.tell(report)

        return noise_optimize(
            inversion.to_precision(session.dtype),
            session.denoiser(),
            loss,
            settings,
            told,
            session.device,
        )

    try:
        guider = Guider(whole_model(model), {"positive": wanted})
        moved = guider.run(source_samples_of(model, inversion), inversion.falling, script, gradients=True)
        # In the inversion's own precision, whatever the device had.
        optimised = replace(with_noise(inversion, moved.x), meta=moved.meta)
        return optimised, run_replay(model, optimised, target)
    except BaseException:  # the host's interrupt is no Exception from 0.30 on
        if save_unfinished and latest:
            keep_unfinished(
                with_noise(inversion, latest[0].best),
                _UNFINISHED,
                f"{latest[0].index} of {settings.iterations} updates",
                "Load that with LoadInversion, for Resample or for NoiseOptimize to go on from there.",
            )
        raise


def _reference(model: Any, reference: dict[str, Any], inversion: Inversion) -> torch.Tensor:
    samples = source_samples(model, reference, "reference")
    if tuple(samples.shape[1:]) != inversion.shape[1:] or samples.shape[0] not in (1, inversion.shape[0]):
        raise ValueError(
            f"reference must have the inversion's size {inversion.shape}, or that of one of its rows, "
            f"got {tuple(samples.shape)}; encode a picture of the same size."
        )
    return into_model(model, samples)
