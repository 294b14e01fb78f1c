"""Inversions as files: tensors and a JSON header in one .safetensors, nothing pickled, written all or not at all.

Metadata of the file (all texts, as the format wants):

    format      "retrace.inversion"
    header      JSON: schema, space, sigmas, index, dtype, half, counts of the lists, seed, method, params,
                fingerprints, meta
    checksum    SHA-256 of the JSON and of every tensor's name, dtype, shape and bytes

Tensors are named x0, x, mate, path.0, path.1, .., residuals.0, .., embeddings.0, ..
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .fingerprint import fingerprint
from .inversion import DTYPES, Inversion, keep

FORMAT = "retrace.inversion"
SCHEMA = 1

LISTS = ("path", "residuals", "embeddings")
DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
HEADER_KEYS = {
    "schema", "space", "sigmas", "index", "dtype", "half", "counts", "seed", "method", "params", "fingerprints", "meta",
}  # fmt: skip


class StorageError(ValueError):
    """A file cannot be written, or holds no inversion that can be read."""


def save(inversion: Inversion, path: str | os.PathLike[str], half: bool = False) -> None:
    """Write an inversion.

    Args:
        inversion: The inversion.
        path: File to write, ending in .safetensors; an older one is replaced only when the new one is complete.
        half: Whether to store everything but x0 in float16, at half or a quarter of the size. Reading widens it again;
            the rounding error (about 5e-4) then bounds what an exact method can reconstruct.

    Raises:
        StorageError: If the name has another ending, the folder is missing, the file cannot be written, or a value
            does not fit float16.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise StorageError(f"A saved inversion must end in .safetensors, got {target.name!r}; rename it.")
    if not target.parent.is_dir():
        raise StorageError(
            f"An inversion must be saved into an existing folder, got {str(target.parent)!r}; make it first."
        )
    tensors = _pack(inversion, half)
    header = json.dumps(_header(inversion, half), sort_keys=True, allow_nan=False)
    metadata = {"format": FORMAT, "header": header, "checksum": fingerprint(header, tensors)}
    # Same folder, hence the same disk: only there is os.replace atomic.
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    try:
        # The writer makes its file private; a saved inversion gets the rights that any new file here would have.
        partial.touch(exist_ok=False)
        rights = partial.stat().st_mode
        save_file(tensors, partial, metadata=metadata)
        partial.chmod(rights)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"The file {target.name!r} must be writable, got: {_one_line(error)}; check the disk and the folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Inversion:
    """Read a saved inversion.

    Args:
        path: A file that save wrote, here or on another machine.

    Returns:
        The inversion, bit for bit what was saved unless it was saved in half precision.

    Raises:
        StorageError: If the file is missing, truncated, no inversion, of a newer schema, or was changed by hand.
    """
    source = Path(path)
    if not source.is_file():
        raise StorageError(f"The saved inversion must exist, got {source.name!r}; check the name and the folder.")
    metadata, tensors = _read(source)
    if metadata.get("format") != FORMAT:
        raise StorageError(
            f"{source.name!r} must be an inversion that Retrace saved, got another .safetensors file; choose one."
        )
    header = _parse(source, metadata.get("header", ""))
    if metadata.get("checksum") != fingerprint(metadata["header"], tensors):
        raise StorageError(
            f"{source.name!r} must be unchanged since it was saved, got another checksum; save it again."
        )
    try:
        return _unpack(header, tensors)
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{source.name!r} must hold a consistent inversion, got: {_one_line(error)}") from error


def _pack(inversion: Inversion, half: bool) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {"x": inversion.x}
    if inversion.mate is not None:
        named["mate"] = inversion.mate
    for name in LISTS:
        named.update((f"{name}.{index}", part) for index, part in enumerate(getattr(inversion, name) or ()))
    if half:
        named = {name: tensor.to(torch.float16) for name, tensor in named.items()}
        for name, tensor in named.items():
            if not bool(torch.isfinite(tensor).all()):
                raise StorageError(f"{name} must stay below 65504 for half precision, got more; save it without half.")
    # x0 stays whole: what lies outside a mask is promised bit for bit. Lists may share memory with x0 and x, which
    # the file format refuses, hence the copies.
    named = {"x0": inversion.x0, **named}
    seen: set[int] = set()
    packed: dict[str, Tensor] = {}
    for name, tensor in named.items():
        place = tensor.untyped_storage().data_ptr()
        packed[name] = keep(tensor) if place in seen or not tensor.is_contiguous() else tensor.detach()
        seen.add(place)
    return packed


def _header(inversion: Inversion, half: bool) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "space": inversion.space,
        "sigmas": list(inversion.sigmas),
        "index": inversion.index,
        "dtype": str(inversion.dtype).removeprefix("torch."),
        "half": half,
        "counts": {name: None if getattr(inversion, name) is None else len(getattr(inversion, name)) for name in LISTS},
        "seed": inversion.seed,
        "method": inversion.method,
        "params": dict(inversion.params),
        "fingerprints": dict(inversion.fingerprints),
        "meta": dict(inversion.meta),
    }


def _read(source: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    # The reader checks every offset against the length of the file before anything is allocated.
    try:
        with safe_open(source, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format") != FORMAT:
                return metadata, {}
            # Copies, because the reader maps the file and the file may be replaced while the inversion lives.
            return metadata, {name: keep(file.get_tensor(name)) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise StorageError(
            f"{source.name!r} must be a complete .safetensors file, got: {_one_line(error)}; save or copy it again."
        ) from error


def _parse(source: Path, text: str) -> dict[str, Any]:
    damaged = StorageError(
        f"The header of {source.name!r} must be what Retrace wrote, got something else; save it again."
    )
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(header, dict) or type(header.get("schema")) is not int:
        raise damaged
    if header["schema"] > SCHEMA:
        raise StorageError(
            f"{source.name!r} must be of schema {SCHEMA} or older, got {header['schema']}; update Retrace to read it."
        )
    if header.keys() != HEADER_KEYS or header["schema"] != SCHEMA:
        raise damaged
    return header


def _unpack(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Inversion:
    counts = header["counts"]
    if not isinstance(counts, dict) or counts.keys() != set(LISTS):
        raise ValueError(f"counts must name {', '.join(LISTS)}, got {counts!r}.")
    if header["dtype"] not in DTYPE_NAMES or type(header["half"]) is not bool:
        raise ValueError(f"dtype must be one of {', '.join(DTYPE_NAMES)}, got {header['dtype']!r}.")
    if not isinstance(header["sigmas"], list) or not all(type(sigma) is float for sigma in header["sigmas"]):
        raise ValueError("sigmas must be a list of numbers.")
    dtype = DTYPE_NAMES[header["dtype"]]
    left = dict(tensors)

    def take(name: str) -> Tensor:
        if name not in left:
            raise ValueError(f"the tensor {name} must be there, got a file without it.")
        tensor = left.pop(name)
        wanted = torch.float16 if header["half"] and name != "x0" else dtype
        if tensor.dtype != wanted and not name.startswith("embeddings."):
            raise ValueError(f"the tensor {name} must be of {wanted}, got {tensor.dtype}.")
        return tensor.to(dtype) if tensor.dtype == torch.float16 else tensor

    def take_all(name: str) -> tuple[Tensor, ...] | None:
        count = counts[name]
        if count is None:
            return None
        if type(count) is not int or not 0 <= count <= len(tensors):
            raise ValueError(f"the count of {name} must be that of its tensors, got {count!r}.")
        return tuple(take(f"{name}.{index}") for index in range(count))

    inversion = Inversion(
        space=header["space"],
        sigmas=tuple(header["sigmas"]),
        index=header["index"],
        x0=take("x0"),
        x=take("x"),
        mate=take("mate") if "mate" in left else None,
        path=take_all("path"),
        residuals=take_all("residuals"),
        embeddings=take_all("embeddings"),
        seed=header["seed"],
        method=header["method"],
        params=header["params"],
        fingerprints=header["fingerprints"],
        meta=header["meta"],
    )
    if left:
        raise ValueError(f"no tensors but those of the header, got {', '.join(sorted(left))}.")
    return inversion


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
