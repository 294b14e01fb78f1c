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
    """

    def __init__(self, rate: float, decay: float = 0.0) -> None:
        self._rate, self._decay = rate, decay
        self._mean: Tensor | None = None
        self._square: Tensor | None = None
        self.made = 0

    @torch.no_grad()
    def step(self, value: Tensor, gradient: Tensor) -> Tensor:
        """The value after an update along its gradient; both are left untouched."""
        mean = torch.zeros_like(gradient) if self._mean is None else self._mean
        square = torch.zeros_like(gradient) if self._square is None else self._square
        self.made += 1
        self._mean = BETAS[0] * mean + (1.0 - BETAS[0]) * gradient
        self._square = BETAS[1] * square + (1.0 - BETAS[1]) * gradient.square()
        size = (self._square / (1.0 - BETAS[1] ** self.made)).sqrt() + EPSILON
        update = self._mean / (1.0 - BETAS[0] ** self.made) / size
        return value - self._rate * (self._decay * value + update)


def beside(rows: Tensor, like: Tensor) -> Tensor:
    """One value a row, broadcastable to a tensor with rows."""
    return rows.reshape(-1, *[1] * (like.ndim - 1)).to(like.device)
