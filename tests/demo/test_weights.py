"""The trained files: what models.py says, fp16, and small."""

import json

import pytest
import torch
from safetensors import safe_open

from retrace.demo import measure, models, preview, world

FOLDERS = {"vae": "vae", "text_encoder": "text_encoder", "eps": "unet", "flow": "transformer"}
CONFIGS = {
    # The scale is measured after training.
    "vae": {name: value for name, value in models.VAE_CONFIG.items() if name != "scaling_factor"},
    "text_encoder": models.TEXT_CONFIG,
    "eps": models.UNET_CONFIG,
    "flow": models.MMDIT_CONFIG,
}


def config(part):
    """config.json of a part."""
    return json.loads((models.WEIGHTS / FOLDERS[part] / "config.json").read_text(encoding="utf-8"))


def stored(part):
    """Names, shapes and types of the tensors of a part."""
    (path,) = (models.WEIGHTS / FOLDERS[part]).glob("*.safetensors")
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@pytest.fixture(scope="module")
def vae():
    """The trained autoencoder."""
    pytest.importorskip("diffusers")
    return models.load_vae()


@pytest.mark.parametrize("part", FOLDERS)
def test_the_configuration_is_that_of_the_code(part):
    found = config(part)
    for name, value in CONFIGS[part].items():
        wanted = list(value) if isinstance(value, tuple) else value
        assert found[name] == wanted, name
    if part == "flow":
        # ComfyUI takes the depth of an SD3 model from its width.
        assert found["num_attention_heads"] * found["attention_head_dim"] == 64 * found["num_layers"]
        assert found["pos_embed_max_size"] >= found["sample_size"] // found["patch_size"]


def test_the_text_encoder_knows_the_tokenizer():
    vocabulary = json.loads((models.WEIGHTS / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    found = config("text_encoder")
    assert found["vocab_size"] == len(vocabulary)
    assert found["bos_token_id"] == vocabulary["<|startoftext|>"]
    assert found["eos_token_id"] == found["pad_token_id"] == vocabulary["<|endoftext|>"]


def test_together_they_are_small():
    # The LoRA has a bound of its own, in test_lcm.py.
    files = (path for path in models.WEIGHTS.rglob("*") if path.is_file() and path != models.LCM_LORA)
    size = sum(path.stat().st_size for path in files)
    assert size <= 16e6, f"{size / 1e6:.2f} MB"


@pytest.mark.parametrize("part", FOLDERS)
def test_the_network_takes_exactly_these_tensors_in_half_precision(part):
    pytest.importorskip("diffusers")
    network, tensors = models.build(part), stored(part)
    assert all(tensor.dtype == torch.float16 and bool(tensor.isfinite().all()) for tensor in tensors.values())
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in tensors.items()} == wanted


def test_pictures_survive_the_autoencoder(vae):
    decibels = measure.vae_psnr(vae, measure.unseen(20, seed=3), seed=3)
    assert decibels.mean() >= 28.0


def test_scaled_latents_have_unit_variance(vae):
    pictures, _ = world.render(list(world.scenes())[::53], seed=5)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    assert latents.shape[1:] == (4, 16, 16)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.1)


def test_the_preview_map_is_that_of_this_autoencoder(vae):
    found = json.loads((models.WEIGHTS / "vae" / "latent_rgb.json").read_text(encoding="utf-8"))
    wanted = preview.fit(vae)
    for name in ("factors", "bias"):
        assert torch.allclose(torch.tensor(found[name]), torch.tensor(wanted[name]), atol=2e-3), name
