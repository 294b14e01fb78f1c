"""Gradients through a whole walk, holding one latent for each step and the activations of a single step.

A walk x_0 -> x_1 -> .. -> x_N ends in a loss L(x_N). Its states are kept, without what the network computed on the
way. Then, from the last step to the first, each step is taken again and differentiated:

    g_N     = dL/dx_N
    g_{i-1} = (dx_i/dx_{i-1})^T g_i          dL/dp = sum_i (dx_i/dp)^T g_i

for any tensor p that the model's answers are computed from, such as a text embedding. Nothing is approximated: the
result is that of differentiating the walk in one piece, whose memory would grow by a network's activations a step.

Source: checkpointing of Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174, with a
checkpoint at each step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.denoiser import Denoise, Denoiser
from ..core.steps import Carrying, Stepper
from ..core.walk import OnStep, walk
from .embeddings import EmbeddingPerStep

Loss = Callable[[Tensor], Tensor]

# Rows whose sizes differ by more powers of two than this are differentiated after each other. float16 has 14 powers
# below 1 with all its digits: half of them for differences between rows, half for those within a row.
_SPAN = 7
# Of the largest power of two that a float is: the inverse of the smallest numbers is beyond it.
_LARGEST_POWER = sys.float_info.max_exp - 1


@dataclass(frozen=True, eq=False)
class WalkGradient:
    """A walk's loss and what it depends on.

    Attributes:
        loss: Value of the loss.
        end: State that the walk reached, (B, C, [T,] H, W).
        start: Gradient at the state it began with, shape of the state.
        inputs: Gradients at the inputs, each of its input's shape; zeros where one acts on nothing.
        embeddings: Gradients at the embeddings, each of its embedding's shape.
    """

    loss: float
    end: Tensor
    start: Tensor
    inputs: tuple[Tensor, ...] = ()
    embeddings: tuple[Tensor, ...] = ()


def walk_gradient(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    stepper: Callable[[], Stepper],
    loss: Loss,
    inputs: Sequence[Tensor] = (),
    embeddings: Sequence[Tensor] = (),
    on_step: OnStep | None = None,
) -> WalkGradient:
    """Differentiate a loss on the end of a walk.

    Takes every call of the walk twice, the second time with its gradient. Works in any mode of the caller's,
    inference mode included, as long as the model's own tensors are no inference tensors.

    Args:
        denoiser: The model; gradients of its answer must reach its state.
        x: State at sigmas[0], (B, C, [T,] H, W), float32 or float64; left untouched.
        sigmas: Sigmas in walking order, strictly rising or falling.
        stepper: Gives a fresh stepper, such as the `down` of a method.
        loss: Maps the state at sigmas[-1] to a tensor of one number.
        inputs: Tensors that require gradients and that the denoiser's answers are computed from.
        embeddings: Unconditional embeddings of the steps in walking order, the last for all further steps; none leaves
            the denoiser as it is.
        on_step: Told after every step of the walk; whatever it raises ends the work.

    Returns:
        The loss, the end of the walk and the gradients, detached, each like what it belongs to.

    Raises:
        ValueError: If an input requires no gradient, the loss is no single finite number or does not depend on the
            latent, the model lets no gradient through, or a gradient is not finite.
    """
    check_inputs(inputs)
    # Whatever the caller's mode: what is made in inference mode could not carry a gradient.
    with torch.inference_mode(False):
        states = [x.detach().clone()]

        def keep(state: Tensor, _: int) -> Tensor:
            states.append(state.detach())
            return state

        stages = [embedding.detach().clone() for embedding in embeddings]
        first = stepper()
        with torch.no_grad():
            walk(
                denoiser,
                states[0],
                sigmas,
                EmbeddingPerStep(first, stages, x.device) if stages else first,
                on_step,
                keep,
            )
        # Where a derivative is carried, the states on both sides of a step tell it, so that it need not be kept.
        carries = isinstance(first, Carrying) and first.derivative is not None
        end = states[-1]
        value, at_state, at_inputs = differentiate_loss(loss, end, inputs)
        at_stages = [torch.zeros_like(stage) for stage in stages]
        at_carried: Tensor | None = None
        watched = watch(denoiser)
        for index in reversed(range(len(states) - 1)):
            sigma, sigma_next = float(sigmas[index]), float(sigmas[index + 1])
            leaves = [_leaf(states[index])]
            again = stepper()
            if carries and index > 0 and isinstance(again, Carrying):
                leaves.append(_leaf((states[index] - states[index - 1]) / (sigma - float(sigmas[index - 1]))))
                again.derivative = leaves[-1]
            stage = _leaf(stages[min(index, len(stages) - 1)]) if stages else None
            with torch.enable_grad():
                asked = watched if stage is None else watched.with_embedding(stage)
                outputs = [again(asked, leaves[0], sigma, sigma_next).x]
                gradients = [at_state]
                if at_carried is not None and isinstance(again, Carrying) and again.derivative is not None:
                    outputs.append(again.derivative)
                    gradients.append(at_carried)
                wanted = [*leaves, *([] if stage is None else [stage]), *inputs]
                pulled = pull_back(outputs, gradients, wanted, sigma)
            at_state = pulled[0]
            at_carried = pulled[1] if len(leaves) > 1 else None
            if stage is not None:
                place = min(index, len(stages) - 1)
                at_stages[place] = at_stages[place] + pulled[len(leaves)]
            at_inputs = [
                total + part for total, part in zip(at_inputs, pulled[len(wanted) - len(inputs) :], strict=True)
            ]
    return WalkGradient(value, end, at_state, tuple(at_inputs), tuple(at_stages))


def check_inputs(inputs: Sequence[Tensor]) -> None:
    """Refuse inputs at which there can be no gradient.

    Raises:
        ValueError: If one requires none.
    """
    for tensor in inputs:
        if not tensor.requires_grad:
            raise ValueError(
                f"inputs must require a gradient, got one of shape {tuple(tensor.shape)} that does not; "
                "call requires_grad_() on it before the denoiser is made of it."
            )


def differentiate_loss(loss: Loss, end: Tensor, inputs: Sequence[Tensor]) -> tuple[float, Tensor, list[Tensor]]:
    """Value of a loss, its gradient at the latent that it is given, and at inputs that it uses itself.

    Raises:
        ValueError: If it is no single finite number, or does not depend on the latent.
    """
    with torch.enable_grad():
        leaf = _leaf(end)
        value = loss(leaf)
        if value.numel() != 1 or not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"The loss must be one finite number, got {value.detach().flatten().tolist()[:4]}; "
                "sum its entries, and start from a walk that stays finite."
            )
        if not value.requires_grad:
            raise ValueError(
                "The loss must be computed from the latent that it is given, got one that does not depend on it; "
                "compute it with differentiable functions of torch."
            )
        grads = torch.autograd.grad(value.reshape(()), [leaf, *inputs], allow_unused=True)
    parts = [torch.zeros_like(of) if part is None else part for of, part in zip([leaf, *inputs], grads, strict=True)]
    return float(value.detach()), parts[0].detach(), [part.detach() for part in parts[1:]]


def pull_back(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor], inputs: Sequence[Tensor], sigma: float
) -> list[Tensor]:
    """Gradients at inputs from those at outputs; zeros where an input acts on none of them.

    The gradient of a mean over many entries lies below what a float16 network can hold, so it is sent through at size
    1 (a power of two leaves all digits as they are). Rows of very different size are sent through after each other, a
    row at its own size each time, and the answers added up. That is exact where rows share an input, or meet in the
    network, as well; it costs a backward pass for each size.

    Args:
        outputs: Tensors (B, ...) that depend on the inputs.
        gradients: Gradients at the outputs, of their shapes.
        inputs: Tensors to differentiate at.
        sigma: Sigma of the call, for messages.

    Raises:
        ValueError: If one is not finite, or an output does not depend on the inputs as far as autograd knows.
    """
    if not all(output.requires_grad for output in outputs):
        raise ValueError(
            "The stepper must let gradients reach its state, got an answer without any; "
            "take one that computes its step from the model's answers alone, such as the way down of a method."
        )
    size = torch.stack([gradient.abs().flatten(1).amax(1) for gradient in gradients]).amax(0)
    groups = _alike([math.frexp(row)[1] if row else None for row in size.tolist()])
    sums: list[Tensor | None] = [None] * len(inputs)
    for index, (power, rows) in enumerate(groups):
        scale = 2.0 ** min(-power, _LARGEST_POWER)
        sent = [scale * _only(gradient, rows) for gradient in gradients]
        more = index + 1 < len(groups)
        grads = torch.autograd.grad(outputs, inputs, sent, allow_unused=True, retain_graph=more)
        for place, part in enumerate(grads):
            if part is not None:
                before = sums[place]
                sums[place] = part / scale if before is None else before + part / scale
    parts = [torch.zeros_like(of) if part is None else part for of, part in zip(inputs, sums, strict=True)]
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise ValueError(
            f"The gradient must stay finite, got inf or nan at sigma {sigma:.5g}; "
            "run the network in float32 or bfloat16, or use more steps."
        )
    return [part.detach() for part in parts]


def _alike(powers: Sequence[int | None]) -> list[tuple[int, list[int]]]:
    """Rows whose powers of two lie close together, with the largest power of each group; None for rows of zeros."""
    groups: list[tuple[int, list[int]]] = []
    for power, row in sorted(((p, row) for row, p in enumerate(powers) if p is not None), reverse=True):
        if not groups or groups[-1][0] - power > _SPAN:
            groups.append((power, []))
        groups[-1][1].append(row)
    return groups


def _only(gradient: Tensor, rows: Sequence[int]) -> Tensor:
    """A gradient with zeros in all rows but these."""
    if len(rows) == len(gradient):
        return gradient
    part = torch.zeros_like(gradient)
    part[rows] = gradient[rows]
    return part


def watch(denoiser: Denoiser) -> Denoiser:
    """The same denoiser, which refuses to give an answer that no gradient passes through where one is wanted."""

    def watched(asked: Denoiser) -> Denoise:
        def denoise(x: Tensor, sigma: float) -> Tensor:
            try:
                denoised = asked(x, sigma)
            except RuntimeError as error:
                # What torch says of them has no type of its own.
                if "nference tensor" not in str(error):
                    raise
                raise ValueError(
                    "The model and its conditioning must be ordinary tensors to be differentiated, got some that were "
                    "made in inference mode; load and encode them under torch.no_grad."
                ) from error
            if torch.is_grad_enabled() and x.requires_grad and not denoised.requires_grad:
                raise ValueError(
                    "The model must let gradients reach its state, got an answer without any; "
                    "call it outside of torch.no_grad."
                )
            return denoised

        return denoise

    return denoiser.answering(watched(denoiser), lambda each: watched(denoiser.with_embedding(each)))


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(True)
