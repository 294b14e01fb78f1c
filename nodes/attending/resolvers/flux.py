"""Flux.1 and Chroma."""

from __future__ import annotations

from typing import Any

from ..blocks import DOUBLE_SINGLE, Blocks


class Flux(Blocks):
    """Text first, picture behind it. Published layer lists are of Flux.1, which Chroma descends from."""

    family = "flux"
    label = "Flux, Chroma"
    networks = ("flux.model.Flux", "chroma.model.Chroma")
    preset_layers = {"reference replace": "0.01-1.0"}
    # Shin et al. 2025, arXiv:2508.07519.
    word_layers = "double:11-18"
    stacks = DOUBLE_SINGLE

    @classmethod
    def of_family(cls, network: Any) -> bool:
        return getattr(network, "vector_in", network) is not None
