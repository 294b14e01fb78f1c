"""Flux.2 and LongCat-Image."""

from __future__ import annotations

from typing import Any

from ..blocks import DOUBLE_SINGLE, Blocks


class Flux2(Blocks):
    """Flux with other blocks than Flux.1, and without pooled text."""

    family = "flux2"
    labels = ("Flux.2", "LongCat-Image")
    networks = ("flux.model.Flux",)
    stacks = DOUBLE_SINGLE

    @classmethod
    def of_family(cls, network: Any) -> bool:
        return network.vector_in is None
