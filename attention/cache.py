"""What a forward leaves for a later one: operands of the rows that some rule reads."""

from __future__ import annotations

from typing import Protocol

from .cached_operand import CachedOperand
from .rows import Who
from .rules import Name
from .sites import Site
from .timing import Step


class Cache(Protocol):
    """Where operands of one forward wait for another."""

    def put(self, site: Site, step: Step, who: Who, name: Name, operand: CachedOperand) -> None:
        """Keep an operand."""

    def get(self, site: Site, step: Step, who: Who, name: Name) -> CachedOperand | None:
        """What was kept, None if nothing was."""


class EvaluationCache:
    """Operands of one evaluation of all branches; to be cleared before the next."""

    def __init__(self) -> None:
        self._operands: dict[tuple[object, ...], CachedOperand] = {}

    def put(self, site: Site, step: Step, who: Who, name: Name, operand: CachedOperand) -> None:
        """Keep an operand."""
        self._operands[(site.key, who, name)] = operand

    def get(self, site: Site, step: Step, who: Who, name: Name) -> CachedOperand | None:
        """What was kept, None if nothing was."""
        return self._operands.get((site.key, who, name))

    def clear(self) -> None:
        """Forget everything."""
        self._operands.clear()

    def __len__(self) -> int:
        return len(self._operands)
