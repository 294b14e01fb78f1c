"""The one fitting loop: a tensor moves along the gradient of its rows' losses, and the best of each row is kept.

    for number in 0 .. iterations:
        tried <- attempt(value, number, whether its gradient is wanted)
        the best of each row so far <- tried where its score is lower
        value <- update(value, gradient)                    rows whose score is below `stop` make this last update

Rows are each a problem of their own. Whatever `attempt` or `tell` raises ends the loop: what an interrupted fit should
keep stands in the reports that `tell` makes of the best so far.

Null-text, noise optimisation, SPDInv and RED-diff run in it. What has no score, because its loss is another one in
every update, takes one that falls, so that the last value is the best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Attempt:
    """What came of a value.

    Attributes:
        score: Loss of each row, (B,), by which the best is chosen.
        parts: Tensors (B, ...) that belong to the value and are kept with it.
        gradient: Gradient at the value, of its shape; None where it was not wanted.
    """

    score: Tensor
    parts: tuple[Tensor, ...]
    gradient: Tensor | None


class Best(NamedTuple):
    """The best of every row so far: value, score and parts."""

    value: Tensor
    score: Tensor
    parts: tuple[Tensor, ...]


class Fit(NamedTuple):
    """What a fit ends with.

    Attributes:
        value: The best of every row.
        score: Its scores, (B,).
        parts: What belongs to it.
        first: Scores of the value that the fit began with.
        updates: Updates that were made.
    """

    value: Tensor
    score: Tensor
    parts: tuple[Tensor, ...]
    first: Tensor
    updates: int


Tried = TypeVar("Tried", bound=Attempt)


def fit(
    start: Tensor,
    attempt: Callable[[Tensor, int, bool], Tried],
    update: Callable[[Tensor, Tensor], Tensor],
    iterations: int,
    stop: float | None = None,
    tell: Callable[[int, Tried, Best], None] | None = None,
) -> Fit:
    """Move a tensor along its gradients.

    Works in any mode of the caller's, inference mode included: attempts are made without gradients and outside of it,
    and enable gradients where they need them.

    Args:
        start: First value, (B, ...).
        attempt: Tries a value: (value, number of updates before it, whether its gradient is wanted).
        update: Maps a value and its gradient to the next value, such as the `step` of Adam.
        iterations: Most updates.
        stop: Score below which a row is done; None for all updates.
        tell: Told of every attempt: (number of updates before it, attempt, best so far).

    Returns:
        The best of every row, detached.
    """
    with torch.inference_mode(False), torch.no_grad():
        # A copy: what was made in inference mode could not carry a gradient.
        value, best, first = start.detach().clone(), None, torch.empty(0)
        unmet = torch.ones(len(start), dtype=torch.bool, device=start.device)
        for number in range(iterations + 1):
            wanted = number < iterations and (stop is None or bool(unmet.any()))
            tried = attempt(value, number, wanted)
            best = _better(best, Best(value, tried.score, tried.parts))
            first = first if number else tried.score
            if tell is not None:
                tell(number, tried, best)
            if not wanted:
                break
            assert tried.gradient is not None
            moved = update(value, tried.gradient)
            value = moved if stop is None else torch.where(per_row(unmet, value), moved, value)
            if stop is not None:
                # As published, by null-text and SPDInv: a row that has met its threshold has made this last update.
                unmet = unmet & (tried.score.to(unmet.device) >= stop)
    assert best is not None
    return Fit(*best, first, number)


def per_row(rows: Tensor, like: Tensor) -> Tensor:
    """One value a row, broadcastable to a tensor with rows."""
    return rows.reshape(-1, *[1] * (like.ndim - 1)).to(like.device)


def _better(best: Best | None, now: Best) -> Best:
    if best is None:
        return now
    ahead = now.score < best.score

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(per_row(ahead, new), new, old)

    parts = tuple(choose(new, old) for new, old in zip(now.parts, best.parts, strict=True))
    return Best(choose(now.value, best.value), torch.where(ahead, now.score, best.score), parts)
