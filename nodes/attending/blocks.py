"""Transformers whose blocks the host lets be replaced one by one: the resolver wraps each, and counts its calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from ...attention.sites import Grid, Kind, Site, Span
from .resolver import Options, Resolver, Slot, frames_rows_columns

# Stacks of Flux and what follows its design.
DOUBLE_SINGLE = (("double", "double_blocks", "double_block"), ("single", "single_blocks", "single_block"))


class Blocks(Resolver):
    """Follows blocks; a family says which there are, what they call and where its tokens lie.

    Attributes:
        stacks: Stack, attribute of the network, key of the host's replacement.
    """

    # Joint layers before the first third have not yet told the words from each other.
    word_layers = "0.3-1.0"
    stacks: ClassVar[tuple[tuple[str, str, str], ...]] = (("block", "transformer_blocks", "double_block"),)

    def kinds_of(self, block: Any) -> tuple[Kind | None, ...]:
        """Kinds of the calls of a block in order, None for one that rules do not reach."""
        return ("joint",)

    def patch(self) -> Grid:
        """Latent cells that a token covers: frames, rows, columns."""
        size = int(self.network.patch_size)
        return 1, size, size

    def parts(self, kind: Kind, queries: int, keys: int, tokens: int) -> tuple[Span, Span | None]:
        """Return where the image tokens lie among the queries, and the text tokens among the keys.

        Args:
            kind: Kind of the call.
            queries: Tokens of the query sequence.
            keys: Tokens of the key sequence.
            tokens: Tokens of the picture.
        """
        if kind == "self":
            return (0, tokens), None
        if kind == "cross":
            return (0, tokens), (0, keys)
        return (self._text, self._text + tokens), (0, self._text)

    def mark(self, options: Options) -> Options:
        """Return options that wrap every block."""
        replace = dict(options.get("patches_replace", {}))
        blocks = dict(replace.get("dit", {}))
        for stack, attribute, key in self.stacks:
            for index in range(len(getattr(self.network, attribute))):
                blocks[key, index] = self._around(stack, index, blocks.get((key, index)))
        replace["dit"] = blocks
        return {**options, "patches_replace": replace}

    def site(self, queries: int, keys: int, options: Options) -> Site | None:
        """Return the site of the next call of the running block."""
        if self._running is None:
            return None
        kinds, call = self._calls[self._running], self._call
        self._call += 1
        kind = kinds[call] if call < len(kinds) else None
        if kind is None:
            return None
        stack, index = self._running
        slot = Slot(stack, index, 0, kind)
        grid = self.grid_of(slot, self._shape)
        image, text = self.parts(kind, queries, keys, math.prod(grid))
        return self._site_at(slot, image, text, grid)

    def grid_of(self, slot: Slot, shape: Sequence[int]) -> Grid:
        """Return the grid of tokens, the same at every slot."""
        # Latents are padded to whole patches.
        cells = zip(frames_rows_columns(shape), self.patch(), strict=True)
        frames, rows, columns = (-(-size // patch) for size, patch in cells)
        return frames, rows, columns

    def _read(self) -> Iterator[Slot]:
        self._calls: dict[tuple[str, int], tuple[Kind | None, ...]] = {}
        for stack, attribute, _ in self.stacks:
            for index, block in enumerate(getattr(self.network, attribute)):
                self._calls[stack, index] = self.kinds_of(block)
                for kind in self._calls[stack, index]:
                    if kind is not None:
                        yield Slot(stack, index, 0, kind)

    def _restart(self) -> None:
        self._running: tuple[str, int] | None = None
        # Number of the next call of the running block, and of the text tokens.
        self._call = self._text = 0

    def _around(self, stack: str, index: int, other: Callable[..., Any] | None) -> Callable[..., Any]:
        def block(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            self._running, self._call = (stack, index), 0
            # Single blocks get text and image in one; their text is that of the double blocks before them.
            if args.get("txt") is not None:
                self._text = int(args["txt"].shape[1])
            try:
                return extra["original_block"](args) if other is None else other(args, extra)
            finally:
                if self._call == 0:
                    self.bypassed.update(slot for slot in self.slots if slot.block[:2] == (stack, index))
                self._running = None

        return block


class Numbered(Blocks):
    """Follows blocks that the host lets nobody replace, but numbers; what runs before the first number is no block."""

    def mark(self, options: Options) -> Options:
        """Return the options as they are."""
        return options

    def site(self, queries: int, keys: int, options: Options) -> Site | None:
        """Return the site of the next call of the block with the host's number."""
        if "block_index" not in options:
            return None
        block = self.stacks[0][0], options["block_index"]
        if block != self._running:
            self._running, self._call = block, 0
        return super().site(queries, keys, options)
