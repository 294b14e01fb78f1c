"""A node for every damage that the pack knows."""

from __future__ import annotations

from ...restoration.operators import DamageJPEG
from ...restoration.registry import DAMAGES
from .damage_jpeg import DamageJPEGNode
from .damage_node import DamageNode, damage_node

_OWN: dict[str, type[DamageNode]] = {DamageJPEG.__name__: DamageJPEGNode}

DAMAGE_NODES: tuple[type[DamageNode], ...] = tuple(
    _OWN.get(name) or damage_node(damage) for name, damage in DAMAGES.items()
)
