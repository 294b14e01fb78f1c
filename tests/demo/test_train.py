"""The training recipe: it never sees what is held out, and goes on where it stopped."""

import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from retrace.demo import models, train


@pytest.fixture
def weights(monkeypatch, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(models.WEIGHTS, folder)
    monkeypatch.setattr(models, "WEIGHTS", folder)
    monkeypatch.setattr(train, "PICTURES", 64)
    return folder


def test_held_out_scenes_are_never_drawn():
    assert not any(scene.held_out for scene in train._sources(0, 5000))


def test_a_run_goes_on_where_it_stopped(weights, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    train.train_flow(parts, 2, 4, 0)
    with safe_open(parts / "flow.safetensors", "pt") as file:
        assert file.metadata() == {"step": "2"}
    reached = (parts / "flow.safetensors").read_bytes()
    # Nothing is left to do, so not even another seed changes anything.
    train.train_flow(parts, 2, 4, 1)
    assert (parts / "flow.safetensors").read_bytes() == reached
    before = load_file(weights / "transformer" / "diffusion_pytorch_model.safetensors")
    train.train_flow(parts, 4, 4, 0)
    after = load_file(weights / "transformer" / "diffusion_pytorch_model.safetensors")
    with safe_open(parts / "flow.safetensors", "pt") as file:
        assert file.metadata() == {"step": "4"}
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    assert any(not torch.equal(before[name], after[name]) for name in after)
    steps = [line.split(",")[0] for line in (parts / "flow.csv").read_text().splitlines()]
    assert steps == ["step", "2", "4"]
