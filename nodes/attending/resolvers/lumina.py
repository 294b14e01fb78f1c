"""Lumina 2 and Z-Image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....attention.sites import Kind, Span
from ..blocks import Numbered


class Lumina(Numbered):
    """Text, then the picture; refiners of both run before the blocks."""

    family = "lumina"
    label = "Lumina 2, Z-Image"
    networks = ("lumina.model.NextDiT",)
    stacks = (("block", "layers", ""),)

    @classmethod
    def may_share(cls, model_conds: Sequence[Mapping[str, Any]]) -> bool:
        # Host 0.8.0 takes a mask of several rows for one of queries and keys.
        return "attention_mask" not in model_conds[0]

    def parts(self, kind: Kind, queries: int, keys: int, tokens: int) -> tuple[Span, Span | None]:
        multiple = getattr(self.network, "pad_tokens_multiple", None) or 1
        start = keys - -(-tokens // multiple) * multiple
        # Z-Image fills the text up to a multiple too.
        context = self._extra.get("c_crossattn")
        text = start if context is None else min(start, int(context.shape[1]))
        return (start, start + tokens), (0, text)
