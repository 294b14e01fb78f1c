"""A node for every damage that the pack knows and that has none of its own."""

from __future__ import annotations

from ...restoration.registry import DAMAGES
from .damage_jpeg import DamageJPEG
from .damage_node import DamageNode, damage_node

DAMAGE_NODES: tuple[type[DamageNode], ...] = tuple(
    damage_node(damage) for damage in DAMAGES.values() if damage is not DamageJPEG.DAMAGE
)
