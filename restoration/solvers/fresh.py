"""Noise of a run: each row from a generator of its own, so that a batch is its rows alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Fresh = Callable[[], Tensor]


def fresh_noise(like: Tensor, seed: int, shared: bool = False, axis: int = 0) -> Fresh:
    """Return a source of unit noise of the shape of a state.

    Args:
        like: The state, shape (B, ...).
        seed: Row r draws from seed + r.
        shared: Whether all entries along the axis get the noise of the first, which keeps frames from flickering.
        axis: The axis of frames: 0 for a batch of pictures, 2 for a clip (B, C, T, H, W).

    Returns:
        A function that draws the next noise, on the CPU's generators, in the dtype and on the device of the state.
    """
    rows = 1 if shared and axis == 0 else like.shape[0]
    generators = [torch.Generator().manual_seed((seed + row) % 2**64) for row in range(rows)]
    shape = list(like.shape[1:])
    if shared and axis > 0:
        shape[axis - 1] = 1

    def draw() -> Tensor:
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return noise.to(device=like.device, dtype=like.dtype).expand(like.shape)

    return draw
