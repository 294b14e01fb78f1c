"""What the checks of restoration share: photos, damages, runs of the restore samplers, and odd models."""

import functools

import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.supported_models
import torch
from photographs import BLOCK, vae_of

CPU = torch.device("cpu")
NOISE = 4.0
NODES = ("RestoreDDS", "RestoreREDDiff", "RestoreGuided")


def photo(count=1, seed=0, height=4 * BLOCK, width=6 * BLOCK):
    """Smooth colours."""
    coarse = torch.rand(count, 3, 3, 4, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return fine.movedim(1, -1)


def hole(*boxes, height=4 * BLOCK, width=6 * BLOCK):
    """A mask for each box (top, left, height, width), white inside."""
    mask = torch.zeros(len(boxes), height, width)
    for row, (top, left, down, right) in enumerate(boxes):
        mask[row, top : top + down, left : left + right] = 1.0
    return mask


def damages(pack, height=4 * BLOCK, width=6 * BLOCK):
    """Every damage of one picture of a size, by name."""
    call = pack.call
    blur = {"radius": 2.0, "length": 9.0, "angle": 20.0}
    ring = torch.zeros(1, 5, 7, 3)
    ring[:, 1:4, 2:5] = 1.0
    ring[:, 2, 3] = 0.0
    missing = hole((height // 3, width // 4, height // 4, width // 4), height=height, width=width)
    jpeg = call("DamageJPEG", quality=10)[0]
    half = call("DamageLowResolution", scale=2.0, filter="box")[0]
    gaussian = call("DamageBlur", kind="gaussian", **blur)[0]
    return {
        "mask": call("DamageMask", mask=missing, grow=1)[0],
        "small": half,
        "smaller": call("DamageLowResolution", scale=2.6, filter="lanczos")[0],
        "gaussian": gaussian,
        "motion": call("DamageBlur", kind="motion", **blur)[0],
        "kernel": call("DamageBlur", kind="kernel", edges="circular", kernel=ring)[0],
        "grey": call("DamageBlackWhite")[0],
        "noise": call("DamageNoise")[0],
        "jpeg": jpeg,
        "all": call("DamageCombine", first=gaussian, second=half, third=jpeg)[0],
    }


def damaged_by(pack, image, operator, noise=2.0):
    """A damaged picture."""
    return pack.call("ApplyDamage", image=image, operator=operator, noise=noise, seed=1)[0]


def sampler_of(pack, node, operator, damaged, vae=None, **settings):
    """A restore sampler."""
    return pack.call(node, **{"operator": operator, "damaged": damaged, "noise": NOISE, "vae": vae, **settings})[0]


def sigmas_of(model, steps, scheduler="simple"):
    """The model's SIGMAS."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def sample(model, prompt, sampler, shape, steps=3, seed=4, noise=None, levels=None, scheduler="simple", **more):
    """What SamplerCustomAdvanced does with CFGGuider at cfg 1 and RandomNoise, over all levels or a part of them."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt, prompt)
    guider.set_cfg(1.0)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) if noise is None else noise
    sigmas = sigmas_of(model, steps, scheduler)[:levels]
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros(shape), sampler, sigmas, disable_pbar=True, seed=seed, **more)


def chi2(pack, image, operator, damaged, noise=NOISE):
    """How well a picture explains a photo."""
    return pack.call("RestoreReport", image=image, operator=operator, damaged=damaged, noise=noise)[0]


def psnr(a, b):
    """Of pictures in [0, 1], in dB."""
    return float(-10 * torch.log10((a - b).square().mean()))


def patched(network):
    """A MODEL around a network."""
    return comfy.model_patcher.ModelPatcher(network, CPU, CPU)


def random_vae(pack, channels, video=False):
    """A small random VAE: a quarter of the side, for video half of it and of the frames but the first."""
    sizes = {"dim": 8, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True]}
    with torch.inference_mode():
        vae = vae_of(pack, channels, (lambda: comfy.ldm.wan.vae.WanVAE(z_dim=channels, **sizes)) if video else None)
        pack.tiny._fill(vae.first_stage_model, 3)
        vae.first_stage_model.to(vae.vae_dtype)
    return vae


cached_vae = functools.cache(random_vae)


def tiny_model(pack, config, make):
    """A tiny random model of a changed configuration."""
    config.manual_cast_dtype = None
    with torch.inference_mode():
        made = make()
        pack.tiny._fill(made.diffusion_model, 0)
        return patched(made.eval())


def pixel_model(pack, **shape):
    """A tiny UNet that samples pictures: three channels, and a format that leaves them as they are."""
    config = comfy.supported_models.SD15({**pack.tiny._unet_config(None), "in_channels": 3, "out_channels": 3, **shape})
    pack.tiny._own_heads(config)
    config.latent_format = comfy.latent_formats.LatentFormat()
    config.latent_format.latent_channels = 3
    eps = comfy.model_base.ModelType.EPS
    return tiny_model(pack, config, lambda: comfy.model_base.BaseModel(config, model_type=eps))
