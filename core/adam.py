"""Adam on the rows of one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

# Adam's own constants, Kingma and Ba 2014, arXiv:1412.6980.
BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Adam:
    """Adam with decoupled weight decay on a tensor that is handed in and out.

        v <- v - rate * (decay * v + m / (sqrt(s) + 1e-8))

    with m and s the bias-corrected running means of the gradient and of its square. Entries do not meet, so that rows
    of a batch are each their own problem. Decay: Loshchilov and Hutter 2017, arXiv:1711.05101.

    Args:
        rate: Learning rate.
        decay: Weight decay; 0 is plain Adam.
        betas: Share of the mean and of the mean square that an update keeps.

    Attributes:
        made: Updates so far.
    """

    def __init__(self, rate: float, decay: float = 0.0, betas: tuple[float, float] = BETAS) -> None:
        self._rate, self._decay, self._betas = rate, decay, betas
        self._mean: Tensor | None = None
        self._square: Tensor | None = None
        self.made = 0

    @torch.no_grad()
    def step(self, value: Tensor, gradient: Tensor) -> Tensor:
        """The value after an update along its gradient; both are left untouched."""
        mean, size = self.moments(gradient)
        return value - self._rate * (self._decay * value + mean / size)

    @torch.no_grad()
    def moments(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Take a gradient in: m and sqrt(s) + 1e-8, for an update whose rate changes."""
        (first, second), self.made = self._betas, self.made + 1
        mean = torch.zeros_like(gradient) if self._mean is None else self._mean
        square = torch.zeros_like(gradient) if self._square is None else self._square
        self._mean = first * mean + (1.0 - first) * gradient
        self._square = second * square + (1.0 - second) * gradient.square()
        size = (self._square / (1.0 - second**self.made)).sqrt() + EPSILON
        return self._mean / (1.0 - first**self.made), size
