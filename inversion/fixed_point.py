"""Solving y = g(y): plain iteration, averaged, or accelerated; and the step that inverts Euler with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.steps import Step

# Directions of the Anderson history that are this much weaker than the strongest (in the square) are rounding.
NEGLIGIBLE = 1e-12


class Solution(NamedTuple):
    """What a solve came to.

    Attributes:
        y: The approximate fixed point.
        residuals: |g(y) - y| / |y| over the whole tensor before each iteration, one per call of g.
    """

    y: Tensor
    residuals: tuple[float, ...]


def solve(g: Callable[[Tensor], Tensor], y: Tensor, iterations: int, memory: int = 0, window: int = 1) -> Solution:
    """Look for y = g(y) by a fixed number of calls of g.

    memory 0 is Picard's iteration, y <- g(y); the result is the mean of its last `window` values. Otherwise
    Anderson's: of the last memory + 1 iterates that affine combination whose residual is least is continued,

        y <- g_n - sum_j c_j (g_{j+1} - g_j),   c = argmin |f_n - sum_j c_j (f_{j+1} - f_j)|,   f_j = g(y_j) - y_j

    separately for each row of the batch.

    Args:
        g: The map; keeps the shape (B, ...) of its argument.
        y: First guess.
        iterations: Calls of g, at least 1.
        memory: Earlier iterates that Anderson's combination uses.
        window: Values that the mean takes in, 1 .. iterations; 1 with memory above 0.

    Returns:
        The solution.
    """
    values: list[Tensor] = []
    missed: list[Tensor] = []
    residuals = []
    for _ in range(iterations):
        value = g(y)
        values.append(value)
        missed.append(value - y)
        size = float(value.detach().norm())
        residuals.append(float(missed[-1].detach().norm()) / size if size else 0.0)
        # Only what the next combination, or the mean, can still ask for is kept.
        last = max(memory + 1, window)
        values, missed = values[-last:], missed[-last:]
        y = _combine(values, missed) if memory else value
    if window > 1:
        y = torch.stack(values[-window:]).mean(0)
    return Solution(y, tuple(residuals))


def _combine(values: list[Tensor], missed: list[Tensor]) -> Tensor:
    if len(values) == 1:
        return values[0]
    rows = len(values[0])
    last = missed[-1].reshape(rows, -1)
    changes = torch.stack([(b - a).reshape(rows, -1) for a, b in pairwise(missed)], -1)
    moves = torch.stack([(b - a).reshape(rows, -1) for a, b in pairwise(values)], -1)
    # Columns of length one, because they shrink by orders of magnitude from one iteration to the next.
    length = changes.norm(dim=1, keepdim=True)
    length = torch.where(length > 0.0, length, torch.ones_like(length))
    changes, moves = changes / length, moves / length
    # The few normal equations are solved on the CPU: some devices have no eigenvalues, some no float64.
    gram = (changes.mT @ changes).to("cpu", torch.float64)
    right = (changes.mT @ last[..., None]).to("cpu", torch.float64)
    shares = torch.linalg.pinv(gram, rtol=NEGLIGIBLE, hermitian=True) @ right
    step: Tensor = moves @ shares.to(device=moves.device, dtype=moves.dtype)
    return values[-1] - step.reshape(values[-1].shape)


class ImplicitEuler:
    """Going up, x' with x' = x + (s' - s) * d(x', s'): the state from which Euler's step down arrives at x.

    The first guess is the state at s' of the network's tensor at s, as in `DDIMPredictor`, or, warm, x moved along the
    derivative that the step before ended with.

    Attributes:
        residuals: Of each step, those of `solve`.
        derivative: That which the last step ended with, where the next begins with it.
    """

    def __init__(self, iterations: int, memory: int = 0, window: int = 1, warm: bool = False) -> None:
        """Settings of `solve`, and whether to begin each step from the one before."""
        self._iterations = iterations
        self._memory = memory
        self._window = window
        self._warm = warm
        self.derivative: Tensor | None = None
        self.residuals: list[tuple[float, ...]] = []

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
        """One step; see Stepper."""
        h = sigma_next - sigma
        denoised = x

        def g(y: Tensor) -> Tensor:
            nonlocal denoised
            derivative, denoised = denoiser.evaluate(y, sigma_next)
            return x + h * derivative

        if self.derivative is not None:
            guess = x + h * self.derivative
        else:
            scale = math.sqrt((1.0 + sigma_next**2) / (1.0 + sigma**2)) if denoiser.space == "ve" else 1.0
            guess = scale * x
        solution = solve(g, guess, self._iterations, self._memory, self._window)
        self.residuals.append(solution.residuals)
        if self._warm:
            self.derivative = (solution.y - x) / h
        return Step(solution.y, denoised)
