"""Drawing: what a row gets depends on its own seed, never on the batch around it, the device or the precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# What every random generator and every number box takes.
LARGEST_SEED = 2**32 - 1


def generator(seed: int) -> torch.Generator:
    """A generator on the CPU; its seeds are 64 bits, so that any whole number is one."""
    return torch.Generator().manual_seed(seed % 2**64)


class Noises:
    """Noise for the rows of a batch, each row from a generator of its own.

    Args:
        seed: Seed of row 0, at least 0; row r draws from seed + r.
        like: A latent (B, C, [T,] H, W) that gives shape, dtype and device.
        rows: Number of each row, where a batch is part of a larger one; None counts from 0.
        shared: An axis along which every entry gets the noise of the first: 0 for one noise in all rows, 2 for one in
            all frames of a clip.
        precision: In which it is drawn, before it becomes that of the latent; float32 gives other numbers.
        scale: Its standard deviation: the `noise_scale` of the denoiser.

    Raises:
        ValueError: If there are not as many numbers as rows.
    """

    def __init__(
        self,
        seed: int,
        like: Tensor,
        rows: Sequence[int] | None = None,
        shared: int | None = None,
        precision: torch.dtype = torch.float64,
        scale: float = 1.0,
    ) -> None:
        numbers = list(range(like.shape[0])) if rows is None else [int(row) for row in rows]
        if len(numbers) != like.shape[0]:
            raise ValueError(
                f"rows must number the {like.shape[0]} pictures of the latent, got {len(numbers)} numbers; "
                "leave them out to count from 0."
            )
        self._like = like
        self._precision, self._scale = precision, scale
        self._shape = [1 if axis == shared else size for axis, size in enumerate(like.shape)][1:]
        self._generators = [generator(seed + row) for row in (numbers[:1] if shared == 0 else numbers)]

    def draw(self) -> Tensor:
        """The next noise, shape, dtype and device of the latent."""
        rows = [torch.randn(self._shape, generator=each, dtype=self._precision) for each in self._generators]
        return self._scale * torch.stack(rows).to(self._like).expand(self._like.shape)
