"""Frames tied to each other along the motion between them, and edges kept."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .krylov import conjugate_gradient
from .measurement import Measurement
from .motion import Warp, velocity_of, windowed

# Frames are tied to so many after them.
_REACH = 4
# Rounds of reweighting; the motion is looked for in these, from frames that are better each time.
_ROUNDS = 8
_LOOKS = (0, 1, 2, 3, 5)
_ITERATIONS = 30
# Weight of the ties over the smoothing: the usual 2 ties frames 5 times as firmly as the measurement holds them.
_TIE = 2.5
# Weight of the edges: p(gradient) falls with this power of it.
_EDGES = 2.0
# A parabola is off by f (1 - f) / 2 of its second difference between pixels; a step of a hard edge by up to 2.
_OFF = 2.0
# Side of the window in which a pixel and its place in another frame are compared.
_SIDE = 3


class Ties:
    """D x = (W x_(t + k) - x_t) for k = 1 to reach, each pixel with a weight."""

    def __init__(self, motions: list[Tensor]) -> None:
        """Set the motions.

        Args:
            motions: v from frame t to frame t + k for k = 1, 2, ...: shape (T - k, 2, H, W).
        """
        self.motions = motions
        self._warps = [Warp(motion) for motion in motions]
        self.weights = [torch.ones_like(motion[:, :1]) for motion in motions]

    def forward(self, x: Tensor) -> list[Tensor]:
        """D x of the frames (T, C, H, W), without weights."""
        return [warp.forward(x[k:]) - x[:-k] for k, warp in enumerate(self._warps, 1)]

    def adjoint(self, differences: list[Tensor], like: Tensor) -> Tensor:
        """D^T of what ``forward`` gives."""
        total = torch.zeros_like(like)
        for k, (warp, difference) in enumerate(zip(self._warps, differences, strict=True), 1):
            total[:-k] -= difference
            total[k:] += warp.adjoint(difference)
        return total

    def square(self, x: Tensor) -> Tensor:
        """D^T w D x."""
        return self.adjoint([w * d for w, d in zip(self.weights, self.forward(x), strict=True)], x)

    def weigh(self, x: Tensor, noise: float) -> None:
        """Set w = (1 + (m^2 + u^2) / s^2)^-2 (Geman and McClure 1987) from the frames.

        m^2 is the mean square difference to the place in the other frame over a window of 3 x 3 and all channels, u
        what interpolation between pixels may be off there by: along each axis 2 f (1 - f) times the largest second
        difference in the window of either frame, f the broken part of the motion, summed over both axes.
        """
        bends = [_bend(x, axis) for axis in (-2, -1)]
        for k, (motion, warp, difference) in enumerate(zip(self.motions, self._warps, self.forward(x), strict=True), 1):
            unlike = windowed(difference.square().mean(dim=1, keepdim=True), _SIDE)
            broken = motion - motion.floor()
            between = broken * (1.0 - broken)
            off = sum(
                between[:, axis : axis + 1] * torch.maximum(bend[:-k], warp.forward(bend[k:]))
                for axis, bend in enumerate(bends)
            )
            self.weights[k - 1] = (1.0 + (unlike + (_OFF * torch.as_tensor(off)).square()) / noise**2) ** -2

    def tied(self, like: Tensor) -> Tensor:
        """How many frames each pixel is tied to, itself among them: shape (T, 1, H, W)."""
        total = torch.ones_like(like[:, :1])
        for k, (warp, weight) in enumerate(zip(self._warps, self.weights, strict=True), 1):
            total[:-k] += weight
            total[k:] += warp.adjoint(weight)
        return total


def _bend(x: Tensor, axis: int) -> Tensor:
    """Largest second difference along an axis in the window of each pixel: shape (T, 1, H, W)."""
    padding = [0, 0, 1, 1] if axis == -2 else [1, 1, 0, 0]
    bent = functional.pad(x, padding, mode="replicate").diff(n=2, dim=axis).abs().amax(dim=1, keepdim=True)
    return functional.max_pool2d(bent, _SIDE, 1, _SIDE // 2)


def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the pixel below and to the right, zero at the border."""
    return functional.pad(x.diff(dim=-2), (0, 0, 0, 1)), functional.pad(x.diff(dim=-1), (0, 1))


def gradient_adjoint(down: Tensor, right: Tensor) -> Tensor:
    """Adjoint of ``gradient``."""
    down, right = down[..., :-1, :], right[..., :-1]
    rows = functional.pad(down, (0, 0, 1, 0)) - functional.pad(down, (0, 0, 0, 1))
    return rows + functional.pad(right, (1, 0)) - functional.pad(right, (0, 1))


def motions_of(x: Tensor, noise: float, reach: int = _REACH, before: Callable[[], None] = lambda: None) -> list[Tensor]:
    """Motion from each frame to those 1, 2, ... after it: shapes (T - k, 2, H, W); ``before`` is called each frame."""
    velocities = []
    for frame in range(len(x)):
        before()
        velocities.append(velocity_of(x, frame, reach, noise))
    velocity = torch.cat(velocities)
    return [k * velocity[:-k] for k in range(1, min(reach, len(x) - 1) + 1)]


def follow(
    measurement: Measurement,
    x: Tensor,
    smoothing: float,
    tick: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Smooth a clip over time along its motion, and keep its edges.

        argmin_z  sum_t c_t/2g |z_t - x_t|^2 + 1/2 |A z - y|^2 + l/2 |D z|^2_w + e sigma^2/2 sum log(|grad z|^2 + s^2)

    by reweighted least squares. D holds the differences along the motion to the next frames, w how far a place is the
    same in both, g = max(1, chi2 of x), l = 2.5 smoothing and s the deviation of the noise. c_t is one over the number
    of frames that a pixel is tied to: what a model or its autoencoder gets wrong at an edge moves with the edge, so
    frames that are tied say it once, and the measurement tells more than they do. The logarithm of the gradient
    flattens what is below the noise and does not take from a large step (Charbonnier et al. 1997), without which frames
    agree on an edge that is as soft as each was.

    What cannot be followed is not tied: a cut, a fade, what is uncovered. It is then as each frame has it.

    Args:
        measurement: What was measured, with one noise for all.
        x: The frames of a clip, shape (T, C, H, W) in [-1, 1].
        smoothing: Weight of the differences, positive.
        tick: Told the rounds done and all rounds, before each frame whose motion is looked for and after each round;
            what it raises ends the work.

    Returns:
        Shape of x, not clipped.

    Raises:
        ValueError: If there are fewer than two frames, or sides of fewer than two pixels.
    """
    if x.ndim != 4 or len(x) < 2:
        raise ValueError(
            f"clip must have two frames at least for its motion to be followed, got shape {tuple(x.shape)}; "
            "connect all frames as one batch, or turn follow_motion off."
        )
    if min(x.shape[-2:]) < 2:
        raise ValueError(
            f"frames must have 2 x 2 pixels at least to be followed, got {x.shape[-1]} x {x.shape[-2]}; "
            "turn follow_motion off."
        )
    sigma = float(measurement.sigma)
    noise = sigma * measurement.operator.norm
    weight = float(measurement.chi2(x).clamp_min(1.0).mean())
    ties = Ties([])
    told = tick or (lambda done, total: None)
    z = x
    for number in range(_ROUNDS):
        if number in _LOOKS:
            ties = Ties(motions_of(z, noise, before=functools.partial(told, number, _ROUNDS)))
        ties.weigh(z, noise)
        steps = torch.stack([part.square().sum(dim=1, keepdim=True) for part in gradient(z)]).sum(dim=0)
        z = _solve(measurement, x, z, ties, smoothing * _TIE, weight, _EDGES * sigma**2 / (steps + noise**2))
        told(number + 1, _ROUNDS)
    return z


def _solve(
    measurement: Measurement, x: Tensor, z: Tensor, ties: Ties, tie: float, weight: float, edges: Tensor
) -> Tensor:
    """The clip for weights that stand, from z on."""
    trust = 1.0 / (weight * ties.tied(z))

    def matrix(v: Tensor) -> Tensor:
        down, right = gradient(v)
        data = measurement.adjoint(measurement.forward(v))
        return trust * v + data + tie * ties.square(v) + gradient_adjoint(edges * down, edges * right)

    # One that quantises is linear up to its cells: those nearest to the clip stand for y.
    data = measurement.adjoint(measurement.forward(z) - measurement.residual(z))
    return conjugate_gradient(matrix, trust * x + data, z, sample_dims=4, iterations=_ITERATIONS)
