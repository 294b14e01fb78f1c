"""Total variation over time: what does not move between frames is one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..krylov import conjugate_gradient
from ..measurement import Measurement

# rho / lambda of the toys' best setting (30 / 5).
_RHO = 6.0
_ITERATIONS = 20


def difference(x: Tensor, axis: int = -4) -> Tensor:
    """D x: frame t + 1 less frame t; one frame fewer, so a clip's ends are not tied."""
    return x.diff(dim=axis)


def difference_adjoint(u: Tensor, axis: int = -4) -> Tensor:
    """D^T u."""
    zero = torch.zeros_like(u.narrow(axis, 0, 1))
    return torch.cat([zero, u], dim=axis) - torch.cat([u, zero], dim=axis)


def shrink(x: Tensor, threshold: float) -> Tensor:
    """Soft threshold: sign(x) max(|x| - threshold, 0)."""
    return x.sign() * (x.abs() - threshold).clamp_min(0.0)


class TimeSmoothing:
    """Total variation over time as a preconditioner of another solve; holds z and u of one run.

    (I + g K + rho' D^T D) d = b is solved as (I + g P^-1 K) d = P^-1 b with P = I + rho' D^T D, a small matrix along
    time, so that the other solve takes no more steps than without it.
    """

    def __init__(self, smoothing: float, axis: int) -> None:
        """Set the weight lambda, positive, and the axis of time.

        Raises:
            ValueError: If the smoothing is negative.
        """
        _check_smoothing(smoothing)
        self._smoothing = smoothing
        self._axis = axis
        self._split: tuple[Tensor, Tensor] | None = None
        self._coupling = 0.0
        self._inverse = torch.zeros(0)

    def prepare(self, x: Tensor, variance: float) -> TimeSmoothing:
        """Set rho' for a step at x; returns itself.

        Raises:
            ValueError: If x has a single frame.
        """
        _check_frames(x.shape[self._axis])
        self._coupling = _RHO * self._smoothing * variance
        frames = torch.eye(x.shape[self._axis], dtype=torch.float64)
        square = difference_adjoint(difference(frames, 0), 0)
        self._inverse = torch.linalg.inv(frames + self._coupling * square).to(x)
        if self._split is None:
            zero = torch.zeros_like(difference(x, self._axis))
            self._split = zero, zero
        return self

    def solve(self, b: Tensor) -> Tensor:
        """P^-1 b."""
        solved: Tensor = torch.tensordot(self._inverse, b.movedim(self._axis, 0), dims=1)
        return solved.movedim(0, self._axis)

    def pull(self, x: Tensor) -> Tensor:
        """What the split adds to the right side of a correction to x: rho' D^T (z - u - D x)."""
        assert self._split is not None
        z, u = self._split
        return self._coupling * difference_adjoint(z - u - difference(x, self._axis), self._axis)

    def advance(self, x: Tensor) -> None:
        """Move z and u on after a step that ended at x."""
        assert self._split is not None
        moved = difference(x, self._axis) + self._split[1]
        z = shrink(moved, 1.0 / _RHO)
        self._split = z, moved - z


def _check_smoothing(smoothing: float) -> None:
    if not smoothing >= 0.0:
        raise ValueError(f"temporal_smoothing must be 0 or more, got {smoothing:g}; 1 to 5 are usual.")


def _check_frames(frames: int) -> None:
    if frames < 2:
        raise ValueError(
            f"clip must have two frames at least to be smoothed over time, got {frames}; "
            "set temporal_smoothing to 0, or restore more frames."
        )


class TemporalConsistency:
    """Measurement and total variation over time by proximal ADMM, its dual variables kept over the steps.

        (I + g A^T A + rho' D^T D) xh = D0 + g A^T y + rho' D^T (z - u),   rho' = rho r^2,   g = r^2 / sigma^2
        z = shrink(D xh + u, lambda / rho),   u += D xh - z

    Its fixed point minimises 1/2 |x - D0|^2 + g/2 |A x - y|^2 + lambda r^2 |D x|_1. The idea of a prior on pictures
    with total variation across them is DiffusionMBIR's (Chung et al. 2023, arXiv:2211.10655) and of DDS's 3D form; the
    measurement is normalised and the prediction kept as a proximal term, without which the scheme depends on the
    scale of A. The object holds the state of one run.
    """

    def __init__(
        self,
        measurement: Measurement,
        smoothing: float,
        trust: float = 1.0,
        rounds: int = 1,
        tick: Callable[[int, int], None] | None = None,
    ) -> None:
        """Set up a run.

        Args:
            measurement: What was measured, of pictures (frames as leading dimension) or of whole clips.
            smoothing: lambda, 0 or more; 5 smooths strongly. 0 is the measurement alone.
            trust: Multiplies g.
            rounds: ADMM rounds in a step.
            tick: Told the rounds done and all rounds after each; what it raises ends the work.

        Raises:
            ValueError: If the smoothing is negative.
        """
        _check_smoothing(smoothing)
        self._measurement = measurement
        self._smoothing = smoothing
        self._trust = trust
        self._rounds = rounds
        self._tick = tick
        self._split: tuple[Tensor, Tensor] | None = None

    def __call__(self, denoised: Tensor, variance: float) -> Tensor:
        """See Consistency; denoised has the shape (..., T, C, H, W)."""
        measurement = self._measurement.to(denoised)
        weight = self._trust * measurement.weight(variance)
        if self._smoothing == 0.0:
            return measurement.correct(denoised, weight)
        _check_frames(denoised.shape[-4])
        rho = _RHO * self._smoothing
        coupling = rho * variance
        if self._split is None:
            self._split = torch.zeros_like(difference(denoised)), torch.zeros_like(difference(denoised))
        z, u = self._split
        # One that quantises is linear up to its cells: those nearest to the prediction stand for y.
        right = denoised - weight * measurement.adjoint(measurement.residual(denoised))
        right = right + weight * measurement.adjoint(measurement.forward(denoised))

        def matrix(v: Tensor) -> Tensor:
            data = measurement.adjoint(measurement.forward(v))
            return v + weight * data + coupling * difference_adjoint(difference(v))

        x = denoised
        for number in range(self._rounds):
            x = conjugate_gradient(
                matrix,
                right + coupling * difference_adjoint(z - u),
                x,
                sample_dims=4,
                iterations=_ITERATIONS,
            )
            moved = difference(x) + u
            z = shrink(moved, self._smoothing / rho)
            u = moved - z
            if self._tick is not None:
                self._tick(number + 1, self._rounds)
        self._split = z, u
        return x
