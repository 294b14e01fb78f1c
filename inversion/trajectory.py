"""Where the source of a record stands at any noise level."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

import torch
from torch import Tensor

from ..core.denoiser import implied_noise, mix
from .record import Inversion

# In the meta of a record whose x is no longer the state that its source reached.
MOVED = "noise_moved"


def state_at(inversion: Inversion, sigma: float, device: torch.device | str = "cpu") -> Tensor:
    """The source's state at a noise level, for whatever looks at the source while the target is sampled.

    Between two levels of a recorded path it is linear in sigma, which is exact for an Euler path. Without a path it
    is x0 mixed with the noise that x_k implies. At both ends it is the record's own x0 and x_k; above the record's
    level, x_k. Where the noise of the record was moved since (`with_noise`), its path still tells where the source
    was, and its x does not.

    Args:
        inversion: The record.
        sigma: Noise level.
        device: Where the state is wanted.

    Returns:
        State of the shape and dtype of x0.

    Raises:
        ValueError: If the noise was moved and there is no path.
    """
    levels = inversion.climb
    if sigma <= levels[0]:
        return inversion.x0.to(device)
    end = reached(inversion)
    if sigma >= levels[-1]:
        return end.to(device)
    if inversion.path is None:
        noise = implied_noise(inversion.x, inversion.x0, inversion.sigma, inversion.space, levels[0])
        return mix(inversion.x0, noise, sigma, inversion.space, levels[0]).to(device)
    above = bisect_left(levels, sigma)
    low, high = levels[above - 1], levels[above]
    if sigma == high:
        return inversion.path[above].to(device)
    share = (sigma - low) / (high - low)
    return torch.lerp(inversion.path[above - 1].to(device), inversion.path[above].to(device), share)


def reached(inversion: Inversion) -> Tensor:
    """The state that the source itself reached at the record's level: x_k, or the end of its path if x was moved.

    Raises:
        ValueError: If it was moved and there is no path.
    """
    if not inversion.meta.get(MOVED):
        return inversion.x
    if inversion.path is None:
        raise ValueError(
            "inversion must hold its path to tell where its source was before its noise was moved, got none; "
            "set keep_path when you invert, or use the inversion whose noise was not moved."
        )
    return inversion.path[-1]


def beside(inversion: Inversion) -> Inversion:
    """The record with every picture twice, first all of them, then all again: two walks side by side.

    A replay of it whose denoiser answers the first half for the source and the second for a target reconstructs the
    source in lockstep with the edit: the first half starts where the source was, the second at the record's x.

    Raises:
        ValueError: If the noise was moved and there is no path.
    """

    def twice(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat([tensor, tensor])

    def all_twice(tensors: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
        return None if tensors is None else tuple(torch.cat([tensor, tensor]) for tensor in tensors)

    return replace(
        inversion,
        x0=torch.cat([inversion.x0, inversion.x0]),
        x=torch.cat([reached(inversion), inversion.x]),
        mate=twice(inversion.mate),
        path=all_twice(inversion.path),
        residuals=all_twice(inversion.residuals),
    )
