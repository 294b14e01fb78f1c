"""Noise alone: nothing is lost but precision."""

from __future__ import annotations

import torch
from torch import Tensor

from .operator import Operator, Shape


class Noise(Operator):
    """y = x; the noise itself belongs to the measurement. prox: (x + g y) / (1 + g)."""

    def __init__(self, shape: Shape) -> None:
        """Set the shape of a sample."""
        super().__init__(shape, shape)

    def forward(self, x: Tensor) -> Tensor:
        """The picture itself."""
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """The picture itself."""
        return y

    def row_energy(self) -> Tensor:
        """One for all."""
        return torch.ones(1, 1, 1)

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """(x + g y) / (1 + g)."""
        return (x + weight * y) / (1.0 + weight)

    def _measure_norm(self) -> float:
        return 1.0
