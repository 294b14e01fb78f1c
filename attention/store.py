"""What a forward leaves for a later one: operands of the rows that some rule reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .kept import Kept
from .rules import Name
from .sites import Site
from .timing import Step


@dataclass(frozen=True)
class Rows:
    """What each batch row of a call is.

    Attributes:
        branches: Branch of each row.
        chunks: "cond" or "uncond", with a suffix such as "cond:1" where the host asks for several of one kind.
        items: Picture of the batch.
    """

    branches: tuple[str, ...]
    chunks: tuple[str, ...]
    items: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.branches) == len(self.chunks) == len(self.items):
            raise ValueError(
                f"rows must have a branch, a chunk and an item each, got {len(self.branches)}, {len(self.chunks)} and "
                f"{len(self.items)}; give one entry a row."
            )

    def __len__(self) -> int:
        return len(self.branches)

    def who(self, row: int) -> Who:
        """Branch, chunk and picture of a row."""
        return self.branches[row], self.chunks[row], self.items[row]


Who = tuple[str, str, int]


class Shelf(Protocol):
    """Where operands of one forward wait for another."""

    def put(self, site: Site, step: Step, who: Who, name: Name, kept: Kept) -> None:
        """Keep an operand."""

    def get(self, site: Site, step: Step, who: Who, name: Name) -> Kept | None:
        """What was kept, None if nothing was."""


class Store:
    """Operands of one evaluation of all branches; to be cleared before the next."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], Kept] = {}

    def put(self, site: Site, step: Step, who: Who, name: Name, kept: Kept) -> None:
        """Keep an operand."""
        self._kept[(site.key, who, name)] = kept

    def get(self, site: Site, step: Step, who: Who, name: Name) -> Kept | None:
        """What was kept, None if nothing was."""
        return self._kept.get((site.key, who, name))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)
