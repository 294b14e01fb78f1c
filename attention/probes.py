"""Readings of attention from image tokens to text tokens; the only place where probabilities are formed."""

from __future__ import annotations

import torch
from torch import Tensor

from .cached_operand import CachedOperand
from .operands import additive
from .rules import Probe
from .sites import Site

# Scores in memory at a time: 64 MiB of float32.
CHUNK = 2**24


def masses(probe: Probe, site: Site, q: CachedOperand, k: CachedOperand, scale: float | None = None) -> Tensor:
    """Mean over heads of softmax(scale * q_image k^T + mask) at some text tokens.

    With `read="text"` the softmax runs over the text keys alone: the rows of a joint map renormalised over text, for
    the price of (image tokens x text tokens). With "exact" it runs over all keys.

    Args:
        probe: What to read.
        site: Where.
        q: Queries of a row, (heads, queries, d).
        k: Keys of a row, (key heads, keys, d).
        scale: Of the scores, None for 1 / sqrt(d).

    Returns:
        (tokens, frames, h, w) float32.

    Raises:
        ValueError: If a token lies outside the text.
    """
    start, stop = site.text or (0, 0)
    if probe.length is not None and site.kind == "cross":
        # The host repeats short texts to a common length: equal keys, whose masses add up to that of one.
        stop = min(stop, start + probe.length)
    if probe.tokens and max(probe.tokens) >= stop - start:
        raise ValueError(
            f"tokens of probe {probe.name} must lie within the {stop - start} text tokens of {site.label}, got "
            f"{max(probe.tokens)}; count them with the CLIP of this run."
        )
    whole = probe.read == "exact" and site.kind == "joint"
    keys, columns, first = (k, k.mask, start) if whole else (k.part((start, stop)), None, 0)
    columns = keys.mask if not whole else columns
    queries = q.tensor[:, site.image[0] : site.image[1]].to(torch.float32)
    shared = queries.shape[0] // keys.tensor.shape[0]
    turned = keys.tensor.to(torch.float32).repeat_interleave(shared, 0).transpose(-1, -2)
    factor = queries.shape[-1] ** -0.5 if scale is None else scale
    picked = torch.tensor([first + token for token in probe.tokens], dtype=torch.long, device=queries.device)
    side = max(1, CHUNK // (queries.shape[0] * keys.length))
    rows = []
    for begin in range(0, queries.shape[1], side):
        scores = queries[:, begin : begin + side] @ turned * factor
        if columns is not None:
            bias = additive(columns, torch.float32)
            if bias.shape[1] > 1:
                place = site.image[0] + begin
                bias = bias[:, place : place + scores.shape[1]]
            scores = scores + bias
        rows.append(scores.softmax(-1)[..., picked].mean(0))
    return torch.cat(rows).T.reshape(len(probe.tokens), *site.grid)
