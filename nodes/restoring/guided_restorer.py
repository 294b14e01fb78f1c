"""Restoration by gradients through the host's denoiser and VAE."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch

from ...restoration.levels import Report
from ...restoration.solvers.guided import LARGEST, Energy, guided, unit_start
from ..host.gradients import deinference, differentiable, networks_of, normal_weights, with_backward
from .restorer import Photo, Restorer, Run, refuse_streamed


@dataclass(frozen=True)
class GuidedSettings:
    """Settings of RestoreGuided, named as its inputs."""

    measurement_weight: float = 1.0
    gluing: float = 0.1
    inner_steps: int = 1
    curvature: float = 0.0
    start_from_photo: bool = False
    largest_step: float = LARGEST


class GuidedSampler(Restorer):
    """PSLD and STSL."""

    def __init__(self, photo: Photo, settings: GuidedSettings) -> None:
        """Set what is restored and how."""
        super().__init__(photo)
        self._settings = settings

    def _enter(self, stack: contextlib.ExitStack, guider: Any, extra_args: dict[str, Any]) -> dict[str, Any]:
        refuse_streamed(guider.model_patcher, "model")
        if self._photo.vae is not None:
            refuse_streamed(self._photo.vae.patcher, "vae")
            # Both before their weights are exchanged: nothing may load after that.
            comfy.model_management.load_models_gpu([guider.model_patcher, self._photo.vae.patcher])
        stack.enter_context(differentiable(*networks_of(guider)))
        if self._photo.vae is not None:
            stack.enter_context(normal_weights(self._photo.vae.first_stage_model))
        stack.enter_context(torch.no_grad())
        conds = guider.conds
        stack.callback(setattr, guider, "conds", conds)
        guider.conds = {name: deinference(cond) for name, cond in conds.items()}
        return {**extra_args, "model_options": with_backward(extra_args.get("model_options") or {})}

    def _solve(self, run: Run, on_step: Callable[[Report], None]) -> torch.Tensor:
        settings, coder = self._settings, run.autoencoder
        guess = None
        if settings.start_from_photo:
            guess = coder.encode(run.measurement.initial().expand(run.pictures).contiguous())
        energy = Energy(
            run.measurement,
            coder.decode,
            coder.encode,
            settings.measurement_weight,
            settings.gluing,
            run.joined,
        )
        return guided(
            run.denoiser,
            unit_start(run.noise, guess, run.levels[0], run.space),
            run.levels,
            run.space,
            energy,
            run.fresh(),
            inner=settings.inner_steps,
            trace=settings.curvature,
            largest=settings.largest_step or math.inf,
            joined=run.joined,
            on_step=on_step,
        )
