"""LoadShapesModel: the host's classes answer as diffusers does on the same files, and behave as any model."""

import functools
import itertools
import shutil

import comfy.lora
import comfy.model_management
import comfy.samplers
import comfy.sd
import comfy.supported_models
import latent_preview
import nodes
import numpy as np
import torch
from helpers import refuses, relative, same_weights, weights_of
from running import advanced, decode, encode, shapes

CAPTIONS = ("a big red circle on the left of a blue background", "a small yellow star on a purple background")
SEED = 7
CFG = 4.0
KINDS = ("eps", "flow")
# One LoRA target each in the denoisers' and the text encoder's usual key styles.
LORA_KEYS = {
    "eps": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
    "flow": "transformer.transformer_blocks.1.attn.to_k",
}
LORA_TEXT_KEY = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@functools.cache
def _standalone(pack, kind):
    return pack.module("demo.models").load(kind)


def _pictures(pack, count=2):
    world = pack.module("demo.world")
    return torch.from_numpy(world.render(list(itertools.islice(world.scenes(), 0, 100 * count, 100)), SEED)[0]) / 255


def _both(clip, texts):
    """One CONDITIONING with a row for each text."""
    entries = [encode(clip, text)[0] for text in texts]
    pooled = torch.cat([entry[1]["pooled_output"] for entry in entries])
    return [[torch.cat([entry[0] for entry in entries]), {"pooled_output": pooled}]]


class _Probe(comfy.samplers.Sampler):
    """Asks the guider for denoised at given levels, as a sampler does, and keeps the answers."""

    def __init__(self, states, sigmas):
        self.states, self.sigmas, self.answers = states, sigmas, []

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        for x, sigma in zip(self.states, self.sigmas):
            self.answers.append(guider(x, torch.full((len(x),), sigma), **extra_args))
        return latent_image


def _sampled(model, clip, steps=4, scheduler="simple", positive=None, latent=None):
    """LATENT of stock nodes, from an empty latent of two pictures."""
    latent = {"samples": torch.zeros(2, 4, 16, 16)} if latent is None else latent
    prompts = _both(clip, CAPTIONS) if positive is None else positive, encode(clip, "")
    with torch.inference_mode():
        return nodes.KSampler().sample(model, SEED, steps, CFG, "euler", scheduler, *prompts, latent)[0]


def check_shapes_denoised_agrees(pack):
    """denoised is that of diffusers to 1e-4, at low and high noise, guided, with a prompt for each row."""
    schedule = pack.module("demo.models").EPS_SCHEDULE
    roots = np.linspace(schedule["beta_start"] ** 0.5, schedule["beta_end"] ** 0.5, 1000)
    signal = np.cumprod(1 - roots**2)
    generator = torch.Generator().manual_seed(SEED)
    for kind in KINDS:
        timesteps = (5, 200, 600, 900, 999) if kind == "eps" else (5.0, 200.0, 600.0, 900.0, 1000.0)
        sigmas = [float(((1 - signal[t]) / signal[t]) ** 0.5) if kind == "eps" else t / 1000 for t in timesteps]
        # Not square: the positions of the transformer are cropped from a table.
        noise = torch.randn((2, 4, 16, 24), generator=generator)
        states = [noise * ((1 + s**2) ** 0.5 if kind == "eps" else 1.0) for s in sigmas]
        model, clip, _ = shapes(pack, kind)
        probe = _Probe(states, sigmas)
        given = torch.tensor([1.0, 0.0]), {"samples": states[0]}
        advanced(model, _both(clip, CAPTIONS), probe, *given, negative=encode(clip, ""), cfg=CFG)
        with torch.inference_mode():
            wanted = pack.module("demo.measure").denoiser(_standalone(pack, kind), CAPTIONS, CFG)
            for x, sigma, timestep, answer in zip(states, sigmas, timesteps, probe.answers):
                assert answer.dtype == torch.float32
                error = relative(answer, wanted(x, sigma, timestep))
                assert error < 1e-4, (kind, sigma, error)


def check_shapes_text_agrees(pack):
    """Tokens, states and pooled projections are those of transformers."""
    model = _standalone(pack, "eps")
    clip = shapes(pack, "eps")[1]
    texts = [*CAPTIONS, "", "an unknown word, and (nothing) else", "A Big RED ring"]
    states, pooled = pack.module("demo.models").encode_text(model, texts)
    for text, state, pool in zip(texts, states, pooled):
        # Parentheses are weights to the host unless they are escaped.
        text = text.replace("(", "\\(").replace(")", "\\)")
        with torch.inference_mode():
            mine, mine_pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
        assert mine.shape == (1, 32, 128) and relative(mine[0], state) < 1e-5, text
        assert relative(mine_pooled[0], pool) < 1e-5, text


def check_shapes_vae_agrees(pack):
    """Latents have a quarter of the size, and both ways are those of diffusers, tiled ones nearly."""
    vae, theirs = shapes(pack, "eps")[2], _standalone(pack, "eps").vae
    pictures = _pictures(pack)
    pictures = torch.cat([pictures, pictures[:, :, :32]], 2)
    with torch.inference_mode():
        latent = nodes.VAEEncode().encode(vae, pictures)[0]
        assert latent["samples"].shape == (2, 4, 16, 24)
        wanted = theirs.encode(pictures.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mean
        assert relative(latent["samples"], wanted) < 1e-5
        back = nodes.VAEDecode().decode(vae, latent)[0]
        wanted = (theirs.decode(wanted).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        # In float32 the decoder itself is 1.5e-5 off its float64 self.
        assert back.shape == pictures.shape and relative(back, wanted) < 1e-4
        tiled = nodes.VAEDecodeTiled().decode(vae, latent, tile_size=64, overlap=16)[0]
        assert tiled.shape == pictures.shape and relative(tiled, back) < 0.2
        again = nodes.VAEEncodeTiled().encode(vae, pictures, tile_size=64, overlap=16)[0]["samples"]
        assert again.shape == (2, 4, 16, 24) and relative(again, latent["samples"]) < 0.3


def check_shapes_stock_nodes_draw_the_same_picture(pack):
    """KSampler and VAEDecode draw what the loop over diffusers draws from the same seed."""
    for kind in KINDS:
        model, clip, vae = shapes(pack, kind)
        # The levels of this flow schedule are those of `simple`; see demo/measure.py.
        picture = decode(vae, _sampled(model, clip, 5, "normal" if kind == "eps" else "simple")["samples"])
        wanted = pack.module("demo.measure").sample(_standalone(pack, kind), CAPTIONS, 5, CFG, SEED)
        difference = (picture * 255 - torch.from_numpy(wanted)).abs().max()
        # Half a step of rounding to 8 bits, and a little for the rounding of the levels to float32.
        assert difference < 1.5, (kind, float(difference))


def check_shapes_prompt_weights(pack):
    """A weighted word changes the conditioning, by more the larger the weight; a weight of 1 does not."""
    clip = shapes(pack, "eps")[1]
    words = ("red", "(red:1.0)", "(red:1.3)", "(red:1.6)")
    plain, one, more, most = (encode(clip, f"a big {word} circle")[0][0] for word in words)
    assert torch.equal(plain, one)
    assert 0.0 < relative(more, plain) < relative(most, plain)


def check_shapes_lora(pack):
    """A LoRA in the usual key styles changes picture and prompt; without it everything is bit for bit as before."""
    generator = torch.Generator().manual_seed(SEED)

    def pair(key, rows, columns):
        return {
            f"{key}.lora_up.weight": torch.randn((rows, 2), generator=generator),
            f"{key}.lora_down.weight": torch.randn((2, columns), generator=generator),
        }

    for kind in KINDS:
        model, clip, _ = shapes(pack, kind)
        weights, text_weights = weights_of(model.model), weights_of(clip.cond_stage_model)
        before, text_before = _sampled(model, clip)["samples"], encode(clip, CAPTIONS[0])[0][0]
        rows, columns = (96, 128) if kind == "eps" else (192, 192)
        lora = {**pair(LORA_KEYS[kind], rows, columns), **pair(LORA_TEXT_KEY, 256, 128)}
        with torch.inference_mode():
            patched, patched_clip = comfy.sd.load_lora_for_models(model, clip, lora, 0.5, 0.5)
        assert len(patched.patches) == 1 and len(patched_clip.patcher.patches) == 1, kind
        assert relative(_sampled(patched, clip)["samples"], before) > 1e-3, kind
        assert relative(encode(patched_clip, CAPTIONS[0])[0][0], text_before) > 1e-3, kind
        assert torch.equal(_sampled(model, clip)["samples"], before), kind
        assert torch.equal(encode(clip, CAPTIONS[0])[0][0], text_before), kind
        comfy.model_management.unload_all_models()
        assert torch.equal(_sampled(model, clip)["samples"], before), f"{kind} after unloading"
        same_weights(model.model, weights)
        same_weights(clip.cond_stage_model, text_weights)


def check_shapes_loads_twice_the_same(pack):
    """Two loads share nothing and are equal; the host's list of models that it detects stays as it was."""
    known = list(comfy.supported_models.models)
    for kind in KINDS:
        first, second = pack.call("LoadShapesModel", kind=kind), pack.call("LoadShapesModel", kind=kind)
        for a, b in (
            (first[0].model, second[0].model),
            (first[1].cond_stage_model, second[1].cond_stage_model),
            (first[2].first_stage_model, second[2].first_stage_model),
        ):
            one, two = a.state_dict(), b.state_dict()
            assert one.keys() == two.keys() and len(one) > 30
            for name in one:
                assert torch.equal(one[name], two[name]), name
                assert one[name].data_ptr() != two[name].data_ptr(), name
    assert comfy.supported_models.models == known


def check_shapes_reloads_for_the_host(pack):
    """The factory that newer hosts reload a model with gives the same weights."""
    model, clip, vae = shapes(pack, "flow")
    for patcher in (model, clip.patcher, vae.patcher):
        make, arguments = patcher.cached_patcher_init
        with torch.inference_mode():
            same_weights(make(*arguments, disable_dynamic=True).model, weights_of(patcher.model))


def check_shapes_preview_has_the_colours(pack):
    """The host's quick preview of a latent shows most of what varies in the picture's colours."""
    model, _, vae = shapes(pack, "eps")
    pictures = _pictures(pack, 16)
    with torch.inference_mode():
        latents = model.model.process_latent_in(vae.encode(pictures))
    shape = model.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(shape.latent_rgb_factors, shape.latent_rgb_factors_bias)
    previews = [previewer.decode_latent_to_preview(latents[i : i + 1]) for i in range(16)]
    seen = torch.stack([torch.tensor(np.array(each)) for each in previews]) / 255
    wanted = torch.nn.functional.avg_pool2d(pictures.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    assert seen.shape == wanted.shape
    unexplained = ((seen - wanted) ** 2).mean() / wanted.var()
    # The map is linear, which the autoencoder is not.
    assert unexplained < 0.4, float(unexplained)


def check_shapes_refusals(pack):
    """An unknown kind, a missing file, half a file and foreign weights are one sentence each."""
    models, weights = pack.module("nodes.shapes.models"), pack.module("demo.models").WEIGHTS
    refuses(lambda: models.load_model("video"), "kind must be one of eps, flow", "'video'")
    copy = pack.workspace / "weights"
    shutil.copytree(weights, copy)
    for folder, call in (
        ("unet", lambda: models.load_model("eps", copy)),
        ("transformer", lambda: models.load_model("flow", copy)),
        ("text_encoder", lambda: models.load_clip(copy)),
        ("vae", lambda: models.load_vae(copy)),
    ):
        call()
        path = next((copy / folder).glob("*.safetensors"))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        refuses(call, "demo models must lie in", "install the pack again")
        path.unlink()
        refuses(call, "demo models must lie in", "install the pack again")
        path.write_bytes(whole)
        (copy / folder / "config.json").rename(copy / folder / "moved.json")
        refuses(call, "demo models must lie in", "config.json")
        (copy / folder / "moved.json").rename(copy / folder / "config.json")
    shutil.copy(copy / "unet" / "diffusion_pytorch_model.safetensors", copy / "vae")
    refuses(lambda: models.load_vae(copy), "weights in", "tensors that do not fit")


def check_shapes_empty_latent(pack):
    """EmptyLatentImage, which divides by 8, is made to fit on hosts that can; the help page says so."""
    latent = nodes.EmptyLatentImage().generate(64, 64)[0]
    for kind in KINDS:
        model, clip, vae = shapes(pack, kind)
        drawn = _sampled(model, clip, 2, positive=encode(clip, CAPTIONS[0]), latent=latent)
        side = 64 if "downscale_ratio_spacial" in latent else 32
        assert decode(vae, drawn["samples"]).shape == (1, side, side, 3)
