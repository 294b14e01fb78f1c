"""A missing area."""

from __future__ import annotations

import torch
from torch import Tensor

from .operator import Operator, Shape


class Mask(Operator):
    """y = m x with m in [0, 1]: 1 where the picture is kept, 0 where it is missing.

    prox: (x + g m y) / (1 + g m^2).
    """

    def __init__(self, shape: Shape, keep: Tensor) -> None:
        """Set what is kept.

        Args:
            shape: Shape of a sample.
            keep: Broadcastable to (..., *shape); a mask for each picture of a batch has it as leading dimension.

        Raises:
            ValueError: If the mask does not fit, is not within [0, 1], or keeps nothing.
        """
        super().__init__(shape, shape)
        if keep.shape[-2:] != tuple(shape[-2:]):
            raise ValueError(
                f"mask must be {shape[-1]} x {shape[-2]} pixels as the picture is, "
                f"got {keep.shape[-1]} x {keep.shape[-2]}; scale the mask."
            )
        if not bool(((keep >= 0) & (keep <= 1)).all()):
            raise ValueError("mask must lie between 0 and 1, got values outside or NaN; check the node that made it.")
        if not bool((keep > 0).any()):
            raise ValueError(
                "mask must keep a part of the picture, got one that covers all of it; paint a smaller one."
            )
        self._keep = keep

    def _on(self, x: Tensor) -> Tensor:
        return self._keep.to(device=x.device, dtype=x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Kept part m x."""
        return self._on(x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        """Kept part m y."""
        return self.forward(y)

    def seen(self, y: Tensor) -> Tensor:
        """Damaged picture where it is kept, zero where it is missing."""
        return torch.where(self._on(y) > 0, y, torch.zeros_like(y))

    @property
    def measured(self) -> int:
        """Values that are kept, of an average picture of the batch."""
        whole = self._keep.expand(*self._keep.shape[: -len(self.shape)], *self.shape)
        pictures = whole.numel() // super().measured
        return max(1, int((whole > 0).sum()) // pictures)

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """(x + g m y) / (1 + g m^2)."""
        keep = self._on(x)
        return (x + weight * keep * y) / (1.0 + weight * keep.square())

    def _measure_norm(self) -> float:
        return float(self._keep.max())
