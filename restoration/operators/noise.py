"""Noise alone: nothing is lost but precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .damage import Damage
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


@dataclass(frozen=True, eq=False, kw_only=True)
class DamageNoise(Damage):
    """The picture is noisy, and nothing else."""

    title = "Noise Only"
    description = "Says that the picture is noisy and has no other damage. How noisy is set at the sampler."
    aliases = ("denoise operator", "grain")
    label = "noise"

    def build(self, shape: Shape) -> Operator:
        """See Damage."""
        return Noise(shape)

    @classmethod
    def examples(cls) -> Mapping[str, tuple[Damage, Shape]]:
        """See Damage."""
        return {"noise": (cls(), (3, 9, 12))}
