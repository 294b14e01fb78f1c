"""What is edited: held-out pictures of the Shapes world, what each is to become, and the pixels that may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from retrace.demo import world

# The four kinds of edit: the word of the caption that changes, and what to call it.
KINDS = {"colour": "object colour", "background": "background colour", "shape": "shape", "position": "position"}
# Pixels by which the region of an edit is grown: an edge is antialiased over one, and a latent cell is four wide.
MARGIN = 2
SEED = 1


@dataclass(frozen=True)
class Triple:
    """A picture, in words, and what it is to become.

    Attributes:
        kind: Key of KINDS, the only word in which the two scenes differ.
        source: What the picture shows.
        target: What it is to show.
    """

    kind: str
    source: world.Scene
    target: world.Scene


class Drawn(NamedTuple):
    """The pictures of some triples.

    Attributes:
        pictures: Sources, uint8, shape (B, 64, 64, 3).
        wanted: The targets as the world draws them with the same shades, gradient and place, same shape.
        regions: Where an edit may act, bool, shape (B, 64, 64): for a new background all but the object; else the
            source's object together with the target's, as it would stand there.
    """

    pictures: np.ndarray
    wanted: np.ndarray
    regions: np.ndarray


def triples(count: int, held_out: bool = True) -> list[Triple]:
    """Return `count` triples of each kind, in turns of the kinds, without repetition.

    Neither scene's combination of shape and colours was trained on; with held_out False both were.

    Raises:
        ValueError: If there are not so many.
    """
    known = list(world.scenes(held_out=held_out))
    chosen = []
    for index, word in enumerate(KINDS):
        pairs = list(_pairs(known, word))
        if not 1 <= count <= len(pairs):
            raise ValueError(f"count must be between 1 and {len(pairs)} for {word}, got {count}; choose 50.")
        order = np.random.default_rng((SEED, index)).permutation(len(pairs))
        chosen.append([pairs[i] for i in order[:count]])
    return [part[i] for i in range(count) for part in chosen]


def _pairs(known: Sequence[world.Scene], word: str):
    """Yield every pair of known scenes that differ in one word alone."""
    inside = set(known)
    words = {"colour": world.COLOURS, "background": world.COLOURS, "shape": world.SHAPES, "position": world.POSITIONS}
    for source in known:
        for value in words[word]:
            clash = {"colour": source.background, "background": source.colour}.get(word)
            if value in (getattr(source, word), clash):
                continue
            target = source.changed(**{word: value})
            if target in inside:
                yield Triple(word, source, target)


def draw(chosen: Sequence[Triple]) -> Drawn:
    """Draw the sources and the targets, each pair from the same random numbers."""
    pictures, masks = world.render([triple.source for triple in chosen], seed=SEED)
    wanted, target_masks = world.render([triple.target for triple in chosen], seed=SEED)
    regions = np.stack(
        [
            # Without a margin: the stroke of a small ring is not wide enough for one.
            source < 1.0 if triple.kind == "background" else _grown((source > 0.0) | (target > 0.0))
            for triple, source, target in zip(chosen, masks, target_masks, strict=True)
        ]
    )
    return Drawn(pictures, wanted, regions)


def _grown(region: np.ndarray) -> np.ndarray:
    """Return a region and all pixels within MARGIN of it, along the sides and diagonals."""
    padded = np.pad(region, MARGIN)
    height, width = region.shape
    offsets = range(2 * MARGIN + 1)
    return np.any([padded[i : i + height, j : j + width] for i in offsets for j in offsets], axis=0)
