"""AuraFlow."""

from __future__ import annotations

from ....attention.sites import Kind, Span
from ..blocks import Blocks


class Aura(Blocks):
    """Learnt tokens stand in front of the text, the picture behind it."""

    family = "aura"
    label = "AuraFlow"
    networks = ("aura.mmdit.MMDiT",)
    stacks = (("double", "double_layers", "double_block"), ("single", "single_layers", "single_block"))

    def parts(self, kind: Kind, queries: int, keys: int, tokens: int) -> tuple[Span, Span | None]:
        return (queries - tokens, queries), (int(self.network.register_tokens.shape[1]), keys - tokens)
