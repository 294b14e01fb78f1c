"""Flux.2 and LongCat-Image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ....attention.sites import Kind, Span
from ..blocks import DOUBLE_SINGLE, Blocks


class Flux2(Blocks):
    """Text first, picture behind it; other blocks than those of Flux.1, and no pooled text.

    The host fills a prompt up to 512 tokens with zeros in front of it.
    """

    family = "flux2"
    label = "Flux.2, LongCat-Image"
    networks = ("flux.model.Flux",)
    stacks = DOUBLE_SINGLE

    @classmethod
    def of_family(cls, network: Any) -> bool:
        return network.vector_in is None

    @classmethod
    def may_share(cls, model_conds: Sequence[Mapping[str, Any]]) -> bool:
        return len({_zeros(conds["c_crossattn"].cond) for conds in model_conds}) == 1

    def begin(self, shape: Sequence[int], extra: dict[str, Any]) -> None:
        super().begin(shape, extra)
        text = extra.get("c_crossattn")
        self._start = 0 if text is None else _zeros(text)

    def parts(self, kind: Kind, queries: int, keys: int, tokens: int) -> tuple[Span, Span | None]:
        return (self._text, self._text + tokens), (self._start, self._text)


def _zeros(text: torch.Tensor) -> int:
    """Count the tokens of zeros in front of a prompt; one of zeros alone is a prompt."""
    filled = text.flatten(2).any(-1).any(0)
    return int(filled.int().argmax())
