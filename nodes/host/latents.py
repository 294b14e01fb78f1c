"""LATENT in, model space out, and back without losing a bit.

The host maps a latent into the space that a model samples in (scale, shift, per-channel mean and deviation) in the
latent's own float32. That map followed by its inverse loses about one bit in six values. Done in float64 from the
stored state and rounded once at the very end, it gives back every value whose magnitude is above 1e-16 times the
format's shift, so a kept region comes back bit for bit.
"""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch


def source_samples(model: Any, latent: dict[str, Any], what: str = "latent") -> torch.Tensor:
    """Return the samples of a LATENT, given the channels and dimensions that the model samples in.

    Args:
        model: The MODEL that will sample.
        latent: The LATENT.
        what: Its name in the user's terms, for the error.

    Returns:
        The samples on the CPU, shape (B, C, *), in the dtype they came in; never the tensor that came in if a
        dimension was added.

    Raises:
        TypeError: If the LATENT holds several streams at once.
        ValueError: If the channels or dimensions do not fit the model or a value is not finite.
    """
    samples: torch.Tensor = latent["samples"]
    if getattr(samples, "is_nested", False) or not isinstance(samples, torch.Tensor):
        raise TypeError(
            f"{what} must hold one tensor, got a nested latent of several streams; "
            "invert the picture or the clip without its audio."
        )
    samples = comfy.sample.fix_empty_latent_channels(model, samples)
    latent_format = model.get_model_object("latent_format")
    if samples.ndim == 5 and latent_format.latent_dimensions == 2:
        raise ValueError(
            f"{what} must be pictures for this model, got a clip of shape {tuple(samples.shape)}; load a video model, "
            "or encode the frames as a batch of pictures."
        )
    wanted = getattr(latent_format, "latent_channels", samples.shape[1])
    if samples.shape[1] != wanted:
        raise ValueError(
            f"{what} must have the {wanted} channels of this model, got {samples.shape[1]}; "
            "encode the picture with the model's own VAE."
        )
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(f"{what} must be finite, got NaN or infinity; check the VAE that made it.")
    return samples.detach().to("cpu")


def into_model(model: Any, samples: torch.Tensor) -> torch.Tensor:
    """Map samples into the space that the model samples in.

    Args:
        model: The MODEL.
        samples: Shape (B, C, *), any floating dtype.

    Returns:
        The clean state x0, same shape, float64 on the CPU.

    Raises:
        ValueError: If the model's format rearranges the latent instead of scaling it.
    """
    mapped: torch.Tensor = model.get_model_object("latent_format").process_in(samples.to("cpu", torch.float64))
    if mapped.shape != samples.shape:
        raise ValueError(
            f"latent format must keep the shape {tuple(samples.shape)}, got {tuple(mapped.shape)}; "
            "inversion does not support refiner models that fold frames into channels."
        )
    return mapped


def out_of_model(model: Any, state: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Map a clean state back to samples, rounding once.

    Args:
        model: The MODEL.
        state: Shape (B, C, *).
        dtype: The dtype of the samples.

    Returns:
        Samples of that dtype on the CPU.
    """
    samples: torch.Tensor = model.get_model_object("latent_format").process_out(state.to("cpu", torch.float64))
    return samples.to(dtype)


def keep_outside(mask: torch.Tensor, edited: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Put the source's own values where the mask is exactly zero.

    The states there are already the source's; this takes the last rounding away that a format with a shift can
    leave on values near zero.

    Args:
        mask: Broadcastable to the samples, 1 where the edit may act.
        edited: Samples of the edit, shape (B, C, *).
        source: Samples of the source, same shape.

    Returns:
        Samples in the dtype of ``edited``.
    """
    return torch.where(mask.to(edited.device) == 0, source.to(edited), edited)
