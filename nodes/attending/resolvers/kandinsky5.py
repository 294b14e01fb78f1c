"""Kandinsky 5, for pictures and for clips."""

from __future__ import annotations

from typing import Any

from ....attention.sites import Grid, Kind
from ..blocks import Numbered


class Kandinsky5(Numbered):
    """Self-attention of the picture or clip, then cross-attention; the host's own replacement of a block fails."""

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
