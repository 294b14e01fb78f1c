"""W of a term applied to V: (P W) V = P (W V)."""

from __future__ import annotations

import torch
from torch import Tensor

from .cached_operand import CachedOperand, empty_like
from .rules import ValueMap
from .sites import Site, Span
from .timing import Step


def mapped(
    values: ValueMap, site: Site, step: Step, k: CachedOperand, v: CachedOperand
) -> tuple[CachedOperand, CachedOperand] | None:
    """Keys and mapped values of a term, None if it adds nothing.

    The text part becomes W v, computed in float32, in the order of k's tokens; all other tokens are scaled by `rest`.
    Where the host repeated the text tokens of a cross site to a common length, both are cut back to the lengths of W:
    repeated keys change nothing, but their columns would.

    Args:
        values: W.
        site: Where it is asked for.
        step: When it is asked for.
        k: Keys of the term.
        v: Values of the term.

    Raises:
        ValueError: If W does not fit the text tokens.
    """
    weights = values.at(site, step)
    if k.text is None or v.text is None:
        raise ValueError(f"A value map must act on text keys, got none at {site.label}; use cross or joint sites.")
    others = k.length - (k.text[1] - k.text[0])
    if weights is not None and not bool(weights.any()) and (values.rest == 0.0 or not others):
        return None
    if weights is None and values.rest == 1.0:
        return k, v
    rows, columns = _lengths(weights, k.text, v.text)
    if site.kind == "cross":
        k, v = _cut(k, rows, site, "keys"), _cut(v, columns, site, "values")
    for operand, length, what in ((k, rows, "keys"), (v, columns, "values")):
        assert operand.text is not None
        have = operand.text[1] - operand.text[0]
        if have != length:
            raise ValueError(
                f"The token map must fit the text of {site.label}, got {have} {what} for {length} tokens; make it from "
                "the prompts and the CLIP of this run."
            )
    return k, CachedOperand(_laid_out(values.rest, weights, k, v), k.image, k.text)


def _lengths(weights: Tensor | None, keys: Span, text: Span) -> tuple[int, int]:
    if weights is None:
        return keys[1] - keys[0], text[1] - text[0]
    return weights.shape[0], weights.shape[-1]


def _cut(operand: CachedOperand, length: int, site: Site, what: str) -> CachedOperand:
    assert operand.text is not None
    have = operand.text[1] - operand.text[0]
    if have == length:
        return operand
    if have % length:
        raise ValueError(
            f"The token map must fit the text of {site.label}, got {have} {what} for {length} tokens; make it from the "
            "prompts and the CLIP of this run."
        )
    mask = None if operand.mask is None else operand.mask[..., :length]
    return CachedOperand(operand.tensor[:, :length], operand.image, (0, length), mask)


def _laid_out(rest: float, weights: Tensor | None, k: CachedOperand, v: CachedOperand) -> Tensor:
    """W v on the text tokens and `rest` v on all others, in the order of k's tokens."""
    assert k.text is not None and v.text is not None
    (start, stop), (first, last) = k.text, v.text
    text = v.tensor[:, first:last]
    if weights is not None:
        wide = text.to(torch.promote_types(v.tensor.dtype, torch.float32))
        factor = weights.to(wide)
        text = factor.unsqueeze(-1) * wide if factor.ndim == 1 else factor @ wide
    out = empty_like(v.tensor, k.length)
    out[:, start:stop] = text
    if rest == 0.0:
        out[:, :start], out[:, stop:] = 0.0, 0.0
        return out
    before, after = v.tensor[:, :first], v.tensor[:, last:]
    if (before.shape[1], after.shape[1]) != (start, k.length - stop):
        others = _others(k, v, torch.cat([before, after], 1))
        before, after = others[:, :start], others[:, start:]
    out[:, :start], out[:, stop:] = (before, after) if rest == 1.0 else (before * rest, after * rest)
    return out


def _others(k: CachedOperand, v: CachedOperand, others: Tensor) -> Tensor:
    """What is no text of v, in the numbers of k.

    Learnt tokens fill short texts up to a multiple in some networks: where one text has fewer of them, the last one
    stands for those that are missing.

    Raises:
        ValueError: If the image tokens are not equally many.
    """
    (wanted, here, size), (_, there, have) = _counts(k), _counts(v)
    if others.shape[1] == wanted:
        return others
    if not size or size != have:
        raise ValueError(
            f"image tokens of both branches must be equally many, got {wanted} and {others.shape[1]}; use pictures of "
            "one size."
        )
    head, image, tail = others[:, :there], others[:, there : there + size], others[:, there + size :]
    return torch.cat([_of_length(head, here), image, _of_length(tail, wanted - here - size)], 1)


def _counts(operand: CachedOperand) -> tuple[int, int, int]:
    """Tokens that are no text, those of them before the image, and the image's."""
    start, stop = operand.text or (0, 0)
    first, last = operand.image or (0, 0)
    return operand.length - (stop - start), first - (stop - start if start < first else 0), last - first


def _of_length(tokens: Tensor, length: int) -> Tensor:
    missing = length - tokens.shape[1]
    if missing <= 0:
        return tokens[:, :length]
    if not tokens.shape[1]:
        return tokens.new_zeros(tokens.shape[0], length, tokens.shape[-1])
    return torch.cat([tokens, tokens[:, -1:].expand(-1, missing, -1)], 1)
