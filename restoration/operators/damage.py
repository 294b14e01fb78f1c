"""How a picture or clip was damaged, before its size is known: settings, and the operator that they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...core.settings import Settings
from .operator import Operator, Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Damage(Settings, ABC):
    """A recipe for an operator. Its fields, made by `parameter` and `link`, are the inputs of its node.

    The node, its inputs and the contract tests follow from the class, which is found by its file.

    Attributes:
        title: Its name for people.
        description: What it says of a picture, one or two sentences.
        aliases: Further words that a search finds it by.
    """

    title: ClassVar[str]
    description: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is with its settings, in a few words."""

    @abstractmethod
    def build(self, shape: Shape) -> Operator:
        """Make the operator for a picture (C, H, W), or for a clip (T, C, H, W) where frames are coupled."""

    @classmethod
    @abstractmethod
    def examples(cls) -> Mapping[str, tuple[Damage, Shape]]:
        """One of each kind with a small shape, neither square nor even where it need not be, for the tests."""

    @property
    def keeps_size(self) -> bool:
        """Whether the damaged picture is as large as the whole one."""
        return True

    @property
    def over_time(self) -> bool:
        """Whether frames are coupled."""
        return False

    @property
    def pictures(self) -> int:
        """Number of pictures that it says something about, each by itself; 1 is the same for all."""
        return 1

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


def one_or(count: int) -> str:
    """A number of pictures that may also be one for all: "1 picture" or "1 or 4 pictures"."""
    return "1 picture" if count == 1 else f"1 or {count} pictures"
