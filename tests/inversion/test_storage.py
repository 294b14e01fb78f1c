"""A record survives its file, and a file that is no record is named as what it is."""

import json
import os
import pickle
import struct
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from retrace.inversion import Inversion, StorageError, fingerprint, load, save, storage

SHAPE = (2, 4, 3, 5)


def draw(seed, dtype, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def full_record(dtype=torch.float64):
    """A record with every part filled, the path sharing memory with both ends."""
    x0, x = draw(0, dtype), draw(1, dtype)
    x0[0, 0, 0, :3] = torch.tensor([-0.0, 1e-42, 1.0 + 2e-16], dtype=dtype)
    return Inversion(
        space="flow",
        sigmas=(0.0, 0.1, 1 / 3, 0.9, 1.0),
        index=3,
        x0=x0,
        x=x,
        mate=draw(2, dtype),
        path=(x0, draw(3, dtype), draw(4, dtype), x),
        residuals=tuple(draw(seed, dtype) for seed in (5, 6, 7)),
        embeddings=tuple(draw(seed, torch.float32, (1, 7, 16)) for seed in (8, 9)),
        seed=2**63,
        method="edict",
        params={"p": 0.93, "rounds": 2, "leap": True, "kind": "soft"},
        fingerprints={"model": "ab" * 32, "source": "cd" * 32},
        meta={"host": "0.33.0", "pack": "0.1.0", "seconds": 1.5, "evaluations": 12, "note": "naïve ünïcode"},
    )


def bare_record(dtype=torch.float32):
    return Inversion("ve", (0.0, 0.5, 14.6), 2, draw(0, dtype), draw(1, dtype), method="euler")


@pytest.fixture
def file(tmp_path):
    """A saved full record."""
    save(full_record(), tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


def states(record):
    lists = [part for name in ("path", "residuals") for part in getattr(record, name) or ()]
    return [record.x, *([] if record.mate is None else [record.mate]), *lists]


def plain(record):
    """Everything but the tensors."""
    names = ("space", "sigmas", "index", "seed", "method", "params", "fingerprints", "meta", "dtype")
    return {name: getattr(record, name) for name in names}


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and fingerprint(a) == fingerprint(b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [full_record, bare_record])
def test_bit_for_bit(make, dtype, tmp_path):
    record, file = make(dtype), tmp_path / "cat.safetensors"
    ours = [record.x0, *states(record), *(record.embeddings or ())]
    before = [fingerprint(tensor) for tensor in ours]
    save(record, file, half=True)
    save(record, file)
    again = load(file)
    assert before == [fingerprint(tensor) for tensor in ours]
    assert plain(again) == plain(record)
    assert all(type(again.params[key]) is type(value) for key, value in record.params.items())
    for name in ("mate", "path", "residuals", "embeddings"):
        assert (getattr(again, name) is None) == (getattr(record, name) is None)
    theirs = [again.x0, *states(again), *(again.embeddings or ())]
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))
    assert os.listdir(tmp_path) == ["cat.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half(dtype, tmp_path):
    record = full_record(dtype)
    save(record, tmp_path / "whole.safetensors")
    save(record, tmp_path / "half.safetensors", half=True)
    again = load(tmp_path / "half.safetensors")
    assert same_bits(again.x0, record.x0) and plain(again) == plain(record)
    for a, b in zip(states(again), states(record), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b.half().to(dtype), rtol=0, atol=0)
    assert not same_bits(again.x, record.x)
    whole, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < (0.75 if dtype == torch.float32 else 0.55) * whole


def test_half_refuses_what_it_cannot_hold(tmp_path):
    record = replace(bare_record(), x=draw(1, torch.float32) * 1e6)
    with pytest.raises(StorageError, match="x must stay below 65504 for half precision, got more; save it without"):
        save(record, tmp_path / "big.safetensors", half=True)
    assert os.listdir(tmp_path) == []


def test_the_file_is_what_it_says(tmp_path, file):
    with safe_open(file, framework="pt") as opened:
        metadata, names = opened.metadata(), set(opened.keys())
    header = json.loads(metadata["header"])
    assert metadata["format"] == "retrace.inversion" and header["schema"] == 1
    assert header["sigmas"] == [0.0, 0.1, 1 / 3, 0.9, 1.0] and header["method"] == "edict" and header["index"] == 3
    assert {"x0", "x", "mate", "path.0", "path.3", "residuals.2", "embeddings.1"} <= names and len(names) == 12
    (tmp_path / "probe").touch()
    assert file.stat().st_mode == (tmp_path / "probe").stat().st_mode


def test_the_loaded_record_does_not_lean_on_its_file(file):
    again = load(file)
    before = fingerprint(again.x)
    # In place, so that a record which only maps its file would see it.
    with open(file, "r+b") as opened:
        opened.write(b"\0" * file.stat().st_size)
    assert fingerprint(again.x) == before


def refused(file):
    with pytest.raises(StorageError) as caught:
        load(file)
    text = str(caught.value)
    assert "\n" not in text and str(file.parent) not in text
    return text


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_truncated(share, file):
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert "'cat.safetensors' must be a complete .safetensors file, got" in refused(file)


class Explosive:
    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_foreign_files(tmp_path):
    file = tmp_path / "foreign.safetensors"
    assert "must exist, got 'foreign.safetensors'; check the name" in refused(file)
    save_file({"x0": torch.zeros(2)}, file)
    assert "must be an inversion that Retrace saved, got another .safetensors file" in refused(file)
    save_file({"x0": torch.zeros(2)}, file, metadata={"format": "pt"})
    assert "must be an inversion that Retrace saved" in refused(file)
    bomb = Explosive()
    bomb.mark = tmp_path / "executed"
    torch.save({"x0": bomb}, file)
    assert "must be a complete .safetensors file" in refused(file)
    file.write_bytes(pickle.dumps(bomb))
    assert "must be a complete .safetensors file" in refused(file)
    assert not bomb.mark.exists()
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    assert "must exist" in refused(folder)


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<Q", 2**63) + b"{}",  # a header longer than any memory
        struct.pack("<Q", 80) + b'{"x0":{"dtype":"F64","shape":[1099511627776,4],"data_offsets":[0,35184372088832]}}',
        struct.pack("<Q", 8) + b"not json",
    ],
)
def test_sizes_in_a_header_are_not_believed(head, tmp_path):
    file = tmp_path / "liar.safetensors"
    file.write_bytes(head + b"\0" * 64)
    assert "must be a complete .safetensors file, got" in refused(file)


# Those of full_record.
COUNTS = {"path": 4, "residuals": 3, "embeddings": 2}


def rewrite(file, change, sign=False):
    """The file with entries of its header, or tensors, changed as a person with the library at hand would."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}
    if callable(change):
        change(tensors)
    elif isinstance(change, str):
        metadata["header"] = change
    else:
        metadata["header"] = json.dumps({**json.loads(metadata["header"]), **change}, sort_keys=True)
    if sign:
        metadata["checksum"] = fingerprint(metadata["header"], tensors)
    save_file(tensors, file, metadata=metadata)


@pytest.mark.parametrize(
    "change",
    [
        {"index": 2},
        {"sigmas": [0.0, 0.2, 1 / 3, 0.9, 1.0]},
        {"params": {"p": 0.94}},
        {"method": "euler"},
        lambda tensors: tensors["x"][0, 0, 0, 0].add_(1e-12),
        lambda tensors: tensors.update(x=tensors["mate"], mate=tensors["x"].clone()),
        lambda tensors: tensors.update(x=tensors["x"].reshape(2, 4, 5, 3)),
        lambda tensors: tensors.pop("mate"),
    ],
)
def test_changed_by_hand(change, file):
    rewrite(file, {})
    load(file)  # the rewriting alone does no harm
    rewrite(file, change)
    sentence = "'cat.safetensors' must be unchanged since it was saved, got another checksum; save it again."
    assert refused(file) == sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"index": 9}, "index must lie between 1 and the number of steps 4, got 9"),
        ({"index": "3"}, "index must be a whole number, got '3'"),
        ({"sigmas": "0123"}, "sigmas must be a list of numbers"),
        ({"sigmas": [float("nan")] * 5}, "sigmas must be finite"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64"),
        ({"dtype": "float32"}, "the tensor x0 must be of torch.float32"),
        ({"half": True}, "the tensor x must be of torch.float16"),
        ({"counts": {"path": 10**12}}, "counts must name path, residuals, embeddings"),
        ({"counts": COUNTS | {"path": 10**12}}, "the count of path must be that of its tensors"),
        ({"counts": COUNTS | {"path": None}}, "no tensors but those of the header, got path.0"),
        ({"counts": COUNTS | {"path": 5}}, "the tensor path.4 must be there"),
        ({"params": [1]}, "params must map names to values, got list"),
        ({"meta": {"a": [1]}}, "meta must map names to plain texts"),
        (lambda t: t.pop("x0"), "the tensor x0 must be there, got a file without it"),
        (lambda t: t.update(extra=t["x"].clone()), "no tensors but those of the header, got extra"),
        (lambda t: t["x"].mul_(float("nan")), "x must be finite, got inf or nan"),
        (lambda t: t.update(x=t["x"].long()), "the tensor x must be of torch.float64"),
    ],
)
def test_a_signed_file_must_still_be_a_record(change, sentence, file):
    rewrite(file, change, sign=True)
    text = refused(file)
    assert text.startswith("'cat.safetensors' must hold a consistent inversion, got: ") and sentence in text


@pytest.mark.parametrize(
    "header",
    ["", "[]", "{", "[" * 100_000, '{"schema": true}', '{"schema": "1"}', '{"schema": 1}', '{"schema": 0}', "9" * 9000],
)
def test_headers_that_are_none(header, file):
    rewrite(file, header)
    assert refused(file).startswith("The header of 'cat.safetensors' must be what Retrace wrote")


def test_newer_schema(file):
    rewrite(file, {"schema": 2, "invention": 1})
    assert refused(file) == "'cat.safetensors' must be of schema 1 or older, got 2; update Retrace to read it."


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "cat.safetensors"
    save(bare_record(), file)
    before = file.read_bytes()

    def half_way(tensors, path, metadata):
        with open(path, "wb") as opened:
            opened.write(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "save_file", half_way)
        with pytest.raises(StorageError, match="'cat.safetensors' must be writable, got: no space left on device"):
            save(full_record(), file)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["cat.safetensors"]

    def interrupted(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(full_record(), file)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["cat.safetensors"]
    save(full_record(), file)
    assert load(file).method == "edict"


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(StorageError, match="A saved inversion must end in .safetensors, got 'cat.pt'; rename it"):
        save(bare_record(), tmp_path / "cat.pt")
    with pytest.raises(StorageError, match="An inversion must be saved into an existing folder, got .*nowhere.*; make"):
        save(bare_record(), tmp_path / "nowhere" / "cat.safetensors")
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(StorageError, match="The file 'taken.safetensors' must be writable"):
        save(bare_record(), tmp_path / "taken.safetensors")
    assert os.listdir(tmp_path) == ["taken.safetensors"]
