"""HunyuanVideo 1.5."""

from __future__ import annotations

from typing import Any

from .hunyuan_video import HunyuanVideo


class HunyuanVideo15(HunyuanVideo):
    """Double blocks alone."""

    family = "hunyuan_video_15"
    label = "HunyuanVideo 1.5"
    preset_layers = {}

    @classmethod
    def of_family(cls, network: Any) -> bool:
        return not super().of_family(network)
