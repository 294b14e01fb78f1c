"""Masks of an attention rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .grid import to_grid
from .sites import Grid
from .timing import Step


# Compared by identity: tensors have no single truth.
@dataclass(frozen=True, eq=False)
class Mask:
    """Weights of image tokens, 1 where a rule acts in full.

    Attributes:
        weights: (items | 1, [frames | 1,] h, w) on the latent grid, values 0 .. 1.
        protect: Whether a token takes the largest weight of its cells, so that it covers all of a mask; else their
            mean.
        invert: Whether to take 1 - weight, after the resampling: the complement of a mask that was protected.
    """

    weights: Tensor
    protect: bool = False
    invert: bool = False

    def __post_init__(self) -> None:
        if self.weights.ndim not in (3, 4):
            raise ValueError(
                f"mask must have the axes (items, [frames,] h, w), got shape {tuple(self.weights.shape)}; drop or add "
                "axes."
            )
        # Written so that nan fails too.
        if not bool(((self.weights >= 0.0) & (self.weights <= 1.0)).all()):
            raise ValueError("mask must lie between 0 and 1, got values outside; clamp it.")

    def on(self, grid: Grid) -> Tensor:
        """Weights of the tokens of a grid, (items, frames * h * w) float32."""
        weights = to_grid(self.weights, grid, self.protect).flatten(1)
        return 1.0 - weights if self.invert else weights

    def complement(self) -> Mask:
        """The mask whose tokens weigh 1 minus this one's."""
        return Mask(self.weights, self.protect, not self.invert)


class MaskSource(Protocol):
    """A mask that becomes known during a run, such as a word map of the steps so far."""

    def at(self, step: Step, maps: Mapping[str, Any]) -> Mask | None:
        """The mask for a step, None while it is unknown: the rule then rests.

        Args:
            step: The step that is about to be computed.
            maps: Accumulators of the run's probes by name.
        """


@dataclass(frozen=True, eq=False)
class _Changed:
    """A mask source whose masks are protected or inverted."""

    of: MaskSource
    protect: bool
    invert: bool

    def at(self, step: Step, maps: Mapping[str, Any]) -> Mask | None:
        """See MaskSource."""
        mask = self.of.at(step, maps)
        if mask is None:
            return None
        return Mask(mask.weights, mask.protect or self.protect, mask.invert != self.invert)


def complement(mask: Mask | MaskSource) -> Mask | MaskSource:
    """The mask whose tokens weigh 1 minus those of a mask."""
    return mask.complement() if isinstance(mask, Mask) else _Changed(mask, False, True)


def protected(mask: Mask | MaskSource) -> Mask | MaskSource:
    """The mask whose tokens weigh as much as the largest of their cells."""
    return Mask(mask.weights, True, mask.invert) if isinstance(mask, Mask) else _Changed(mask, True, False)


def token_weights(mask: Mask, grid: Grid, item: int) -> Tensor:
    """Weights (tokens,) of one picture of a batch.

    Raises:
        ValueError: If the mask has several items and none for this picture.
    """
    weights = mask.on(grid)
    if weights.shape[0] == 1:
        return weights[0]
    if item >= weights.shape[0]:
        raise ValueError(
            f"mask must have 1 item or one a picture, got {weights.shape[0]} for picture {item}; give one mask each."
        )
    return weights[item]
