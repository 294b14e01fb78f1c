"""Where an attention call stands in a model, and the short text that picks some of these places."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["self", "cross", "joint"]
KINDS: tuple[Kind, ...] = ("self", "cross", "joint")
# input, middle, output: UNets. double, single: Flux and its kin. block: networks with one kind of block.
STACKS = ("input", "middle", "output", "double", "single", "block")

Span = tuple[int, int]
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Site:
    """One attention call of a network.

    Attributes:
        stack: One of STACKS.
        index: Block in its stack.
        inner: Transformer inside the block, from 0.
        kind: "self" (image queries, image keys), "cross" (image queries, text keys) or "joint" (one sequence of both).
        number: Running number among the sites of this kind, the 10 of `self#10`.
        depth: 0 .. 1, position of the block among all that attend.
        image: Start and stop of the image tokens in the query sequence.
        text: Start and stop of the text tokens in the key sequence, None for "self".
        grid: Frames, rows and columns of the image tokens, row-major.
        latent: Frames, rows and columns of the latent.
    """

    stack: str
    index: int
    inner: int
    kind: Kind
    number: int
    depth: float
    image: Span
    text: Span | None
    grid: Grid
    latent: Grid

    @property
    def key(self) -> tuple[str, int, int, str, int]:
        """What is the same in every call of this place, whatever the lengths and the grid."""
        return self.stack, self.index, self.inner, self.kind, self.number

    @property
    def label(self) -> str:
        """Name for people, in the syntax of Layers where it can be."""
        place = f"{self.stack}:{self.index}" + (f".{self.inner}" if self.inner else "")
        return f"{place} ({self.kind}#{self.number})"


@dataclass(frozen=True)
class _Pick:
    """One range of a clause: a stack's blocks, a kind's numbers, or depths."""

    stack: str | None = None
    kind: str | None = None
    first: int | None = None
    last: int | None = None
    inner: int | None = None
    depths: tuple[float, float] | None = None

    def matches(self, site: Site) -> bool:
        if self.depths is not None:
            return self.depths[0] <= site.depth <= self.depths[1]
        if self.kind is not None:
            where, right = site.number, site.kind == self.kind
        else:
            where, right = site.index, site.stack == self.stack and self.inner in (None, site.inner)
        return right and (self.first is None or self.last is None or self.first <= where <= self.last)


@dataclass(frozen=True)
class Layers:
    """A set of sites, written as `double:0,1,17-18; single:20-37`, `output:4-11`, `self#10-15`, `0.35-1.0` or `all`.

    Clauses stand between semicolons and add up. `stack:` takes blocks of a stack (`input:8.3` is transformer 3 inside
    block 8, a bare `single` the whole stack), `kind#` running numbers of a kind (a bare `joint` all of it), a range of
    decimals the depth in the network. Make one with `Layers.parse`.
    """

    text: str
    picks: tuple[_Pick, ...]

    @staticmethod
    def parse(text: str) -> Layers:
        """Read a layer text.

        Raises:
            ValueError: If a part is not understood.
        """
        clauses = [clause.strip() for clause in text.strip().lower().split(";")]
        picks = [pick for clause in clauses if clause for pick in _clause(clause)]
        if not picks:
            raise ValueError('layers must name at least one layer, got an empty text; write "all" for every layer.')
        return Layers("; ".join(clause for clause in clauses if clause), tuple(picks))

    def matches(self, site: Site) -> bool:
        """Whether a site belongs to the set."""
        return any(pick.matches(site) for pick in self.picks)


ALL = Layers("all", (_Pick(depths=(0.0, 1.0)),))


def _clause(clause: str) -> list[_Pick]:
    if clause == "all":
        return list(ALL.picks)
    if clause in STACKS:
        return [_Pick(stack=clause)]
    if clause in KINDS:
        return [_Pick(kind=clause)]
    head = re.fullmatch(r"([a-z]+)\s*([:#])\s*(.+)", clause)
    if head is None:
        return [_depths(clause)]
    name, mark, rest = head.groups()
    if name not in (STACKS if mark == ":" else KINDS):
        raise _unknown(clause)
    return [_numbers(name, mark, part.strip(), clause) for part in rest.split(",")]


def _numbers(name: str, mark: str, part: str, clause: str) -> _Pick:
    within = re.fullmatch(r"(\d+)\.(\d+)", part)
    if within is not None and mark == ":":
        block, inner = map(int, within.groups())
        return _Pick(stack=name, first=block, last=block, inner=inner)
    bounds = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
    if bounds is None:
        raise _unknown(clause)
    first = int(bounds[1])
    last = first if bounds[2] is None else int(bounds[2])
    if last < first:
        raise ValueError(f"layers must rise within a range, got {part!r}; write {last}-{first}.")
    return _Pick(stack=name if mark == ":" else None, kind=name if mark == "#" else None, first=first, last=last)


def _depths(clause: str) -> _Pick:
    bounds = re.fullmatch(r"(\d*\.?\d+|\d+\.)\s*-\s*(\d*\.?\d+|\d+\.)", clause)
    if bounds is None:
        raise _unknown(clause)
    first, last = float(bounds[1]), float(bounds[2])
    if last > 1.0:
        raise ValueError(
            f'layers must put a stack before block numbers, got {clause!r}; write "output:{clause}" or a depth '
            "between 0.0 and 1.0."
        )
    if last < first:
        raise ValueError(f"layers must rise within a range, got {clause!r}; write {last}-{first}.")
    return _Pick(depths=(first, last))


def _unknown(clause: str) -> ValueError:
    return ValueError(
        f"layers must be like double:0,1,17-18, output:4-11, self#10-15, joint, 0.35-1.0 or all, got {clause!r}; the "
        f"stacks are {', '.join(STACKS)} and the kinds {', '.join(KINDS)}."
    )
