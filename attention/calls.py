"""Pieces of attention that an edit asks for, gathered into as few calls as their shapes allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .operands import Kept, additive
from .rules import Name
from .sites import Span

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


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
    q: Kept
    k: Kept
    v: Kept
    span: Span

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
        return tuple(self.q.tensor.shape), tuple(self.k.tensor.shape), tuple(self.v.tensor.shape), about


def attend_all(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    pieces: Sequence[Piece],
    attend: Attend,
    own: Sequence[Mapping[Name, Kept]],
) -> tuple[dict[int, Tensor], Tensor | None]:
    """Outputs of pieces.

    Where every row of the call has a piece of the call's own shape, those are one call on the call's tensors with the
    changed rows written over; all others are stacked by shape.

    Args:
        q: Queries of the call.
        k: Keys of the call.
        v: Values of the call.
        mask: Mask of the call.
        pieces: What is asked for.
        attend: The network's own attention.
        own: Operands of the rows as they were.

    Returns:
        (heads, queries, d) by the id of the piece, and the output of the one call where there was no other.
    """
    usual = (tuple(q.shape[1:]), tuple(k.shape[1:]), tuple(v.shape[1:]))
    main: dict[int, Piece] = {}
    for piece in pieces:
        if piece.shape[:3] == usual and (piece.mask is None) == (mask is None):
            main.setdefault(piece.row, piece)
    outputs: dict[int, Tensor] = {}
    left = list(pieces)
    if len(main) == q.shape[0]:
        whole = attend(*_written((q, k, v), mask, main, own))
        outputs = {id(piece): whole[row] for row, piece in main.items()}
        left = [piece for piece in pieces if id(piece) not in outputs]
        if not left:
            return outputs, whole
    for group in _grouped(left):
        stacked = [torch.stack([getattr(piece, name).tensor for piece in group]) for name in ("q", "k", "v")]
        masks = [piece.mask for piece in group]
        known = [entry for entry in masks if entry is not None]
        found = attend(stacked[0], stacked[1], stacked[2], torch.stack(known) if known else None)
        outputs.update({id(piece): found[index] for index, piece in enumerate(group)})
    return outputs, None


def _grouped(pieces: Sequence[Piece]) -> list[list[Piece]]:
    groups: dict[tuple[object, ...], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.shape, []).append(piece)
    return list(groups.values())


def _written(
    tensors: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    main: Mapping[int, Piece],
    own: Sequence[Mapping[Name, Kept]],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The call's tensors with changed rows written over; what no row changes stays the same object."""
    out = []
    names: tuple[Name, ...] = ("q", "k", "v")
    for name, tensor in zip(names, tensors, strict=True):
        changed = {
            row: getattr(piece, name) for row, piece in main.items() if getattr(piece, name) is not own[row][name]
        }
        if changed:
            tensor = tensor.clone()
            for row, kept in changed.items():
                tensor[row] = kept.tensor
        out.append(tensor)
    return out[0], out[1], out[2], _masks(mask, main, own)


def _masks(mask: Tensor | None, main: Mapping[int, Piece], own: Sequence[Mapping[Name, Kept]]) -> Tensor | None:
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
