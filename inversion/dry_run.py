"""At which sigmas a method asks the model, found by walking it on nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.space import Space
from .api import invert, replay
from .method import Method


def sigmas_asked(
    method: Method, sigmas: Sequence[float], index: int, space: Space, floor: float | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sigmas of the evaluations of a climb and of the way down, each in its order.

    The method runs on one number with a model that answers with the state, which costs nothing.

    Args:
        method: The method.
        sigmas: Ascending grid.
        index: Index k to which it climbs.
        space: "ve" or "flow".
        floor: Lowest sigma at which the model is asked; None for the default of the space.

    Returns:
        Sigmas asked for going up, and those going down.

    Raises:
        ValueError: If the method does not take the grid or the index.
    """
    asked: list[float] = []

    def answer(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return x

    denoiser = Denoiser(answer, space, floor)
    inversion = invert(denoiser, torch.zeros(1, 1, 1, 1), sigmas, index, method)
    up = tuple(asked)
    asked.clear()
    replay(inversion, denoiser, denoiser)
    return up, tuple(asked)
