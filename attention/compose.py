"""The output of a call from the pieces that its rows are edited with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .cached_operand import CachedOperand
from .calls import Call, Piece, attend_all
from .operands import lerp
from .rules import Name
from .sites import Span

Operands: TypeAlias = dict[Name, CachedOperand]
# Least mass that a sum is divided by: all words of a query may have been taken away.
MASS = 1e-4


@dataclass(frozen=True, eq=False)
class Sum:
    """A rule's output on some queries of a row: the weighted sum of its pieces, of which the row gets a share.

    Attributes:
        span: The queries.
        weight: Share, a number or (queries, 1).
        full: Whether the share is 1 everywhere.
        pieces: Pieces with their weights (queries, 1), None for 1.
        masses: The same with W 1 for values, of a sum that is divided by its mass; else empty.
    """

    span: Span
    weight: float | Tensor
    full: bool
    pieces: tuple[tuple[Piece, Tensor | None], ...]
    masses: tuple[tuple[Piece, Tensor | None], ...] = ()


def composed(
    call: Call,
    own: Sequence[Mapping[Name, CachedOperand]],
    operands: Sequence[Operands],
    sums: Sequence[Sequence[Sum]],
) -> Tensor:
    """Output of a call.

    Args:
        call: The network's call.
        own: Operands of its rows as they were.
        operands: Operands of its rows after all swaps.
        sums: Of each row, in the order in which they compose.

    Returns:
        (B, heads, queries, d).
    """
    pieces: list[Piece] = []
    base: list[Piece | None] = []
    for row, entry in enumerate(operands):
        base.append(_base(row, entry, sums[row][0] if sums[row] else None))
        listed = [base[-1], *(piece for total in sums[row] for piece, _ in total.pieces + total.masses)]
        pieces += dict.fromkeys(piece for piece in listed if piece is not None)
    done, out = attend_all(call, pieces, own)
    if out is None:
        rows = [_row(operands[row], base[row], sums[row], done) for row in range(len(operands))]
        length = operands[0]["q"].length
        # As a network's own attention leaves it, tokens before heads, so that it need not be turned once more.
        lying = rows[0][0].new_empty(len(rows), length, *rows[0][0].shape[::2]).transpose(1, 2)
        for row, parts in enumerate(rows):
            CachedOperand(parts, None, None).write(lying[row])
        return lying
    edited = {row: _row(operands[row], base[row], sums[row], done) for row in range(len(sums)) if sums[row]}
    changed = {row: parts for row, parts in edited.items() if parts[0] is not done.get(id(base[row]))}
    if not changed:
        return out
    # What attend returns is ours alone to write to, but not what a gradient runs through.
    out = out.clone() if out.requires_grad else out
    for row, parts in changed.items():
        CachedOperand(parts, None, None).write(out[row])
    return out


def _base(row: int, own: Operands, first: Sum | None) -> Piece | None:
    """What stands in for the row's own attention: that, its queries outside a full edit, or a term of the edit."""
    length = own["q"].length
    if first is None or not first.full:
        return Piece(row, own["q"], own["k"], own["v"], (0, length))
    if first.span != (0, length):
        return _rest(row, own, first.span)
    # The term that changes the least of the call's tensors.
    return min((piece for piece, _ in first.pieces), key=lambda piece: piece.q is not own["q"], default=None)


def _rest(row: int, own: Operands, span: Span) -> Piece:
    """The queries of a row outside a span."""
    start, stop = span
    q, k = own["q"], own["k"]
    outside = CachedOperand([part for part in (q.tensor[:, :start], q.tensor[:, stop:]) if part.shape[1]], None, None)
    if k.mask is not None and k.mask.shape[1] > 1:
        k = CachedOperand(k.tensor, k.image, k.text, torch.cat([k.mask[:, :start], k.mask[:, stop:]], 1))
    return Piece(row, outside, k, own["v"], (0, outside.length))


def _row(own: Operands, base: Piece | None, sums: Sequence[Sum], done: Mapping[int, Tensor]) -> list[Tensor]:
    """Output of one row from the outputs of its pieces, in parts that follow each other along the queries."""
    length = own["q"].length
    parts = [] if base is None else [done[id(base)]]
    for place, total in enumerate(sums):
        new = _summed(total, own, done)
        start, stop = total.span
        if total.full and (start, stop) == (0, length):
            parts = [new]
            continue
        whole = CachedOperand(parts, None, None).tensor
        if place == 0 and total.full:
            parts = [whole[:, :start], new, whole[:, start:]]
        else:
            parts = [whole[:, :start], lerp(whole[:, start:stop], new, total.weight), whole[:, stop:]]
        parts = [part for part in parts if part.shape[1]]
    return parts


def _summed(total: Sum, own: Operands, done: Mapping[int, Tensor]) -> Tensor:
    """sum_b w_b SDPA(q_b, k_b, W_b v_b) in float32 at least; zeros without a term."""
    v = own["v"].tensor
    if not total.pieces:
        return v.new_zeros(own["q"].tensor.shape[0], total.span[1] - total.span[0], v.shape[-1])
    out = _added(total.pieces, done)
    if total.masses:
        mass = _added(total.masses, done)
        out = out.to(torch.promote_types(out.dtype, torch.float32)) / mass.clamp_min(MASS)
    return out.to(v.dtype)


def _added(pieces: Sequence[tuple[Piece, Tensor | None]], done: Mapping[int, Tensor]) -> Tensor:
    work = torch.promote_types(done[id(pieces[0][0])].dtype, torch.float32)
    parts = [done[id(piece)] if where is None else done[id(piece)].to(work) * where.to(work) for piece, where in pieces]
    out = parts[0]
    for part in parts[1:]:
        out = out.to(work) + part.to(work)
    return out
