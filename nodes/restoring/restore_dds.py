"""RestoreDDS: the main restorer as a SAMPLER."""

from __future__ import annotations

import torch

from ...core.walk import OnStep
from ...restoration.solvers.dds import DECODER_GRADIENT, DDSSettings, dds
from ...restoration.solvers.latent import GAIN, InPixels, latent_consistency
from .restore_node import RestoreNode
from .run import Run, Solver


class RestoreDDS(RestoreNode):
    """Samples a picture that the model finds likely and that explains the damaged one."""

    TITLE, SETTINGS = "Restore Sampler, DDS", DDSSettings
    ABOUT = (
        "Restores a damaged picture or clip with any model as the prior: every step of the sampler is drawn to what "
        "the photo shows, through the damage. No gradients, one model call a step. Chung, Lee, Ye 2024, "
        "arXiv:2303.05754."
    )
    ALIASES = ("inpaint", "super resolution", "deblur", "denoise", "colorize", "inverse problem", "DDS")

    @classmethod
    def solver(cls, settings: DDSSettings) -> Solver:
        """DDS, on pictures or through a VAE, alone or with total variation over frames."""

        def solve(run: Run, on_step: OnStep) -> torch.Tensor:
            shared = settings.share_noise
            consistency = (
                InPixels(run.measurement, run.coder, settings)
                if run.in_pixels
                else latent_consistency(run.measurement, run.coder, settings, run.joined, run.frame_axis)
            )
            variance = GAIN if run.in_pixels else 1.0
            start, fresh = run.start(shared), run.fresh(shared)
            return dds(run.denoiser, start, run.sigmas, consistency, fresh, settings, variance, on_step)

        gradients = "vae" if settings.latent_method == DECODER_GRADIENT else ""
        return Solver(solve, settings.temporal_smoothing, gradients)
