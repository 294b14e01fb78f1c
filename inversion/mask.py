"""Editing inside a mask: everything else follows the source, and ends as the source bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
        inversion: The record that is replayed.
        mask: Weights from 0 (keep) to 1 (edit) on the latent grid, broadcastable to the latent: batch and channels
            may be 1, and so may the frames of a clip.
        device: Where the replay computes.

    Returns:
        The hook after_step(x, index) -> x.

    Raises:
        ValueError: If the mask does not fit the latent or leaves 0 .. 1. The hook itself, if the noise was moved and
            there is no path.
    """

    def state_of(index: int) -> Tensor:
        return inversion.state_at(inversion.sigmas[index], device)

    return keep_source(mask, inversion.shape, inversion.dtype, state_of, device)


def keep_source(
    mask: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    state_of: Callable[[int], Tensor],
    device: torch.device | str = "cpu",
) -> AfterStep:
    """A hook x <- mask * x + (1 - mask) * state_of(index), bit for bit where the mask is 0 or 1.

    Args:
        mask: Weights from 0 (keep) to 1 (edit), as in blend.
        shape: Shape of the latent.
        dtype: Precision of the states.
        state_of: The source's own state at an index of the walk's grid.
        device: Where the walk computes.

    Returns:
        The hook after_step(x, index) -> x.

    Raises:
        ValueError: If the mask does not fit the latent or leaves 0 .. 1.
    """
    fits = mask.ndim == len(shape) and all(
        have == want or (have == 1 and axis < len(shape) - 2)
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

    def after_step(x: Tensor, index: int) -> Tensor:
        source = state_of(index).to(x)
        mixed = torch.lerp(source, x, weights)
        # Arithmetic alone would let an inf or a rounded sum through where the mask is exactly 0 or 1.
        return torch.where(weights == 0.0, source, torch.where(weights == 1.0, x, mixed))

    return after_step
