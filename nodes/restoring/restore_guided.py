"""RestoreGuided: gradient guidance as a SAMPLER, for experts."""

from __future__ import annotations

import torch

from ...core.space import mix, weights
from ...core.walk import OnStep
from ...restoration.solvers.guided import Energy, GuidedSettings, guided
from .restore_node import RestoreNode
from .run import Run, Solver


class RestoreGuided(RestoreNode):
    """Samples with a gradient of the photo through the denoiser and the VAE."""

    TITLE, SETTINGS = "Restore Sampler, guided", GuidedSettings
    ABOUT = (
        "For experts: restores by gradients through the denoiser and the VAE, which costs several times the memory and "
        "time of the DDS sampler. PSLD, Rout et al. 2023, arXiv:2307.00619; with inner steps the form of STSL, "
        "arXiv:2312.00852."
    )
    ALIASES = ("PSLD", "STSL", "DPS", "posterior sampling", "gradient guidance")

    @classmethod
    def solver(cls, settings: GuidedSettings) -> Solver:
        """PSLD and STSL."""

        def solve(run: Run, on_step: OnStep) -> torch.Tensor:
            top, space = run.sigmas[0], run.denoiser.space
            start = weights(top, space)[1] * run.noise
            if settings.start_from_photo:
                start = mix(run.guess().to(run.noise), run.noise, top, space)
            energy = Energy(run.measurement, run.coder, settings, run.joined)
            return guided(run.denoiser, start, run.sigmas, energy, run.fresh(), settings, run.joined, on_step)

        return Solver(solve, gradients="model")
