"""Gradients through networks that write into what autograd has saved, such as residuals that are added in place.

What is saved for a backward pass is kept by reference. Before anything writes to memory that such a tensor lies in, the
tensor is replaced by a copy.

`torch.autograd.graph.allow_mutation_on_saved_tensors` is meant for this. It knows a tensor by its Python id, address
and version, of which the first two are given out again once a tensor has been copied and freed: now and then it takes
a tensor for one from before, and the gradient is wrong by a percent without a word. It also misses what is written
through a view that begins elsewhere. Both were seen in torch 2.14.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _Saved:
    """A tensor as it was when autograd saved it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _CopyBeforeWrite(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies what is saved in memory that an operation is about to write to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # By the address of the memory. Nothing else can lie at that of a tensor which is still held as it was saved.
        self._saved: dict[int, weakref.WeakSet[_Saved]] = {}

    def pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        self._saved.setdefault(_address(tensor), weakref.WeakSet()).add(saved)
        return saved

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for position, name in _written(func):
            value = args[position] if position < len(args) else kwargs.get(name)
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, Tensor):
                    self._copy(_address(tensor))
        return func(*args, **kwargs)

    def _copy(self, address: int) -> None:
        # What has been copied lies elsewhere, and need not be found again: nothing else can write to the copy.
        for saved in self._saved.pop(address, ()):
            saved.tensor = saved.tensor.clone()


@contextlib.contextmanager
def mutation_of_saved() -> Iterator[None]:
    """Let what is saved for a backward pass be written to; forward and backward belong within the same context."""
    mode = _CopyBeforeWrite()

    def unpack(saved: _Saved) -> Tensor:
        return saved.tensor

    hooks: Callable[..., Any] = torch.autograd.graph.saved_tensors_hooks
    with hooks(mode.pack, unpack), mode:
        yield


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@functools.cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    arguments = func._schema.arguments
    return tuple((i, each.name) for i, each in enumerate(arguments) if each.alias_info and each.alias_info.is_write)
