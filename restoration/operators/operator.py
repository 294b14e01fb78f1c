"""What every operator offers: forward, true adjoint, norm, closed-form prox where one exists, and a first guess.

An operator acts on samples: pictures (C, H, W), or clips (T, C, H, W) when it couples frames. Any dimensions may
stand before those, so a batch is worked on in one go and every reduction is one of a sample, never of the batch.
Pixel values lie in [-1, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..krylov import conjugate_gradient, largest_eigenvalue

Shape = tuple[int, ...]

# Grey levels of 255 in a unit of [-1, 1].
GREY_LEVELS = 127.5

# Damping of the first guess relative to |A|^2: a raw pseudo-inverse would blow the noise up.
TIKHONOV = 0.05
# They bring the norm of every operator here to 2e-3, from a seeded start in general position.
_NORM_STEPS = 20


class Operator(ABC):
    """A known damage y = A x.

    Attributes:
        shape: Shape of a sample that is damaged, (C, H, W) or (T, C, H, W).
        out_shape: Shape of what is left of it.
        linear: Whether A is linear; one that is not has ``project`` in place of an adjoint.
    """

    linear = True

    def __init__(self, shape: Shape, out_shape: Shape) -> None:
        """Set both shapes.

        Args:
            shape: Shape of a sample, (C, H, W) or (T, C, H, W).
            out_shape: Shape of the damaged sample.

        Raises:
            ValueError: If a side is not positive or a sample is neither picture nor clip.
        """
        for what, sides in (("picture", shape), ("damaged picture", out_shape)):
            if len(sides) not in (3, 4) or min(sides) < 1:
                raise ValueError(f"{what} must have channels, height and width, got shape {tuple(sides)}; resize it.")
        self.shape = tuple(shape)
        self.out_shape = tuple(out_shape)
        self._norm: float | None = None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x: shape (..., *shape) to (..., *out_shape)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y with <A x, y> = <x, A^T y>: shape (..., *out_shape) to (..., *shape)."""

    @property
    def norm(self) -> float:
        """Largest singular value |A|."""
        if self._norm is None:
            self._norm = self._measure_norm()
        return self._norm

    @property
    def measured(self) -> int | Tensor:
        """Number of values that a sample of y holds; where samples differ, one for each: shape (..., 1, ..., 1)."""
        return math.prod(self.out_shape)

    def row_energy(self) -> Tensor | None:
        """Squared length of every row of A, broadcastable to out_shape, where each row holds one pixel; else None."""
        return None

    def seen(self, y: Tensor) -> Tensor:
        """Damaged picture with zero where nothing was measured: what a photo shows inside a hole must not count."""
        return y

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor | None:
        """argmin_z 1/2 |z - x|^2 + weight/2 |A z - y|^2 in closed form, None where there is none.

        Args:
            x: Shape (..., *shape).
            y: Shape broadcastable to (..., *out_shape).
            weight: Positive; a tensor broadcasts against x.
        """
        return None

    def precondition(self, r: Tensor, weight: Tensor | float) -> Tensor:
        """An approximation of (I + weight A^T A)^-1 r for the inner solve; the identity unless overridden."""
        return r

    def initial(self, y: Tensor) -> Tensor:
        """Tikhonov guess A^T (A A^T + t |A|^2)^-1 y, t = 0.05; shape (..., *out_shape) to (..., *shape)."""
        # (A^T A + t)^-1 A^T y is the same, and is the prox of the zero picture at the weight 1 / t.
        zero = y.new_zeros(*y.shape[: y.ndim - len(self.out_shape)], *self.shape)
        weight = 1.0 / (TIKHONOV * self.norm**2)
        closed = self.prox(zero, y, weight)
        return self.solve(zero, y, weight, iterations=50) if closed is None else closed

    def solve(
        self, x: Tensor, y: Tensor, weight: Tensor | float, iterations: int = 20, tolerance: float = 1e-4
    ) -> Tensor:
        """The prox by conjugate gradients from x: (I + weight A^T A) z = x + weight A^T y."""
        return conjugate_gradient(
            lambda z: z + weight * self.adjoint(self.forward(z)),
            x + weight * self.adjoint(y),
            x,
            sample_dims=len(self.shape),
            iterations=iterations,
            tolerance=tolerance,
            precondition=lambda r: self.precondition(r, weight),
        )

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """Nearest picture that gives exactly y; only for operators that are not linear.

        Raises:
            TypeError: If the operator is linear.
        """
        raise TypeError(f"{type(self).__name__} must quantise to be projected on, got a linear operator; use its prox.")

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """A x - y; for one that quantises how far what it is given lies from the nearest that gives y."""
        return self.forward(x) - y

    @property
    def linear_part(self) -> Operator:
        """The linear damage whose output ``residual`` is measured in: itself, or all but the rounding."""
        return self

    def check_damaged(self, y: Tensor) -> None:
        """Refuse a damaged picture of another size.

        Raises:
            ValueError: If y does not end in out_shape.
        """
        if tuple(y.shape[y.ndim - len(self.out_shape) :]) != self.out_shape:
            raise ValueError(
                f"damaged picture must be {_described(self.out_shape)}, got {_described(tuple(y.shape[1:]))}; "
                "correct the operator's settings or the size of the latent."
            )

    def _measure_norm(self) -> float:
        # What damages pictures keeps broad shapes best, so the start has them; it has everything else too.
        start = 1.0 + 0.1 * torch.randn(self.shape, generator=torch.Generator().manual_seed(0))
        return math.sqrt(largest_eigenvalue(lambda x: self.adjoint(self.forward(x)), start, _NORM_STEPS))


def _described(shape: Shape) -> str:
    """A shape in words: "64 x 48 pixels with 3 channels", frames first."""
    if len(shape) < 3:
        return f"of shape {tuple(shape)}"
    frames = f"{shape[-4]} frames of " if len(shape) > 3 else ""
    return f"{frames}{shape[-1]} x {shape[-2]} pixels with {shape[-3]} channel{'s' if shape[-3] != 1 else ''}"
