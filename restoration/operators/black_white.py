"""A colour picture of which brightness alone is left."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .operator import Operator, Shape

# ITU-R BT.601, the weights of television and of JPEG; BT.709 those of HD video.
REC601 = (0.299, 0.587, 0.114)
REC709 = (0.2126, 0.7152, 0.0722)


class BlackWhite(Operator):
    """y = w . (r, g, b) for every pixel.

    prox: x + g w (y - w . x) / (1 + g w . w).
    """

    def __init__(self, shape: Shape, weights: Sequence[float] = REC601) -> None:
        """Set the weights.

        Args:
            shape: Shape of a sample with as many channels as weights.
            weights: Share of every channel.

        Raises:
            ValueError: If the channels do not fit or all weights are zero.
        """
        super().__init__(shape, (*shape[:-3], 1, *shape[-2:]))
        if len(weights) != shape[-3]:
            raise ValueError(
                f"picture must have {len(weights)} channels to lose its colour, got {shape[-3]}; use an RGB picture."
            )
        if not any(weights) or not all(map(math.isfinite, weights)):
            raise ValueError(f"weights must be finite and not all zero, got {tuple(weights)}; use Rec.601.")
        self._weights = torch.tensor(weights, dtype=torch.float64)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Brightness w . x."""
        return (self._weights.to(x) * x).sum(dim=-3, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """Colours w y."""
        return self._weights.to(y) * y

    def row_energy(self) -> Tensor:
        """Squared length w . w, the same for all."""
        return self._weights.square().sum(dim=0, keepdim=True)

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Exact, pixel by pixel."""
        size = float(self._weights.square().sum())
        return x + weight / (1.0 + weight * size) * self.adjoint(y - self.forward(x))

    def _measure_norm(self) -> float:
        return float(self._weights.norm())
