"""From the grid of the latent to the tokens of a site."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .sites import Grid


def to_grid(weights: Tensor, grid: Grid, protect: bool = False) -> Tensor:
    """Resample weights from the latent grid to a grid of tokens.

    Every token stands for a square of cells whose side is a power of two in all known networks; at the far edges of
    odd sizes it stands for what is left of its square. The mean is over the cells that exist.

    Args:
        weights: (items, [frames,] h, w).
        grid: Frames, rows and columns of tokens.
        protect: Largest weight in place of the mean.

    Returns:
        (items, frames, rows, columns) float32.

    Raises:
        ValueError: If the grid is finer than the weights, or the frames do not fit.
    """
    stack = weights.to(torch.float32)
    if stack.ndim == 3:
        stack = stack.unsqueeze(1)
    frames, rows, columns = grid
    if rows > stack.shape[2] or columns > stack.shape[3]:
        raise ValueError(
            f"mask must be on the latent grid, got {stack.shape[2]} x {stack.shape[3]} cells for {rows} x {columns} "
            "tokens; resize it to the latent."
        )
    stack = _rest_frames(stack, frames, protect)
    sides = [_side(stack.shape[2], rows), _side(stack.shape[3], columns)]
    short = [rows * sides[0] - stack.shape[2], columns * sides[1] - stack.shape[3]]
    if protect:
        padded = functional.pad(stack, (0, short[1], 0, short[0]))
        return functional.max_pool2d(padded, sides)
    padded = functional.pad(stack, (0, short[1], 0, short[0]))
    there = functional.pad(torch.ones_like(stack), (0, short[1], 0, short[0]))
    return functional.avg_pool2d(padded, sides) / functional.avg_pool2d(there, sides)


def _side(cells: int, tokens: int) -> int:
    """Cells that one token spans: the power of two that fits, as strides and patches are; else the ratio rounded up."""
    side = 1
    while -(-cells // side) > tokens:
        side *= 2
    return side if -(-cells // side) == tokens else -(-cells // tokens)


def _rest_frames(stack: Tensor, frames: int, protect: bool) -> Tensor:
    have = stack.shape[1]
    if have == frames:
        return stack
    if have == 1:
        return stack.expand(-1, frames, -1, -1)
    if have < frames:
        raise ValueError(f"mask must have 1 or {frames} frames, got {have}; give one mask a latent frame.")
    side = -(-have // frames)
    items, _, rows, columns = stack.shape
    last = stack[:, -1:].expand(-1, side * frames - have, -1, -1)
    grouped = torch.cat([stack, last], 1).reshape(items, frames, side, rows, columns)
    return grouped.amax(2) if protect else grouped.mean(2)
