"""Masks of a plan that are pictures of any size, brought to the grid of the latent that is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...attention import AttentionPlan, Gather, Mask, Rule, Term
from ..host.masks import on_latent_grid


def picture_mask(mask: torch.Tensor) -> Mask:
    """Return a MASK as the mask of a rule; it is resized when it meets a latent.

    Raises:
        ValueError: If it is not a stack of pictures or not finite.
    """
    if mask.ndim < 2 or mask.ndim > 4 or (mask.ndim == 4 and mask.shape[1] != 1) or mask.numel() == 0:
        raise ValueError(
            f"mask must be a picture or a stack of pictures, got shape {tuple(mask.shape)}; connect a MASK output."
        )
    if not bool(torch.isfinite(mask).all()):
        raise ValueError("mask must be finite, got NaN or infinity; check the node that made it.")
    pictures = mask.detach().to("cpu", torch.float32).reshape(-1, *mask.shape[-2:])
    return Mask(pictures.clamp(0.0, 1.0))


def on_grid_of(plan: AttentionPlan, shape: Sequence[int]) -> AttentionPlan:
    """Return the plan with its masks on the grid of a latent.

    Args:
        plan: The plan.
        shape: Shape of the latent, (B, C, [T,] H, W).

    Raises:
        ValueError: If a mask fits neither the batch nor the frames.
    """
    # A mask that stands in several places is fitted once, and its complement stays its complement.
    fitted: dict[int, torch.Tensor] = {}

    def fit(mask: Any) -> Any:
        if not isinstance(mask, Mask) or mask.weights.ndim != 3:
            return mask
        key = id(mask.weights)
        if key not in fitted:
            grid = on_latent_grid(mask.weights, tuple(shape))
            fitted[key] = grid[:, 0].to(torch.float32)
        return replace(mask, weights=fitted[key])

    def operand(each: Any) -> Any:
        return replace(each, tokens=fit(each.tokens)) if isinstance(each, Gather) else each

    def term(each: Term) -> Term:
        return replace(each, q=operand(each.q), k=operand(each.k), v=operand(each.v), where=fit(each.where))

    def rule(each: Rule) -> Rule:
        return replace(each, mask=fit(each.mask), terms=tuple(term(each) for each in each.terms))

    return replace(plan, rules=tuple(rule(each) for each in plan.rules))
