"""Heat maps of words, collected from a model's own attention while it runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .rules import Probe
from .sites import ALL, Grid, Layers, Site
from .timing import ALWAYS, Step, Window
from .tokens import Prompt
from .word_list import Word

# Word maps are best on the 16 x 16 tokens of a 64 x 64 latent (Hertz et al. 2022, arXiv:2208.01626); below 16 tokens
# a side they are too coarse.
SHARE, LEAST = 0.25, 16


class WordMaps:
    """Attention of the image to some words: mean over sites and steps, sum over the tokens of a word.

    A mean where the official code of prompt-to-prompt keeps a sum, so that a map has a scale of its own. Of sites with
    grids of several sizes those count that are nearest to a quarter of the latent's side, and to 16 tokens at least.
    """

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        """Start empty.

        Args:
            groups: For each word the places of its tokens among the probe's tokens.
        """
        self._groups = tuple(tuple(group) for group in groups)
        self._sums: dict[tuple[int, Grid], Tensor] = {}
        self._counts: dict[tuple[int, Grid], int] = {}
        self._best: dict[Grid, float] = {}

    def add(self, site: Site, step: Step, item: int, masses: Tensor) -> None:
        """Take in what one site of one step attends to.

        Args:
            site: Where; its grid counts.
            step: When; all steps count alike.
            item: Picture of the batch.
            masses: Attention to each token, mean over heads, shape (tokens, frames, h, w), float32.
        """
        words = torch.stack([masses[list(group)].sum(0) for group in self._groups])
        key = (item, site.grid)
        self._sums[key] = words if key not in self._sums else self._sums[key] + words
        self._counts[key] = self._counts.get(key, 0) + 1
        wanted = max(site.latent[1] * site.latent[2] * SHARE**2, LEAST**2)
        self._best[site.grid] = abs(math.log(site.grid[1] * site.grid[2] / wanted))

    @property
    def is_empty(self) -> bool:
        """Whether nothing has come in."""
        return not self._counts

    @property
    def grid(self) -> Grid:
        """The grid of tokens whose readings count.

        Raises:
            ValueError: If nothing came in.
        """
        if self.is_empty:
            raise ValueError("word maps must have seen a step, got none; let their window hold one.")
        # Of two that are as near the finer one.
        return min(self._best, key=lambda grid: (round(self._best[grid], 3), -grid[1] * grid[2]))

    def maps(self) -> Tensor:
        """Return the maps.

        Returns:
            Shape (items, words, frames, h, w), float32.

        Raises:
            ValueError: If nothing came in.
        """
        grid = self.grid
        items = sorted({item for item, _ in self._counts})
        return torch.stack([self._sums[item, grid] / self._counts[item, grid] for item in items])


def word_probe(
    name: str,
    prompt: Prompt,
    words: Sequence[Word],
    branch: str,
    layers: Layers = ALL,
    window: Window = ALWAYS,
    read: Literal["text", "exact"] = "text",
) -> Probe:
    """Return a probe for words of a branch's prompt; in a run its accumulator is a WordMaps.

    Args:
        name: Key of its maps in a run.
        prompt: The branch's prompt.
        words: Its words, one map each.
        branch: The branch.
        layers: Sites that are read.
        window: Steps in which it is read.
        read: "text": share among the text's keys, "exact": among all.

    Raises:
        ValueError: If there is no word, or the prompt does not hold one.
    """
    if not words:
        raise ValueError("words must name at least one word of the prompt, got none; write one.")
    keys = [prompt.find(*word) for word in words]
    tokens = tuple(sorted({key for group in keys for key in group}))
    groups = tuple(tuple(tokens.index(key) for key in group) for group in keys)
    return Probe(
        name,
        tokens,
        functools.partial(WordMaps, groups),
        layers,
        window=window,
        branch=branch,
        read=read,
        length=prompt.length,
    )
