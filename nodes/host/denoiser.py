"""The Denoiser of a running guider: how a method asks the host's model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch

from ...inversion import Denoiser, StepReport
from .negative import exchanged
from .parametrisation import sigma_floor, space_of

Callback = Callable[[int, torch.Tensor, torch.Tensor, int], None]


def denoiser_of(
    model: Any,
    model_sampling: Any,
    extra_args: dict[str, Any],
    dtype: torch.dtype,
    guider: Any = None,
) -> Denoiser:
    """Wrap the model function of a sampler's run.

    An interrupt by the user is raised before each model call, so that no run outlives it by more than one call.

    Args:
        model: What the host hands to a sampler: called with (x, sigma of each row, **extra_args), gives denoised.
        model_sampling: The model_sampling object of the loaded model.
        extra_args: The host's extra arguments of this run.
        dtype: Precision of the states.
        guider: The guider of the run, where its negative's embedding may be exchanged for methods that fit one.

    Returns:
        The denoiser, in the model's space.

    Raises:
        ValueError: If the model is neither a diffusion nor a flow model.
    """
    space = space_of(model_sampling)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows = torch.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device)
        return model(x, rows, **extra_args)

    def plain(x: torch.Tensor, sigma: float) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows = torch.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device)
        # A view of this run as a guider at cfg 1, where the host leaves the negative out.
        alone = copy.copy(guider)
        alone.cfg = 1.0
        return alone(x, rows, **extra_args)

    def rebind(embedding: torch.Tensor) -> Callable[[torch.Tensor, float], torch.Tensor]:
        def denoise_under(x: torch.Tensor, sigma: float) -> torch.Tensor:
            with exchanged(guider, embedding):
                return denoise(x, sigma)

        # At cfg 1 the host leaves the negative out, and its embedding acts on nothing.
        return denoise if getattr(guider, "cfg", None) == 1.0 else denoise_under

    floor = sigma_floor(model_sampling, space, dtype)
    guided = guider is not None and model is guider and getattr(guider, "cfg", 1.0) != 1.0
    return Denoiser(denoise, space, floor, None if guider is None else rebind, plain if guided else None)


def refusing_denoiser(like: Denoiser, reason: str) -> Denoiser:
    """Return a denoiser of the same space that raises ValueError(reason) when it is asked."""

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        raise ValueError(reason)

    return Denoiser(denoise, like.space, like.sigma_floor)


def reporter(callback: Callback | None) -> Callable[[StepReport], None]:
    """Return a listener that drives the host's progress bar and preview with the predicted clean latent."""

    def on_step(report: StepReport) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if callback is not None:
            # float32: the previewers of the host multiply by float32 matrices.
            callback(report.index, report.denoised.float(), report.x.float(), report.total)

    return on_step
