"""q, k or v of one row, and where its tokens are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .sites import Span


class CachedOperand:
    """An operand of one row.

    Args:
        tensor: (heads, tokens, d), or several that follow each other along the tokens: they are put together when
            somebody asks for the tensor, and not at all where they are copied to another place anyway.
        image: Start and stop of the image tokens, None where there are none.
        text: Start and stop of the text tokens, None where there are none.
        mask: Of keys: columns (1 | heads, 1 | queries, tokens) of the host's mask, None without one.

    Attributes:
        parts: The tensors, in order.
    """

    __slots__ = ("image", "mask", "parts", "text")

    def __init__(
        self, tensor: Tensor | Sequence[Tensor], image: Span | None, text: Span | None, mask: Tensor | None = None
    ):
        self.parts: tuple[Tensor, ...] = (tensor,) if isinstance(tensor, Tensor) else tuple(tensor)
        self.image = image
        self.text = text
        self.mask = mask

    @property
    def tensor(self) -> Tensor:
        """(heads, tokens, d)."""
        if len(self.parts) > 1:
            self.parts = (_joined(self.parts),)
        return self.parts[0]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return sum(part.shape[1] for part in self.parts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the tensor, which need not be there for it."""
        heads, _, d = self.parts[0].shape
        return heads, self.length, d

    def part(self, span: Span) -> CachedOperand:
        """Some of the tokens as an operand of its own, taken as image tokens."""
        start, stop = span
        columns = None if self.mask is None else self.mask[..., start:stop]
        return CachedOperand(self.tensor[:, start:stop], (0, stop - start), None, columns)

    def holding(self, tensor: Tensor) -> CachedOperand:
        """The same place and mask with other numbers."""
        return CachedOperand(tensor, self.image, self.text, self.mask)

    def write(self, to: Tensor) -> None:
        """Copy it to (heads, tokens, d) somewhere else."""
        start = 0
        for part in self.parts:
            to[:, start : start + part.shape[1]] = part
            start += part.shape[1]


def empty_like(tensor: Tensor, length: int) -> Tensor:
    """Room for another number of tokens, laid out as (heads, tokens, d) of a call lies."""
    heads, _, d = tensor.shape
    if tensor.stride(0) < tensor.stride(1):
        return tensor.new_empty(length, heads, d).transpose(0, 1)
    return tensor.new_empty(heads, length, d)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if parts[0].stride(0) < parts[0].stride(1):
        return torch.cat([part.transpose(0, 1) for part in parts]).transpose(0, 1)
    return torch.cat(list(parts), 1)
