"""Who the batch rows of a call are."""

from __future__ import annotations

from dataclasses import dataclass

Who = tuple[str, str, int]


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
