"""Editing inside a mask: everything else follows the source, and ends as the source bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.walk import AfterStep
from .inversion import Inversion


def blend(inversion: Inversion, mask: Tensor, device: torch.device | str = "cpu") -> AfterStep:
    """A hook for replay that keeps the source outside a mask.

        x <- mask * x + (1 - mask) * state_at(sigmas[index])

    Where the mask is 0 the result is the source's state bit for bit, at index 0 therefore x0; where it is 1 the
    state is left as it is. (Blended diffusion: Avrahami et al. 2022, arXiv:2206.02779.)

    Args:
        inversion: What is replayed.
        mask: Weights from 0 (keep) to 1 (edit) on the latent grid, broadcastable to the latent: batch and channels
            may be 1, and so may the frames of a clip.
        device: Where the replay computes.

    Returns:
        The hook after_step(x, index) -> x.

    Raises:
        ValueError: If the mask does not fit the latent or leaves 0 .. 1. The hook itself, if the noise was moved and
            there is no path.
    """
    weights = mask_weights(mask, inversion.shape, inversion.dtype, device)

    def after_step(x: Tensor, index: int) -> Tensor:
        return inside(weights, inversion.state_at(inversion.sigmas[index], device), x)

    return after_step


def mask_weights(mask: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A mask as weights for latents of a shape.

    Raises:
        ValueError: If the mask does not fit the latent or leaves 0 .. 1.
    """
    fits = mask.ndim == len(shape) and all(
        have == want or (have == 1 and axis < max(2, len(shape) - 2))
        for axis, (have, want) in enumerate(zip(mask.shape, shape, strict=True))
    )
    if not fits:
        raise ValueError(
            f"mask must fit the latent {tuple(shape)} with 1 for batch, channels or frames, got {tuple(mask.shape)}; "
            "resize it to the latent grid."
        )
    weights = mask.detach().to(device=device, dtype=dtype)
    # Written so that nan fails too.
    if not bool(((weights >= 0.0) & (weights <= 1.0)).all()):
        raise ValueError("mask must lie between 0 and 1, got values outside; clamp it.")
    return weights


def inside(weights: Tensor, source: Tensor, x: Tensor) -> Tensor:
    """Where the source is kept: w x + (1 - w) source, like x, bit for bit where a weight is 0 or 1."""
    source = source.to(x)
    mixed = torch.lerp(source, x, weights)
    # Arithmetic alone would let an inf or a rounded sum through where the weight is exactly 0 or 1.
    return torch.where(weights == 0.0, source, torch.where(weights == 1.0, x, mixed))
