"""W of a term applied to V: (P W) V = P (W V)."""

from __future__ import annotations

import torch
from torch import Tensor

from .operands import Kept
from .rules import ValueMap
from .sites import Site, Span
from .timing import Step


def mapped(values: ValueMap, site: Site, step: Step, k: Kept, v: Kept) -> tuple[Kept, Kept] | None:
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
    for kept, length, what in ((k, rows, "keys"), (v, columns, "values")):
        assert kept.text is not None
        have = kept.text[1] - kept.text[0]
        if have != length:
            raise ValueError(
                f"The token map must fit the text of {site.label}, got {have} {what} for {length} tokens; make it from "
                "the prompts and the CLIP of this run."
            )
    return k, Kept(_laid_out(values.rest, weights, k, v), k.image, k.text)


def _lengths(weights: Tensor | None, keys: Span, text: Span) -> tuple[int, int]:
    if weights is None:
        return keys[1] - keys[0], text[1] - text[0]
    return weights.shape[0], weights.shape[-1]


def _cut(kept: Kept, length: int, site: Site, what: str) -> Kept:
    assert kept.text is not None
    have = kept.text[1] - kept.text[0]
    if have == length:
        return kept
    if have % length:
        raise ValueError(
            f"The token map must fit the text of {site.label}, got {have} {what} for {length} tokens; make it from the "
            "prompts and the CLIP of this run."
        )
    mask = None if kept.mask is None else kept.mask[..., :length]
    return Kept(kept.tensor[:, :length], kept.image, (0, length), mask)


def _laid_out(rest: float, weights: Tensor | None, k: Kept, v: Kept) -> Tensor:
    assert k.text is not None and v.text is not None
    work = torch.promote_types(v.tensor.dtype, torch.float32)
    text = v.tensor[:, v.text[0] : v.text[1]]
    if weights is not None:
        factor = weights.to(device=text.device, dtype=work)
        wide = text.to(work)
        text = (factor.unsqueeze(-1) * wide if factor.ndim == 1 else factor @ wide).to(v.tensor.dtype)
    others = torch.cat([v.tensor[:, : v.text[0]], v.tensor[:, v.text[1] :]], 1)
    if others.shape[1] != k.length - (k.text[1] - k.text[0]):
        raise ValueError(
            f"image tokens of both branches must be equally many, got {k.length - k.text[1] + k.text[0]} and "
            f"{others.shape[1]}; use pictures of one size."
        )
    if rest != 1.0:
        others = others * rest
    return torch.cat([others[:, : k.text[0]], text, others[:, k.text[0] :]], 1)
