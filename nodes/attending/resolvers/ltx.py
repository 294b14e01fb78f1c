"""LTX-Video."""

from __future__ import annotations

from typing import Any

from ....attention.sites import Grid, Kind
from ..blocks import Blocks


class LTX(Blocks):
    """Self-attention of the clip, then cross-attention; a token is one latent cell."""

    family = "ltx"
    label = "LTX"
    networks = ("lightricks.model.LTXVModel",)
    word_layers = "all"

    def kinds_of(self, block: Any) -> tuple[Kind | None, ...]:
        return "self", "cross"

    def patch(self) -> Grid:
        return 1, 1, 1
