"""What was measured: an operator, the damaged picture, and how noisy it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .krylov import dot
from .operators.operator import GREY_LEVELS, Operator

# 0.01 in [-1, 1] is 1.3 grey levels: below it the solves are ill-conditioned and fit rounding.
NOISE_FLOOR = 0.01


class Measurement:
    """y = A x + noise, scaled so that |A| = 1.

    Attributes:
        operator: The damage.
        y: The damaged picture over |A|.
        sigma: Standard deviation of its noise over |A|.
    """

    def __init__(self, operator: Operator, damaged: Tensor, sigma: float) -> None:
        """Scale a measurement.

        Args:
            operator: The damage.
            damaged: Damaged pictures in [-1, 1], shape (..., *operator.out_shape).
            sigma: Standard deviation of their noise in the same units, at least 0.01.

        Raises:
            ValueError: If the size does not fit, a value is not finite, or the noise is below the floor.
        """
        operator.check_damaged(damaged)
        if not bool(torch.isfinite(damaged).all()):
            raise ValueError("damaged picture must be finite, got NaN or infinity; check the node that made it.")
        if not (math.isfinite(sigma) and sigma >= NOISE_FLOOR):
            raise ValueError(
                f"noise must be at least {GREY_LEVELS * NOISE_FLOOR:.3g} grey levels of 255, "
                f"got {GREY_LEVELS * sigma:.3g}; raise it: a picture of 8 bits has about that much."
            )
        self.operator = operator
        self.y = operator.seen(damaged) / operator.norm
        self.sigma: Tensor | float = sigma / operator.norm

    def to(self, like: Tensor) -> Measurement:
        """The same measurement in the dtype and on the device of a tensor."""
        moved = object.__new__(Measurement)
        moved.operator, moved.y, moved.sigma = self.operator, self.y.to(like), self.sigma
        if isinstance(moved.sigma, Tensor):
            moved.sigma = moved.sigma.to(like)
        return moved

    def with_noise(self, extra: Tensor | float) -> Measurement:
        """The same measurement with further noise, as an autoencoder adds: sqrt(sigma^2 + extra^2).

        Args:
            extra: Deviation in the units of the damaged picture; a tensor broadcasts against it, one for each sample.
        """
        noisier = object.__new__(Measurement)
        noisier.operator, noisier.y = self.operator, self.y
        noisier.sigma = (self.sigma**2 + (extra / self.operator.norm) ** 2) ** 0.5
        return noisier

    def forward(self, x: Tensor) -> Tensor:
        """A x / |A| of the linear part."""
        return self.operator.linear_part.forward(x) / self.operator.norm

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y / |A| of the linear part."""
        return self.operator.linear_part.adjoint(y) / self.operator.norm

    def weight(self, variance: Tensor | float) -> Tensor | float:
        """Weight g = r^2 / sigma^2 of a clean picture that is known up to the variance r^2."""
        return variance / self.sigma**2

    def residual(self, x: Tensor) -> Tensor:
        """(A x - y) / |A|; for JPEG how far what it is given lies from the nearest that gives y."""
        return self.operator.residual(x, self.y * self.operator.norm) / self.operator.norm

    def correct(self, x: Tensor, weight: Tensor | float) -> Tensor:
        """argmin_z 1/2 |z - x|^2 + weight/2 |A z - y|^2, in closed form or by conjugate gradients to 1e-4.

        Args:
            x: Shape (..., *operator.shape).
            weight: Positive; at 0 the picture stays as it is, which a projection alone would not leave it.
        """
        if not self.operator.linear and not bool(torch.as_tensor(weight).any()):
            return x
        scaled = weight / self.operator.norm**2
        y = self.y * self.operator.norm
        closed = self.operator.prox(x, y, scaled)
        return self.operator.solve(x, y, scaled) if closed is None else closed

    def initial(self) -> Tensor:
        """The operator's first guess of the clean picture."""
        return self.operator.initial(self.y * self.operator.norm)

    def values(self, y: Tensor, joined: bool = False) -> Tensor:
        """Number of measured values in every row of damaged pictures (B, ..., *out_shape): shape (B, 1, ..., 1).

        Args:
            y: What is counted in; its values do not matter.
            joined: Whether all rows are one sample; the shape is then (1, 1, ..., 1).
        """
        dims = len(self.operator.out_shape)
        each = torch.as_tensor(self.operator.measured).to(y).expand(*y.shape[: y.ndim - dims], *([1] * dims))
        return each.sum(dim=tuple(range(0 if joined else 1, y.ndim)), keepdim=True)

    def chi2(self, x: Tensor) -> Tensor:
        """|A x - y|^2 / (m sigma^2) of every sample: about 1 and below for a picture that explains y.

        Args:
            x: Shape (..., *operator.shape).

        Returns:
            Shape (...): below 0.05 the noise was fitted too, above 2 the picture does not explain y.
        """
        difference = self.residual(x)
        dims = len(self.operator.out_shape)
        size = dot(difference, difference, dims) / (torch.as_tensor(self.operator.measured).to(x) * self.sigma**2)
        return size.flatten(-dims).squeeze(-1)
