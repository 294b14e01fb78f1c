"""RestoreREDDiff: one best estimate as a SAMPLER."""

from __future__ import annotations

import torch

from ...core.walk import OnStep
from ...restoration.solvers.latent import data_gradient
from ...restoration.solvers.red_diff import REDDiffSettings, red_diff
from .restore_node import RestoreNode
from .run import Run, Solver


class RestoreREDDiff(RestoreNode):
    """Fits one clean picture to the damaged one, with the model as a regulariser."""

    TITLE, SETTINGS = "Restore Sampler, RED-diff", REDDiffSettings
    ABOUT = (
        "Restores a damaged picture by fitting one clean picture to it. It gives one calm best estimate where the DDS "
        "sampler gives one likely picture of many. Mardani et al. 2024, arXiv:2305.04391."
    )
    ALIASES = ("variational", "MAP", "inverse problem", "regularisation by denoising")

    @classmethod
    def solver(cls, settings: REDDiffSettings) -> Solver:
        """RED-diff, with the encoder in the place of the decoder's adjoint."""

        def solve(run: Run, on_step: OnStep) -> torch.Tensor:
            if run.sigmas[-1] > 0.0:
                raise ValueError(
                    f"sigmas must end at 0 to fit a clean picture, got {run.sigmas[-1]:g}; use all of them."
                )

            def gradient(mu: torch.Tensor) -> torch.Tensor:
                return data_gradient(run.measurement, run.coder, mu, run.in_pixels)

            return red_diff(run.denoiser, run.guess(), run.sigmas, gradient, run.fresh(), settings, on_step)

        return Solver(solve)
