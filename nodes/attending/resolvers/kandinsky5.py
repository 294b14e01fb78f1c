"""Kandinsky 5, for pictures and for clips."""

from __future__ import annotations

from typing import Any

from ....attention.sites import Grid, Kind, Site
from ..blocks import Blocks
from ..resolver import Options


class Kandinsky5(Blocks):
    """The host's replacement of a block fails, but it numbers them; those of the text run before the first number."""

    family = "kandinsky5"
    label = "Kandinsky 5"
    networks = ("kandinsky5.model.Kandinsky5",)
    word_layers = "all"
    stacks = (("block", "visual_transformer_blocks", ""),)

    def kinds_of(self, block: Any) -> tuple[Kind | None, ...]:
        return "self", "cross"

    def patch(self) -> Grid:
        frames, rows, columns = self.network.patch_size
        return frames, rows, columns

    def mark(self, options: Options) -> Options:
        return options

    def site(self, queries: int, keys: int, options: Options) -> Site | None:
        if "block_index" not in options:
            return None
        block = "block", options["block_index"]
        if block != self._running:
            self._running, self._call = block, 0
        return super().site(queries, keys, options)
