"""Lumina 2 and Z-Image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ....attention.sites import Site
from ..blocks import Blocks
from ..resolver import Options, Slot


class Lumina(Blocks):
    """No block can be replaced, but the host numbers them; refiners run before the first number."""

    family = "lumina"
    label = "Lumina 2, Z-Image"
    networks = ("lumina.model.NextDiT",)
    stacks = (("block", "layers", ""),)

    @classmethod
    def may_share(cls, model_conds: Sequence[Mapping[str, Any]]) -> bool:
        # Host 0.8.0 takes a mask of several rows for one of queries and keys.
        return "attention_mask" not in model_conds[0]

    def mark(self, options: Options) -> Options:
        return options

    def site(self, queries: int, keys: int, options: Options) -> Site | None:
        if "block_index" not in options:
            return None
        slot = Slot("block", options["block_index"], 0, "joint")
        grid = self.grid_of(slot, self._shape)
        tokens = math.prod(grid)
        multiple = getattr(self.network, "pad_tokens_multiple", None) or 1
        start = keys - -(-tokens // multiple) * multiple
        # Z-Image fills the text up to a multiple too.
        context = self._extra.get("c_crossattn")
        text = start if context is None else min(start, int(context.shape[1]))
        return self._site_at(slot, (start, start + tokens), (0, text), grid)
