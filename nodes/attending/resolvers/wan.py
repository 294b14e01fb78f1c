"""Wan 2.1 and 2.2."""

from __future__ import annotations

from typing import Any

from ....attention.sites import Grid, Kind, Span
from ..blocks import Blocks


class Wan(Blocks):
    """Self-attention of the clip, then cross-attention; image-to-video blocks look at CLIP's picture before the text.

    A reference frame stands in front of the clip; subjects and other references come behind it.
    """

    family = "wan"
    label = "Wan"
    networks = ("wan.model.WanModel", "wan.model.VaceWanModel", "wan.model.CameraWanModel")
    word_layers = "all"
    stacks = (("block", "blocks", "double_block"),)

    def kinds_of(self, block: Any) -> tuple[Kind | None, ...]:
        return ("self", None, "cross") if hasattr(block.cross_attn, "k_img") else ("self", "cross")

    def patch(self) -> Grid:
        frames, rows, columns = self.network.patch_size
        return frames, rows, columns

    def parts(self, kind: Kind, queries: int, keys: int, tokens: int) -> tuple[Span, Span | None]:
        reference = self._extra.get("reference_latent")
        start = 0
        if reference is not None and getattr(self.network, "ref_conv", None) is not None:
            _, rows, columns = self.patch()
            start = (reference.shape[-2] // rows) * (reference.shape[-1] // columns)
        return (start, start + tokens), (0, keys) if kind == "cross" else None
