"""Restoration on every kind of model: latents of all formats, batch 2, not square, clips; mechanics and no more."""

import functools

import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.supported_models
import torch
from helpers import same_snapshot, snapshot
from restore_settings import DDS, GUIDED


@functools.cache
def vae_for(pack, channels, video=False):
    """A small random VAE: a quarter of the side, for video half of it and of the frames but the first."""
    config = pack.module("nodes.shapes.network_classes").vae_config(
        {
            "block_out_channels": [32, 32, 32],
            "latent_channels": channels,
            "sample_size": 32,
            "in_channels": 3,
            "out_channels": 3,
            "layers_per_block": 1,
        }
    )
    with torch.inference_mode():
        vae = comfy.sd.VAE(sd={}, config=config)
        if video:
            vae.first_stage_model = comfy.ldm.wan.vae.WanVAE(
                dim=8, z_dim=channels, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True]
            ).eval()
            cpu = torch.device("cpu")
            vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, cpu, cpu)
        pack.tiny._fill(vae.first_stage_model, 3)
        vae.first_stage_model.to(vae.vae_dtype)
    return vae


def latent_of(pack, kind, batch=2):
    return torch.zeros_like(pack.tiny.latent(kind, batch=batch)["samples"])


def run(pack, kind, operator, damaged, batch=2, seed=4, node="RestoreDDS", **changes):
    model, prompt = pack.tiny.model(kind), pack.tiny.conditioning(kind)
    latent = latent_of(pack, kind, batch)
    inputs = {"noise": 4.0, **(DDS if node == "RestoreDDS" else GUIDED), **changes}
    vae = vae_for(pack, latent.shape[1], video=kind == "wan")
    (sampler,) = pack.call(node, operator=operator, damaged=damaged, vae=vae, **inputs)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt, prompt)
    guider.set_cfg(1.0)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    before = snapshot(model)
    with torch.inference_mode():
        drawn = guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=seed)
    same_snapshot(model, before)
    return drawn


def photo(kind, count, height, width):
    generator = torch.Generator().manual_seed(len(kind))
    return torch.rand(count, height, width, 3, generator=generator)


def size_of(pack, kind):
    """Pictures of a run of two latents, or frames of a clip, and their height and width."""
    latent = latent_of(pack, kind)
    vae = vae_for(pack, latent.shape[1], video=kind == "wan")
    with torch.inference_mode():
        decoded = vae.first_stage_model.decode(latent[:1])
    return (decoded.shape[2] if kind == "wan" else 2), *decoded.shape[-2:]


def check_restore_every_kind(pack):
    """Finite, of the latent's shape, the same bits twice, and moved by the photo."""
    (small,) = pack.call("DamageLowResolution", scale=2.0, filter="box")
    for kind in pack.tiny.KINDS:
        latent = latent_of(pack, kind)
        count, height, width = size_of(pack, kind)
        damaged = photo(kind, count, height // 2, width // 2)
        drawn = run(pack, kind, small, damaged)
        assert drawn.shape == latent.shape and bool(torch.isfinite(drawn).all()), kind
        assert torch.equal(drawn, run(pack, kind, small, damaged)), kind
        assert not torch.equal(drawn, run(pack, kind, small, 1.0 - damaged)), kind


def check_restore_guided_on_every_kind(pack):
    """Gradients through eps and flow models of every type; what a mask hides says nothing, and each row is alone."""
    for kind in pack.tiny.KINDS:
        latent = latent_of(pack, kind)
        count, height, width = size_of(pack, kind)
        hidden = torch.zeros(1, height, width)
        hidden[:, : height // 2, 2 : width // 2] = 1.0
        (operator,) = pack.call("DamageMask", mask=hidden, grow=0)
        damaged = photo(kind, count, height, width)
        drawn = run(pack, kind, operator, damaged, node="RestoreGuided")
        assert drawn.shape == latent.shape and bool(torch.isfinite(drawn).all()), kind
        assert torch.equal(drawn, run(pack, kind, operator, damaged, node="RestoreGuided")), kind
        unseen = torch.where(hidden[..., None] > 0, 1.0 - damaged, damaged)
        assert torch.equal(drawn, run(pack, kind, operator, unseen, node="RestoreGuided")), kind
        assert not torch.equal(drawn, run(pack, kind, operator, 1.0 - damaged, node="RestoreGuided")), kind
        if kind != "wan":
            other = torch.cat([damaged[:1], 1.0 - damaged[1:]])
            changed = run(pack, kind, operator, other, node="RestoreGuided")
            assert torch.allclose(changed[0], drawn[0], atol=1e-4), kind
            assert not torch.allclose(changed[1], drawn[1], atol=1e-3), kind


def check_restore_clips_of_video_models(pack):
    """Frames along time of a video latent: a frame operator, smoothing and shared noise, for each clip of a batch."""
    latent = latent_of(pack, "wan")
    vae = vae_for(pack, 16, video=True)
    with torch.inference_mode():
        shape = vae.first_stage_model.decode(latent[:1]).shape
    (operator,) = pack.call("DamageFrames", pattern="dropped", every=2)
    damaged = photo("wan", (shape[2] + 1) // 2, *shape[-2:])
    for changes in ({}, {"temporal_smoothing": 1.0, "share_noise": True}):
        drawn = run(pack, "wan", operator, damaged, **changes)
        assert drawn.shape == latent.shape and bool(torch.isfinite(drawn).all())


def check_restore_latent_methods_on_a_flow(pack):
    for kind in ("flux", "sdxl", "wan"):
        (blur,) = pack.call("DamageBlur", kind="motion", radius=1.0, length=3.0, angle=20.0, edges="reflect")
        damaged = photo(kind, *size_of(pack, kind))
        for method in ("decode, correct, encode", "decoder gradient"):
            drawn = run(pack, kind, blur, damaged, latent_method=method)
            assert bool(torch.isfinite(drawn).all()), (kind, method)


def _pixel_model(pack):
    """A tiny UNet that samples pictures: three channels, and a format that leaves them as they are."""
    config = comfy.supported_models.SD15({**pack.tiny._unet_config(None), "in_channels": 3, "out_channels": 3})
    pack.tiny._own_heads(config)
    config.latent_format = comfy.latent_formats.LatentFormat()
    config.latent_format.latent_channels = 3
    config.manual_cast_dtype = None
    with torch.inference_mode():
        made = comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.EPS)
        pack.tiny._fill(made.diffusion_model, 0)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(made.eval(), load_device=cpu, offload_device=cpu)


def check_restore_pictures_without_a_vae(pack):
    """A model of pictures needs no VAE: the photo's own pixels come back within the noise, or exactly by its cells."""
    model, prompt = _pixel_model(pack), pack.tiny.conditioning("sd15")
    image = photo("pixels", 2, 16, 24)
    (operator,) = pack.call("DamageLowResolution", scale=2.0, filter="box")
    (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=0.0, seed=0)
    settings = {"freshness": 0.85, "latent_method": "encoder adjoint", "inner_steps": 1}
    for node, more in (
        ("RestoreDDS", {**settings, "trust": 1.0, "temporal_smoothing": 0.0, "share_noise": False}),
        ("RestoreDDS", {**settings, "trust": 1.0, "temporal_smoothing": 1.0, "share_noise": True}),
        ("RestoreREDDiff", {"prior": 0.1, "step": 0.1, "weight": "linear", "schedule": "constant", "sigma_max": 9.0}),
    ):
        (sampler,) = pack.call(node, operator=operator, damaged=damaged, noise=2.0, **more)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 20)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(prompt, prompt)
        guider.set_cfg(1.0)
        noise = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            drawn = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)
        restored = (drawn.movedim(1, -1) + 1) / 2
        chi2, *_ = pack.call("RestoreReport", image=restored, operator=operator, damaged=damaged, noise=2.0)
        wrong, *_ = pack.call("RestoreReport", image=1 - image, operator=operator, damaged=damaged, noise=2.0)
        assert chi2 < 0.05 * wrong, (node, more, chi2, wrong)
