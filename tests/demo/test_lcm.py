"""The LCM-LoRA: its file, how it is added, what is distilled, and a run that goes on where it stopped."""

import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")

from retrace.demo import lcm, measure, models, train, train_lcm, world

BETTER = 0.9


@pytest.fixture
def network():
    return models.load("eps").denoiser


def test_the_file_is_small_and_has_a_change_of_each_layer(network):
    assert models.LCM_LORA.stat().st_size <= 1_000_000
    tensors = load_file(models.LCM_LORA)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    wanted = lcm.layers(network)
    assert len(wanted) == 115 and len(tensors) == 3 * len(wanted)
    for name, weight in wanted.items():
        up, down = (tensors[f"{lcm.key(name)}.lora_{part}.weight"] for part in ("up", "down"))
        assert down.shape == (lcm.RANK, *weight.shape[1:]) and up.shape[:2] == (weight.shape[0], lcm.RANK)
        assert bool(up.isfinite().all()) and bool(up.any()), f"{name} is not trained"
        assert float(tensors[f"{lcm.key(name)}.alpha"]) == lcm.RANK


def test_it_is_added_as_loaders_of_loras_do(network, tmp_path):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lcm.apply(network)
    tensors = load_file(models.LCM_LORA)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.weight" for name in lcm.layers(network)}
    name = "down_blocks.0.resnets.0.conv1"
    up, down = (tensors[f"{lcm.key(name)}.lora_{part}.weight"].float() for part in ("up", "down"))
    plain, both = before[f"{name}.weight"], torch.einsum("or,rihw->oihw", up[..., 0, 0], down)
    assert torch.allclose(network.state_dict()[f"{name}.weight"], plain + both, atol=1e-6)
    # A smaller alpha weakens it.
    weak = {key: value / 2 if key.endswith("alpha") else value for key, value in tensors.items()}
    save_file(weak, tmp_path / "weak.safetensors")
    network.load_state_dict(before)
    lcm.apply(network, tmp_path / "weak.safetensors")
    assert torch.allclose(network.state_dict()[f"{name}.weight"], plain + 0.5 * both, atol=1e-6)


@pytest.mark.parametrize("change", ["missing", "too many"])
def test_a_foreign_file_is_refused(network, tmp_path, change):
    tensors = load_file(models.LCM_LORA)
    if change == "missing":
        tensors.popitem()
    else:
        tensors["lora_unet_other.alpha"] = torch.ones(1)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=re.escape("lora.safetensors must")):
        lcm.apply(network, tmp_path / "lora.safetensors")


def test_the_boundary_is_the_identity_at_the_end_only():
    skip, out = train_lcm.boundary(torch.tensor([0, 19, 999]))
    assert skip.flatten()[0] == 1.0 and out.flatten()[0] == 0.0
    assert bool((skip.flatten()[1:] < 1e-5).all()) and torch.allclose(out.flatten()[1:], torch.ones(2))


def test_predictions_agree_better_along_the_teachers_path():
    # What is distilled, on pictures that were never trained on: a step of 100 timesteps changes the guess less.
    scenes = measure.unseen(16, seed=4)
    captions = [scene.caption for scene in scenes]
    teacher, student = models.load("eps"), models.load("eps")
    lcm.apply(student.denoiser)
    pixels = torch.from_numpy(world.render(scenes, 4)[0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    share = lcm.kept()
    sigmas = ((1 - share) / share).sqrt().tolist()
    gaps = {False: [], True: []}
    with torch.inference_mode():
        x0 = teacher.vae.encode(pixels).latent_dist.mean * teacher.vae.config.scaling_factor
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        guided = measure.denoiser(teacher, captions, train_lcm.GUIDANCE)
        alone = {True: measure.denoiser(student, captions, 1.0), False: measure.denoiser(teacher, captions, 1.0)}
        for high in (299, 499, 699, 999):
            low = high - 100
            x = x0 + sigmas[high] * noise
            y = x + (sigmas[low] - sigmas[high]) / sigmas[high] * (x - guided(x, sigmas[high], float(high)))
            for with_lora, ask in alone.items():
                gap = ask(x, sigmas[high], float(high)) - ask(y, sigmas[low], float(low))
                gaps[with_lora].append(float(gap.abs().mean()))
    assert sum(gaps[True]) < BETTER * sum(gaps[False]), gaps


def test_a_run_starts_at_the_model_and_goes_on_where_it_stopped(monkeypatch, tmp_path, network):
    weights = tmp_path / "weights"
    shutil.copytree(models.WEIGHTS, weights)
    monkeypatch.setattr(models, "WEIGHTS", weights)
    monkeypatch.setattr(train, "PICTURES", 16)
    factors = train_lcm.Factors(lcm.layers(network))
    for name, weight in factors.added(lcm.layers(network)).items():
        assert torch.equal(weight, network.state_dict()[name])
    parts, file = tmp_path / "parts", tmp_path / "lora.safetensors"
    parts.mkdir()
    train_lcm.train_lcm(parts, 1, 2, 0, file)
    first = load_file(file)
    train_lcm.train_lcm(parts, 2, 2, 0, file)
    second = load_file(file)
    with safe_open(parts / "lcm.safetensors", "pt") as opened:
        assert opened.metadata() == {"step": "2"}
    assert first.keys() == second.keys() == load_file(models.LCM_LORA).keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert [line.split(",")[0] for line in (parts / "lcm.csv").read_text().splitlines()] == ["step", "1", "2"]
