"""Pieces of attention that an edit asks for, gathered into as few calls as their shapes allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .cached_operand import CachedOperand
from .operands import additive
from .rules import Name
from .sites import Span

NAMES: tuple[Name, ...] = ("q", "k", "v")
# Pieces whose queries have more numbers than this are asked for one by one: a copy into a common batch would cost more
# than a call. 1 MiB of float32.
STACKED = 2**18
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True, eq=False)
class Call:
    """A network's call of its attention.

    Attributes:
        q: (B, heads, queries, d), after norm and rotation.
        k: (B, key heads, keys, d); fewer heads than q where the network shares them.
        v: (B, key heads, keys, d).
        attend: The network's own attention, (q, k, v, mask) -> (B, heads, queries, d). Without a rule it gets these
            very tensors once; else rows, keys and queries may be others in number.
        mask: The network's own mask, (1 | B, 1 | heads, 1 | queries, keys), or None.
        scale: Of the scores, None for 1 / sqrt(d).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    attend: Attend
    mask: Tensor | None = None
    scale: float | None = None


@dataclass(frozen=True, eq=False)
class Piece:
    """SDPA(q, k, v) for some queries of a row.

    Attributes:
        row: The row whose output it belongs to.
        q: Queries.
        k: Keys, with their columns of the host's mask.
        v: Values.
        span: Place of the queries in the row, which picks the rows of a mask that has some.
    """

    row: int
    q: CachedOperand
    k: CachedOperand
    v: CachedOperand
    span: Span

    def __post_init__(self) -> None:
        if self.k.length != self.v.length:
            raise ValueError(
                f"keys and values must be equally many, got {self.k.length} and {self.v.length}; take both from one "
                "branch, use prompts of one token length, or the image tokens only."
            )

    @property
    def mask(self) -> Tensor | None:
        """(1 | heads, 1 | queries, keys), or None."""
        mask = self.k.mask
        if mask is None or mask.shape[1] in (1, self.q.length):
            return mask
        return mask[:, self.span[0] : self.span[1]]

    @property
    def shape(self) -> tuple[object, ...]:
        """What pieces of one call share."""
        mask = self.mask
        about = None if mask is None else (tuple(mask.shape), mask.dtype)
        return self.q.shape, self.k.shape, self.v.shape, about


def attend_all(
    call: Call, pieces: Sequence[Piece], own: Sequence[Mapping[Name, CachedOperand]]
) -> tuple[dict[int, Tensor], Tensor | None]:
    """Outputs of pieces.

    Where every row of the call has a piece of the call's own shape, the first of each are one call on the call's
    tensors with the changed rows written over; small ones of the others are stacked by shape.

    Args:
        call: The network's call.
        pieces: What is asked for.
        own: Operands of the rows as they were.

    Returns:
        (heads, queries, d) by the id of the piece, and the output of the call on the call's tensors if there was one.
    """
    usual = tuple(tuple(tensor.shape[1:]) for tensor in (call.q, call.k, call.v))
    main: dict[int, Piece] = {}
    for piece in pieces:
        if piece.shape[:3] == usual and (piece.mask is None) == (call.mask is None):
            main.setdefault(piece.row, piece)
    outputs: dict[int, Tensor] = {}
    out = None
    if len(main) == len(own):
        out = call.attend(*_written(call, main, own))
        outputs = {id(piece): out[row] for row, piece in main.items()}
    for group in _grouped([piece for piece in pieces if id(piece) not in outputs]):
        stacked = [_stack([getattr(piece, name).tensor for piece in group]) for name in NAMES]
        known = [piece.mask for piece in group if piece.mask is not None]
        answer = call.attend(stacked[0], stacked[1], stacked[2], _stack(known) if known else None)
        outputs.update({id(piece): answer[index] for index, piece in enumerate(group)})
    return outputs, out


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """As torch.stack, without a copy of a single tensor."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def _grouped(pieces: Sequence[Piece]) -> list[list[Piece]]:
    groups: dict[tuple[object, ...], list[Piece]] = {}
    for piece in pieces:
        heads, queries, d = piece.q.shape
        own = (id(piece),) if heads * queries * d > STACKED else ()
        groups.setdefault((*piece.shape, *own), []).append(piece)
    return list(groups.values())


def _written(
    call: Call, main: Mapping[int, Piece], own: Sequence[Mapping[Name, CachedOperand]]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The call's tensors with changed rows written over; what no row changes stays the same object."""
    out = []
    for name, tensor in zip(NAMES, (call.q, call.k, call.v), strict=True):
        asked: list[CachedOperand] = [getattr(main[row], name) for row in range(len(own))]
        changed = [operand is not own[row][name] for row, operand in enumerate(asked)]
        first = asked[0].parts
        if any(changed) and all(len(operand.parts) == 1 and operand.parts[0] is first[0] for operand in asked):
            # All rows read the same: nothing to copy.
            tensor = first[0].unsqueeze(0).expand_as(tensor)
        elif any(changed):
            # Each row is written once, in the layout of the call's own.
            copy = torch.empty_like(tensor)
            for row, operand in enumerate(asked):
                operand.write(copy[row])
            tensor = copy
        out.append(tensor)
    return out[0], out[1], out[2], _masks(call.mask, main, own)


def _masks(
    mask: Tensor | None, main: Mapping[int, Piece], own: Sequence[Mapping[Name, CachedOperand]]
) -> Tensor | None:
    if mask is None or all(piece.mask is own[row]["k"].mask for row, piece in main.items()):
        return mask
    rows = [main[row].mask for row in range(len(own))]
    known = [entry for entry in rows if entry is not None]
    shapes = [entry.shape for entry in known]
    heads, queries = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
    if any(entry.dtype != torch.bool for entry in known):
        dtype = next(entry.dtype for entry in known if entry.dtype != torch.bool)
        known = [additive(entry, dtype) for entry in known]
    return torch.stack([entry.expand(heads, queries, -1) for entry in known])
