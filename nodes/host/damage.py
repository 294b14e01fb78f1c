"""What travels on an OPERATOR link: how a picture or clip was damaged, before its size is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comfy_api.latest import io

from ...restoration.operators import Combine, Operator, Shape

OperatorType = io.Custom("OPERATOR")


@dataclass(frozen=True, eq=False)
class Damage:
    """A recipe for an operator.

    Attributes:
        label: What it is, in a few words.
        build: Makes the operator for a picture (C, H, W), or for a clip (T, C, H, W) when it couples frames.
        over_time: Whether frames are coupled.
        keeps_size: Whether the damaged picture is as large as the whole one.
    """

    label: str
    build: Callable[[Shape], Operator]
    over_time: bool = False
    keeps_size: bool = True

    def on(self, height: int, width: int, frames: int, channels: int = 3) -> Operator:
        """Make the operator for pictures of a size; frames counts when they are coupled.

        Raises:
            ValueError: If the size does not fit the damage.
        """
        shape = (channels, height, width)
        return self.build((frames, *shape) if self.over_time else shape)


def combined(damages: Sequence[Damage]) -> Damage:
    """Return several damages in the order they happened as one."""

    def build(shape: Shape) -> Operator:
        operators: list[Operator] = []
        for damage in damages:
            operators.append(damage.build(shape))
            shape = operators[-1].out_shape
        return Combine(operators)

    return Damage(
        ", then ".join(damage.label for damage in damages),
        build,
        over_time=any(damage.over_time for damage in damages),
        keeps_size=all(damage.keeps_size for damage in damages),
    )
