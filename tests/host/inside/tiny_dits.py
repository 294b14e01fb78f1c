"""Tiny models of every architecture whose attention is known; those of tiny.py with two blocks where it has one."""

import comfy.latent_formats
import comfy.ldm.hunyuan_video.model
import comfy.ldm.lumina.model
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import tiny
import torch

UNETS = ("sd15", "sdxl")
DITS = ("sd3", "flux", "qwen", "wan", "hunyuan", "ltx", "lumina")
KINDS = (*UNETS, *DITS)
FLOWS = DITS
VIDEO = ("wan", "hunyuan", "ltx")
TEXT = 8


def _known(config, names):
    """The entries of a configuration that this host's class takes."""
    return {name: value for name, value in config.items() if name in names}


def _hunyuan():
    config = {
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": tiny.POOLED,
        "context_in_dim": tiny.CONTEXT,
        "hidden_size": 32,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 6, 6],
        "theta": 256,
        "patch_size": [1, 2, 2],
        "qkv_bias": True,
        "guidance_embed": True,
        "byt5": False,
        "meanflow": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
        "meanflow_sum": False,
    }
    fields = comfy.ldm.hunyuan_video.model.HunyuanVideoParams.__dataclass_fields__
    made = comfy.supported_models.HunyuanVideo({"image_model": "hunyuan_video", **_known(config, fields)})
    return made, lambda: comfy.model_base.HunyuanVideo(made)


def _qwen():
    config = comfy.supported_models.QwenImage(
        {
            "image_model": "qwen_image",
            "patch_size": 2,
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "joint_attention_dim": tiny.CONTEXT,
            "axes_dims_rope": (4, 10, 10),
        }
    )
    return config, lambda: comfy.model_base.QwenImage(config)


def _ltx():
    config = comfy.supported_models.LTXV(
        {
            "image_model": "ltxv",
            "in_channels": 128,
            "cross_attention_dim": 48,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "caption_channels": tiny.CONTEXT,
            "num_layers": 2,
        }
    )
    return config, lambda: comfy.model_base.LTXV(config)


def _lumina():
    config = comfy.supported_models.Lumina2(
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 48,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 1,
            "multiple_of": 16,
            "ffn_dim_multiplier": 1.0,
            "qk_norm": True,
            "cap_feat_dim": tiny.CONTEXT,
            "axes_dims": [8, 8, 8],
            "axes_lens": [64, 64, 64],
        }
    )
    return config, lambda: comfy.model_base.Lumina2(config)


def _build(kind):
    own = {"hunyuan": _hunyuan, "qwen": _qwen, "ltx": _ltx, "lumina": _lumina}
    if kind in own:
        return own[kind]()
    config, make = tiny._build(kind)
    if kind == "sd3":
        config.unet_config["depth"] = 2
        config.unet_config["context_embedder_config"]["params"]["out_features"] = 128
    elif kind == "flux":
        config.unet_config.update(depth=2, depth_single_blocks=2)
    elif kind == "wan":
        config.unet_config["num_layers"] = 2
    return config, make


def model(kind, seed=0):
    """A MODEL of one of KINDS."""
    with torch.inference_mode():
        config, make = _build(kind)
        config.manual_cast_dtype = None
        config.unet_config.setdefault("dtype", torch.float32)
        made = make()
        tiny._fill(made.diffusion_model, seed)
        made.eval()
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(made, load_device=cpu, offload_device=cpu)


def conditioning(kind, seed=0, batch=1, tokens=None):
    """A CONDITIONING that fits the kind."""
    if kind in tiny.KINDS:
        made = tiny.conditioning(kind, seed, batch)
        if tokens is not None:
            generator = torch.Generator().manual_seed(100 + seed)
            made[0][0] = torch.randn(batch, tokens, tiny.CONTEXT, generator=generator)
        return made
    generator = torch.Generator().manual_seed(100 + seed)
    tokens = TEXT if tokens is None else tokens
    extras = {}
    if kind == "hunyuan":
        extras = {"pooled_output": torch.randn(batch, tiny.POOLED, generator=generator), "guidance": 6.0}
    if kind in ("ltx", "lumina"):
        extras = {"attention_mask": torch.ones(batch, tokens, dtype=torch.long)}
    return [[torch.randn(batch, tokens, tiny.CONTEXT, generator=generator), extras]]


def latent(kind, batch=1, seed=0, size=(8, 12), frames=3):
    """A non-square LATENT of the kind's channels; a clip for video."""
    generator = torch.Generator().manual_seed(200 + seed)
    channels = {"sd15": 4, "sdxl": 4, "ltx": 128}.get(kind, 16)
    times = {"qwen": (1,)}.get(kind, (frames,) if kind in VIDEO else ())
    return {"samples": torch.randn(batch, channels, *times, *size, generator=generator)}
