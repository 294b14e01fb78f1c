"""Gradient guidance through the denoiser: PSLD, and STSL's repeated steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..krylov import dot
from ..levels import Denoise, OnStep, Report, Space, check_levels, vp_scale, weights
from ..measurement import Measurement
from .fresh import Fresh

Map = Callable[[Tensor], Tensor]

# The number of steps for which the weights are meant: a step's length is that of a share of the way.
STEPS = 50
# The farthest that a step moves the state, as a share of its noise; see guided.
LARGEST = 0.1


@dataclass(frozen=True)
class Energy:
    """What the gradient is taken of, for each sample, with norms that are not squared.

        E(D) = omega |A dec(D) - y| + gamma |D - enc( P dec(D) )|

    P x is the picture nearest to x that explains y, x + A^+ (y - A x) with a damped A^+. gamma = 0 is latent DPS.

    Attributes:
        measurement: What was measured.
        decode: Latents to pictures in [-1, 1]; the identity for pixel models. Differentiable.
        encode: Pictures to latents, differentiable.
        omega: Weight of the measurement.
        gamma: Weight of the gluing term.
        joined: Whether all rows are one sample, as frames that are coupled are.
    """

    measurement: Measurement
    decode: Map
    encode: Map
    omega: float = 1.0
    gamma: float = 0.1
    joined: bool = False

    def __call__(self, denoised: Tensor) -> Tensor:
        """E of every sample: shape (B,), or (1,) where rows are joined."""
        decoded = self.decode(denoised)
        measurement = self.measurement.to(decoded)
        energy = self.omega * self._norm(measurement.residual(decoded))
        if self.gamma:
            glued = self.encode(measurement.correct(decoded, measurement.weight(1.0)))
            energy = energy + self.gamma * self._norm(denoised - glued)
        return energy

    def _norm(self, value: Tensor) -> Tensor:
        return _row_norm(value[None] if self.joined else value)


def _row_norm(value: Tensor) -> Tensor:
    # The smallest number keeps the gradient of a norm finite at zero.
    return (value.flatten(1).square().sum(dim=1) + torch.finfo(value.dtype).tiny).sqrt()


def curvature(denoise: Denoise, x: Tensor, denoised: Tensor, sigma: float, space: Space, direction: Tensor) -> Tensor:
    """STSL's trace term e . (S(z + e) - S(z)) / d of every row, z of unit variance and S its score.

    Its gradient is zero for every Gaussian prior, whose score is linear.

    Args:
        denoise: D(x, sigma), differentiable.
        x: State.
        denoised: D(x, sigma).
        sigma: Level.
        space: "ve" or "flow".
        direction: Unit noise e of the shape of x.

    Returns:
        Shape (B,).
    """
    a, b = weights(sigma, space)
    scale = vp_scale(sigma, space)

    def score(state: Tensor, clean: Tensor) -> Tensor:
        return (a * clean - state) / b**2 * scale

    moved = x + scale * direction
    change = score(moved, denoise(moved, sigma)) - score(x, denoised)
    return dot(direction, change, x.ndim - 1).flatten() / x[0].numel()


def guided(
    denoise: Denoise,
    x: Tensor,
    sigmas: tuple[float, ...],
    space: Space,
    energy: Callable[[Tensor], Tensor],
    fresh: Fresh,
    *,
    inner: int = 1,
    trace: float = 0.0,
    largest: float = LARGEST,
    joined: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """PSLD (Rout et al. 2023, arXiv:2307.00619); with inner steps the form of STSL (arXiv:2312.00852).

        inner - 1 times:  x <- x - l c^2 grad E          c = sqrt(a^2 + b^2)
        x' = a' D + b' (x - a D) / b - l c c' grad E
        l = min( 50 / steps, largest (b / c) sqrt(d) / |c grad E| )

    The factors c turn the published steps, which are meant for states of unit variance, into ones for this x, eps or
    flow alike. The norms in E are not squared, so that a gradient does not shrink near the measurement and a step of
    fixed length can overshoot it, most of all in few steps. Hence the bound on l: in the units of unit variance no
    step is longer than a share of the noise in the state, which has the length (b / c) sqrt(d) for d values.

    On the demo models (10 pictures, a missing area) 15 steps give 29.7 dB on eps and 28.3 dB on flow, 27.4 and 27.5 dB
    without the bound; in 50 steps (3 pictures) it is reached in 1 to 3 % of the steps and changes 0.03 dB.

    Args:
        denoise: D(x, sigma), differentiable in x.
        x: State at sigmas[0].
        sigmas: Falling levels.
        space: "ve" or "flow".
        energy: E(D) of every sample.
        fresh: Draws unit noise, for the trace term alone.
        inner: Gradient steps at a level; each costs a call and a backward pass.
        trace: Weight of STSL's trace term; doubles the calls and has shown no gain.
        largest: Bound on a step as a share of the noise; infinite for the published form.
        joined: Whether all rows are one sample and share the length of a step.
        on_step: Called after every step.

    Returns:
        The state at sigmas[-1], detached.

    Raises:
        ValueError: If inner is below 1, the bound is not positive or the levels do not fall.
    """
    if inner < 1:
        raise ValueError(f"inner steps must be at least 1, got {inner}; 1 is PSLD, 5 is STSL.")
    if not largest > 0.0:
        raise ValueError(f"largest step must be above 0, got {largest:g}; 0.1 is usual, infinite the published form.")
    check_levels(sigmas, space)
    total = len(sigmas) - 1

    def lengthened(gradient: Tensor, sigma: float) -> Tensor:
        if math.isinf(largest):
            return STEPS / total * gradient
        noise = weights(sigma, space)[1] / vp_scale(sigma, space)
        size = vp_scale(sigma, space) * _rms(gradient, gradient.ndim if joined else gradient.ndim - 1)
        return (largest * noise / size).clamp(max=STEPS / total) * gradient

    def step(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            denoised = denoise(x, sigma)
            value = energy(denoised)
            if trace:
                value = value + trace * curvature(denoise, x, denoised, sigma, space, fresh())
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return denoised.detach(), lengthened(gradient, sigma)

    for index in range(total):
        sigma, after = sigmas[index], sigmas[index + 1]
        (a, b), (a_next, b_next) = weights(sigma, space), weights(after, space)
        scale = vp_scale(sigma, space)
        for _ in range(inner - 1):
            x = x.detach() - scale**2 * step(x, sigma)[1]
        denoised, gradient = step(x, sigma)
        x = x.detach()
        x = a_next * denoised + b_next * (x - a * denoised) / b - scale * vp_scale(after, space) * gradient
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"guidance must stay finite, got NaN or infinity at step {index + 1}; lower its weight.")
        if on_step is not None:
            on_step(Report(index, total, sigma, x, denoised))
    return x.detach()


def _rms(value: Tensor, sample_dims: int) -> Tensor:
    """Root mean square of every sample, with dimensions kept; never zero."""
    axes = tuple(range(value.ndim - sample_dims, value.ndim))
    return value.square().mean(dim=axes, keepdim=True).sqrt().clamp_min(torch.finfo(value.dtype).tiny)


def unit_start(noise: Tensor, guess: Tensor | None, sigma: float, space: Space) -> Tensor:
    """The state at a level from unit noise, and from a first guess of the clean picture where there is one."""
    a, b = weights(sigma, space)
    return b * noise if guess is None else a * guess.to(noise) + b * noise
