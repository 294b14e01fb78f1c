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
        pictures: Number of pictures that it says something about, each by itself; 1 is the same for all.
    """

    label: str
    build: Callable[[Shape], Operator]
    over_time: bool = False
    keeps_size: bool = True
    pictures: int = 1

    def on(self, height: int, width: int, frames: int, channels: int = 3) -> Operator:
        """Make the operator for so many pictures of a size.

        Args:
            height: Rows of a picture.
            width: Columns.
            frames: Number of pictures, or of the frames of a clip.
            channels: Channels of a picture.

        Raises:
            ValueError: If size or number do not fit the damage.
        """
        # What couples frames may have masks for those that it leaves; the operator itself knows.
        if not self.over_time and self.pictures not in (1, frames):
            raise ValueError(
                f"mask must hold {one_or(frames)} here, got {self.pictures}; "
                "pick one of them or make one for each picture."
            )
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

    counts = {damage.pictures for damage in damages} - {1}
    if len(counts) > 1:
        raise ValueError(
            f"masks must be equally many in a combination, got {', '.join(map(str, sorted(counts)))}; "
            "use one mask for all pictures, or one for each."
        )
    return Damage(
        ", then ".join(damage.label for damage in damages),
        build,
        over_time=any(damage.over_time for damage in damages),
        keeps_size=all(damage.keeps_size for damage in damages),
        pictures=max(counts, default=1),
    )


def one_or(count: int) -> str:
    """A number of pictures that may also be one for all: "1 picture" or "1 or 4 pictures"."""
    return "1 picture" if count == 1 else f"1 or {count} pictures"
