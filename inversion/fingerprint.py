"""Stable hashes of what a replay must find unchanged: the same on every machine and in every process."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint(*parts: Any) -> str:
    """SHA-256 of tensors and plain values, in hex.

    Args:
        parts: Tensors (dtype, shape and bytes count, the device does not), texts, bytes, numbers, booleans, None,
            and sequences or mappings of these; the order within a mapping does not matter.

    Raises:
        TypeError: If a part is of another type.
    """
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy where it lies on the CPU in that order."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _feed(digest: hashlib._Hash, part: Any) -> None:
    # Every value goes in as kind, length, bytes, so that no two different inputs make one stream.
    if isinstance(part, Tensor):
        _chunk(digest, b"tensor", f"{part.dtype}{tuple(part.shape)}".encode())
        _chunk(digest, b"data", tensor_bytes(part))
    elif part is None:
        _chunk(digest, b"none", b"")
    elif isinstance(part, bool):
        _chunk(digest, b"bool", b"1" if part else b"0")
    elif isinstance(part, int):
        _chunk(digest, b"int", str(part).encode())
    elif isinstance(part, float):
        _chunk(digest, b"float", struct.pack("<d", part))
    elif isinstance(part, str):
        _chunk(digest, b"text", part.encode())
    elif isinstance(part, (bytes, bytearray)):
        _chunk(digest, b"bytes", bytes(part))
    elif isinstance(part, Mapping):
        _chunk(digest, b"mapping", str(len(part)).encode())
        for key in sorted(part, key=str):
            _feed(digest, key)
            _feed(digest, part[key])
    elif isinstance(part, (list, tuple)):
        _chunk(digest, b"sequence", str(len(part)).encode())
        for item in part:
            _feed(digest, item)
    else:
        raise TypeError(
            f"A fingerprint must be made of tensors and plain values, got {type(part).__name__}; convert it to text."
        )


def _chunk(digest: hashlib._Hash, kind: bytes, data: bytes | memoryview) -> None:
    digest.update(struct.pack("<HQ", len(kind), len(data)))
    digest.update(kind)
    digest.update(data)
