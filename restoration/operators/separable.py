"""Operators that act on rows and on columns alone, solved exactly by the singular values of two small matrices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .operator import Operator, Shape


class _Singular(NamedTuple):
    left: Tensor
    values: Tensor
    right: Tensor


class Separable(Operator):
    """y = R x C^T for every channel and frame.

    With R = U_r S_r V_r^T and C = U_c S_c V_c^T the prox is, at the singular value s = s_r s_c of each pair,
    (V^T x + g s U^T y) / (1 + g s^2), and x is untouched where no singular vector sees it.
    """

    def __init__(self, shape: Shape, rows: Tensor, columns: Tensor) -> None:
        """Set both matrices.

        Args:
            shape: Shape of a sample, ending in (H, W).
            rows: R, shape (H', H), float64.
            columns: C, shape (W', W), float64.
        """
        super().__init__(shape, (*shape[:-2], rows.shape[0], columns.shape[0]))
        self._rows, self._columns = rows, columns
        self._singular: tuple[_Singular, _Singular] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """R x C^T."""
        return self._rows.to(x) @ x @ self._columns.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        """R^T y C."""
        return self._rows.to(y).mT @ y @ self._columns.to(y)

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Exact, by the singular values."""
        rows, columns = (_Singular(*(part.to(x) for part in parts)) for parts in self._decomposed())
        values = rows.values[:, None] * columns.values
        seen = rows.right @ x @ columns.right.mT
        wanted = rows.left.mT @ y @ columns.left
        solved = (seen + weight * values * wanted) / (1.0 + weight * values.square())
        return x + rows.right.mT @ (solved - seen) @ columns.right

    def _decomposed(self) -> tuple[_Singular, _Singular]:
        if self._singular is None:
            rows, columns = (torch.linalg.svd(m, full_matrices=False) for m in (self._rows, self._columns))
            self._singular = _Singular(*rows), _Singular(*columns)
        return self._singular

    def _measure_norm(self) -> float:
        return float(torch.linalg.matrix_norm(self._rows, 2) * torch.linalg.matrix_norm(self._columns, 2))
