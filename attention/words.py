"""Heat maps of words, collected from a model's own attention while it runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

Grid = tuple[int, int, int]


class WordMaps:
    """Attention of the image to some words: mean over sites and steps, sum over the tokens of a word.

    A mean where the official code of prompt-to-prompt keeps a sum, so that a map has a scale of its own.
    """

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        """Start empty.

        Args:
            groups: For each word the places of its tokens among the probe's tokens.
        """
        self._groups = tuple(tuple(group) for group in groups)
        self._sums: dict[tuple[int, Grid], Tensor] = {}
        self._counts: dict[tuple[int, Grid], int] = {}

    def add(self, site: object, step: object, item: int, masses: Tensor) -> None:
        """Take in what one site of one step attends to.

        Args:
            site: Where; all count alike.
            step: When; all count alike.
            item: Picture of the batch.
            masses: Attention to each token, mean over heads, shape (tokens, frames, h, w), float32.
        """
        words = torch.stack([masses[list(group)].sum(0) for group in self._groups])
        frames, h, w = (int(size) for size in masses.shape[-3:])
        key = (item, (frames, h, w))
        self._sums[key] = words if key not in self._sums else self._sums[key] + words
        self._counts[key] = self._counts.get(key, 0) + 1

    @property
    def is_empty(self) -> bool:
        """Whether nothing has come in."""
        return not self._counts

    @property
    def finest(self) -> Grid:
        """The finest grid that came in.

        Raises:
            ValueError: If nothing came in.
        """
        if self.is_empty:
            raise ValueError("word maps must have seen a step, got none; let their window hold one.")
        return max((grid for _, grid in self._counts), key=lambda grid: grid[0] * grid[1] * grid[2])

    def maps(self, grid: Grid | None = None) -> Tensor:
        """Return the maps.

        Args:
            grid: Frames, height and width to bring them to, between cells linearly; None for the finest that came in.

        Returns:
            Shape (items, words, frames, h, w), float32.

        Raises:
            ValueError: If nothing came in.
        """
        size = self.finest if grid is None else grid
        items = sorted({item for item, _ in self._counts})
        return torch.stack([self._mean(item, size) for item in items])

    def _mean(self, item: int, size: Grid) -> Tensor:
        keys = [key for key in self._counts if key[0] == item]
        total = sum(self._counts[key] for key in keys)
        # Sites of a coarse grid count as much as those of a fine one.
        fitted = [_resize(self._sums[key], size) for key in keys]
        return torch.stack(fitted).sum(0) / total


def _resize(words: Tensor, size: Grid) -> Tensor:
    if words.shape[-3:] == size:
        return words
    return functional.interpolate(words[None], size, mode="trilinear", align_corners=False)[0]
