"""Gradients through the way down of a pair method, holding two latents however many steps there are.

The way down is a chain of shears, u <- a u + m(v) on one of two states (`coupled.Shear`). Only its end is kept. From
there each shear is undone, and differentiated with the same call of the model:

    u   <- (u - m(v)) / a
    g_v <- g_v + J^T g_u        J = dm/dv, at the v that has not moved
    g_u <- a g_u

Source: the reversible adjoint of Chen et al. 2024, Invertible Diffusion Models for Compressed Sensing,
arXiv:2403.17006, for the two-step pair; EDICT's lines are shears too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.grid import check_index, check_sigmas
from .coupled import Coupled
from .gradient import Loss, check_inputs, differentiate_loss, pull_back, watch


@dataclass(frozen=True, eq=False)
class CoupledGradient:
    """The loss at the end of a pair's way down, and what it depends on.

    Attributes:
        loss: Value of the loss.
        end: The latent that was reached, (B, C, [T,] H, W).
        start: Gradient at x_k, shape of the state.
        mate: Gradient at the mate.
        inputs: Gradients at the inputs, each of its input's shape; zeros where one acts on nothing.
    """

    loss: float
    end: Tensor
    start: Tensor
    mate: Tensor
    inputs: tuple[Tensor, ...] = ()


def coupled_gradient(
    method: Coupled,
    denoiser: Denoiser,
    x: Tensor,
    mate: Tensor,
    sigmas: Sequence[float],
    index: int,
    loss: Loss,
    inputs: Sequence[Tensor] = (),
) -> CoupledGradient:
    """Differentiate a loss on what a pair comes down to.

    As exact as the method's round trip, of which it is the second half. Takes every call of the way down twice, the
    second time with its gradient.

    Args:
        method: A pair method with its settings.
        denoiser: The model; gradients of its answer must reach its state.
        x: State at sigmas[index], (B, C, [T,] H, W), float32 or float64; left untouched.
        mate: Its mate, shape of x; left untouched. Where a method makes a new one of x for an edit, that is the
            caller's to differentiate.
        sigmas: Ascending grid.
        index: Index of x.
        loss: Maps the latent at sigmas[0] to a tensor of one number.
        inputs: Tensors that require gradients and that the denoiser's answers are computed from.

    Returns:
        The loss, the latent and the gradients, detached, each like what it belongs to.

    Raises:
        ValueError: As walk_gradient, and if the grid or the index is none for the method.
    """
    check_inputs(inputs)
    grid = check_sigmas(sigmas, denoiser.space)
    check_index(index, grid, method.min_index)
    # The states of the way down are found again by walking up.
    method.check(grid, index)
    descent = method.descent(denoiser.space, grid, index)
    with torch.inference_mode(False):
        pair = [x.detach().clone(), mate.detach().clone()]
        with torch.no_grad():
            for shear in descent.shears:
                moved = shear.moved
                pair[moved] = shear.scale * pair[moved] + shear.move(denoiser, pair[1 - moved]).x
        end = pair[descent.result]
        value, gradient, at_inputs = differentiate_loss(loss, end, inputs)
        at_pair = [torch.zeros_like(end), torch.zeros_like(end)]
        at_pair[descent.result] = gradient
        watched = watch(denoiser)
        for shear in reversed(descent.shears):
            moved, other = shear.moved, 1 - shear.moved
            leaf = pair[other].detach().requires_grad_(True)
            with torch.enable_grad():
                added = shear.move(watched, leaf).x
                pulled = pull_back([added], [at_pair[moved]], [leaf, *inputs], shear.sigma)
            pair[moved] = (pair[moved] - added.detach()) / shear.scale
            at_pair[other] = at_pair[other] + pulled[0]
            at_pair[moved] = shear.scale * at_pair[moved]
            at_inputs = [total + part for total, part in zip(at_inputs, pulled[1:], strict=True)]
    return CoupledGradient(value, end, at_pair[0], at_pair[1], tuple(at_inputs))
