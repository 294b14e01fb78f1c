"""Where the source of a record stands at any noise level."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

import torch
from torch import Tensor

from .field import implied_noise, mix
from .record import Inversion


def state_at(inversion: Inversion, sigma: float, device: torch.device | str = "cpu") -> Tensor:
    """The source's state at a noise level, for whatever looks at the source while the target is sampled.

    Between two levels of a recorded path it is linear in sigma, which is exact for an Euler path. Without a path it
    is x0 mixed with the noise that x_k implies. At both ends it is the record's own x0 and x_k; above the record's
    level, x_k.

    Args:
        inversion: The record.
        sigma: Noise level.
        device: Where the state is wanted.

    Returns:
        State of the shape and dtype of x0.
    """
    levels = inversion.climb
    if sigma <= levels[0]:
        return inversion.x0.to(device)
    if sigma >= levels[-1]:
        return inversion.x.to(device)
    if inversion.path is None:
        noise = implied_noise(inversion.x, inversion.x0, inversion.sigma, inversion.space, levels[0])
        return mix(inversion.x0, noise, sigma, inversion.space, levels[0]).to(device)
    above = bisect_left(levels, sigma)
    low, high = levels[above - 1], levels[above]
    if sigma == high:
        return inversion.path[above].to(device)
    share = (sigma - low) / (high - low)
    return torch.lerp(inversion.path[above - 1].to(device), inversion.path[above].to(device), share)


def beside(inversion: Inversion) -> Inversion:
    """The record with every picture twice, first all of them, then all again: two walks side by side.

    A replay of it whose field answers the first half for the source and the second for a target reconstructs the
    source in lockstep with the edit.
    """

    def twice(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat([tensor, tensor])

    def all_twice(tensors: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
        return None if tensors is None else tuple(torch.cat([tensor, tensor]) for tensor in tensors)

    return replace(
        inversion,
        x0=torch.cat([inversion.x0, inversion.x0]),
        x=torch.cat([inversion.x, inversion.x]),
        mate=twice(inversion.mate),
        path=all_twice(inversion.path),
        residuals=all_twice(inversion.residuals),
    )
