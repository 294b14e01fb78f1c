"""SDXL: UNets with pooled text."""

from __future__ import annotations

from typing import Any

from .sd15 import SD15


class SDXL(SD15):
    """UNets whose pooled text is embedded as a class."""

    family = "sdxl"
    label = "SDXL"
    preset_layers = {"structure": "output:0-5", "reference replace": "self#4-69"}

    @classmethod
    def of_family(cls, network: Any) -> bool:
        return network.num_classes is not None
