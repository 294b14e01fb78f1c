"""SD3 and SD3.5."""

from __future__ import annotations

from typing import Any

from ....attention.sites import Kind
from ..blocks import Blocks


class SD3(Blocks):
    """Text first, picture behind it; the first blocks of SD3.5-M attend a second time, to the picture alone."""

    family = "sd3"
    label = "SD3"
    networks = ("modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",)
    preset_layers = {"masactrl": "all"}
    stacks = (("block", "joint_blocks", "double_block"),)

    def kinds_of(self, block: Any) -> tuple[Kind | None, ...]:
        return ("joint", "self") if getattr(block.x_block, "x_block_self_attn", False) else ("joint",)
