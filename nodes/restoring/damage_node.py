"""The node of a damage: its id, its texts and its inputs are those of the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from comfy_api.latest import io

from ...restoration.operators import Damage
from ..host.inputs import setting_input
from ..host.node import Node
from .damaged_pictures import pixels_of
from .restore_inputs import OperatorType

# What a link of a recipe is to the host, and how a value that comes over it becomes the recipe's.
_LINKS: dict[str, tuple[Any, Callable[[Any, str], Any]]] = {
    "mask": (io.Mask, lambda mask, _: mask),
    "image": (io.Image, pixels_of),
    "operator": (OperatorType, lambda damage, _: damage),
}


class DamageNode(Node):
    """Says how a picture was damaged.

    Attributes:
        DAMAGE: The recipe.
    """

    ABSTRACT = True
    DAMAGE: ClassVar[type[Damage]]

    @classmethod
    def inputs(cls) -> list[Any]:
        """The fields of the recipe in their order."""
        made = {setting.name: setting_input(setting) for setting in cls.DAMAGE.parameters()}
        for name, (kind, _, field) in cls._links().items():
            optional, tooltip = field.default is None, field.metadata["tooltip"]
            made[name] = kind.Input(name, optional=optional, tooltip=tooltip)
        return [made[field.name] for field in dataclasses.fields(cls.DAMAGE) if field.name in made]

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        operator = OperatorType.Output(
            display_name="operator",
            tooltip="How the picture was damaged: for ApplyDamage, the restore samplers, and DamageCombine.",
        )
        return cls.schema(
            f"Damage: {cls.DAMAGE.title}",
            cls.DAMAGE.description,
            aliases=cls.DAMAGE.aliases,
            inputs=cls.inputs(),
            outputs=[operator],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Make the recipe."""
        for name, (_, read, _) in cls._links().items():
            if values.get(name) is not None:
                values[name] = read(values[name], name)
        return io.NodeOutput(cls.DAMAGE(**values))

    @classmethod
    def _links(cls) -> dict[str, tuple[Any, Callable[[Any, str], Any], dataclasses.Field[Any]]]:
        fields = dataclasses.fields(cls.DAMAGE)
        return {field.name: (*_LINKS[field.metadata["link"]], field) for field in fields if "link" in field.metadata}


def damage_node(damage: type[Damage]) -> type[DamageNode]:
    """The node of a recipe."""
    return type(damage.__name__, (DamageNode,), {"DAMAGE": damage, "__doc__": damage.__doc__})
