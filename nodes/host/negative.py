"""The unconditional embedding of a running guider: read it, exchange it for one call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_NEGATIVE = "negative"
# The host's name for the text that a network attends to, after the model's own preprocessing.
_TEXT = "c_crossattn"


def unconditional_embedding(guider: Any) -> torch.Tensor:
    """Return the embedding of a guider's negative as the network gets it, shape (rows, tokens, width).

    Args:
        guider: A guider in the middle of a run.

    Raises:
        ValueError: If there is no negative, or it is more than one prompt for the whole picture.
    """
    embedding: torch.Tensor = _text(_single(guider.conds.get(_NEGATIVE))).cond
    return embedding


@contextlib.contextmanager
def exchanged(guider: Any, embedding: torch.Tensor) -> Iterator[None]:
    """Let a guider's negative have another embedding; size, pooled text and everything else of it stay.

    Args:
        guider: A guider in the middle of a run.
        embedding: Shape (1 or batch, tokens, width).

    Raises:
        ValueError: As unconditional_embedding.
    """
    before = guider.conds.get(_NEGATIVE)
    entry = _single(before)
    old = _text(entry)
    # The network casts it to its own dtype; a fit moves it by less than float16 tells apart.
    now = old._copy_with(embedding.to(old.cond.device, torch.float32))
    guider.conds[_NEGATIVE] = [{**entry, "model_conds": {**entry["model_conds"], _TEXT: now}}]
    try:
        yield
    finally:
        guider.conds[_NEGATIVE] = before


def _single(conds: Any) -> dict[str, Any]:
    if not conds:
        raise ValueError(
            "negative must be connected to use fitted embeddings, got none; "
            "connect the negative that they were fitted with, or set cfg to 1."
        )
    entry = conds[0]
    if len(conds) > 1 or any(entry.get(part) is not None for part in ("hooks", "area", "mask")):
        raise ValueError(
            f"negative must be one prompt for the whole picture, without area, mask and hooks, got {len(conds)} "
            "of another kind; connect a single CLIPTextEncode."
        )
    return dict(entry)


def _text(entry: dict[str, Any]) -> Any:
    text = entry.get("model_conds", {}).get(_TEXT)
    if not isinstance(getattr(text, "cond", None), torch.Tensor):
        raise ValueError(
            "model must attend to a text embedding of its negative, got a model without one; "
            "use a method that keeps no embeddings."
        )
    return text
