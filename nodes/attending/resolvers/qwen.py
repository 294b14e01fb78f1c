"""Qwen-Image."""

from __future__ import annotations

from ..blocks import Blocks


class Qwen(Blocks):
    """Text first, picture behind it."""

    family = "qwen"
    label = "Qwen-Image"
    networks = ("qwen_image.model.QwenImageTransformer2DModel",)
