"""Tiny models of every architecture whose attention is known; those of tiny.py with two blocks where it has one."""

import types

import comfy.latent_formats
import comfy.ldm.chroma.model
import comfy.ldm.hunyuan_video.model
import comfy.ldm.lumina.model
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import tiny
import torch

UNETS = ("sd15", "sdxl")
# What this host has not, and since when hosts have it: every check goes without, and one check says so.
MISSING = {} if hasattr(comfy.supported_models, "ZImage") else {"zimage": "Z-Image"}
# sd35 is SD3.5-medium, whose first blocks attend a second time to the picture alone.
_EVERY = ("sd3", "sd35", "flux", "chroma", "qwen", "wan", "wan_i2v", "hunyuan", "ltx", "lumina", "zimage", "aura")
DITS = tuple(kind for kind in _EVERY if kind not in MISSING)
KINDS = (*UNETS, *DITS)
FLOWS = DITS
VIDEO = ("wan", "wan_i2v", "hunyuan", "ltx")
READS_CLIP = ("sd15", "sdxl", "sd3", "sd35")
TEXT = 8
# Z-Image fills text and picture up to a multiple of 32 tokens; 5 leaves both with some to fill here.
ZIMAGE_MULTIPLE = 5
# AuraFlow puts 8 learnt tokens in front of the text.
AURA_REGISTERS = 8
# Tokens of the picture that image-to-video networks look at, 257 in CLIP's; 1280 channels are fixed in the host.
SEEN, SEEN_CHANNELS = 6, 1280


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


def _zimage():
    # The host ties the width of the time embedding, 256, to the least width of a block.
    config = comfy.supported_models.ZImage(
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 256,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 4,
            "n_kv_heads": 4,
            "multiple_of": 16,
            "ffn_dim_multiplier": 0.25,
            "qk_norm": True,
            "cap_feat_dim": tiny.CONTEXT,
            "axes_dims": [16, 24, 24],
            "axes_lens": [64, 64, 64],
            "rope_theta": 256.0,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": ZIMAGE_MULTIPLE,
        }
    )
    return config, lambda: comfy.model_base.Lumina2(config)


def _chroma():
    config = {
        "in_channels": 64,
        "out_channels": 64,
        "context_in_dim": tiny.CONTEXT,
        "hidden_size": 32,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 6, 6],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        # Embeddings of the level, of guidance and of the place of a modulation: 16, 16 and 32 channels.
        "in_dim": 64,
        "out_dim": 32,
        "hidden_dim": 32,
        "n_layers": 1,
        "txt_ids_dims": [],
        "vec_in_dim": None,
    }
    fields = comfy.ldm.chroma.model.ChromaParams.__dataclass_fields__
    made = comfy.supported_models.Chroma({"image_model": "chroma", **_known(config, fields)})
    return made, lambda: comfy.model_base.Chroma(made)


def _aura():
    config = comfy.supported_models.AuraFlow(
        {
            "cond_seq_dim": tiny.CONTEXT,
            "max_seq": 64,
            "dim": 32,
            "n_layers": 4,
            "n_double_layers": 2,
            "n_heads": 2,
            "global_conddim": 32,
        }
    )
    return config, lambda: comfy.model_base.AuraFlow(config)


def _wan_i2v():
    config, _ = tiny._build("wan")
    # 16 channels of noise, 16 of the first frame and 4 of a mask.
    unet = {**config.unet_config, "model_type": "i2v", "in_dim": 36, "num_layers": 2}
    made = comfy.supported_models.WAN21_I2V(unet)
    return made, lambda: comfy.model_base.WAN21(made, image_to_video=True)


def _pixart():
    """An architecture that has no resolver."""
    config = comfy.supported_models.PixArtAlpha(
        {
            "image_model": "pixart_alpha",
            "hidden_size": 32,
            "depth": 1,
            "num_heads": 2,
            "caption_channels": tiny.CONTEXT,
            "pe_interpolation": 1.0,
            "micro_condition": False,
            "model_max_length": TEXT,
        }
    )
    return config, lambda: comfy.model_base.PixArt(config)


def _build(kind):
    own = {"hunyuan": _hunyuan, "qwen": _qwen, "ltx": _ltx, "lumina": _lumina}
    own.update(zimage=_zimage, chroma=_chroma, aura=_aura, wan_i2v=_wan_i2v, pixart=_pixart)
    if kind in own:
        return own[kind]()
    config, make = tiny._build("sd3" if kind == "sd35" else kind)
    if kind in ("sd3", "sd35"):
        config.unet_config["depth"] = 2
        config.unet_config["context_embedder_config"]["params"]["out_features"] = 128
        if kind == "sd35":
            config.unet_config.update(num_blocks=4, x_block_self_attn_layers=[0, 1], qk_norm="rms")
    elif kind == "flux":
        config.unet_config.update(depth=2, depth_single_blocks=2)
    elif kind == "wan":
        config.unet_config["num_layers"] = 2
    return config, make


def model(kind, seed=0):
    """A MODEL of one of KINDS, or of "pixart", whose attention nobody knows."""
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
    if kind in tiny.KINDS or kind == "sd35":
        made = tiny.conditioning("sd3" if kind == "sd35" else kind, seed, batch)
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
    if kind == "chroma":
        # As its text encoder gives it, which has no pooled part.
        extras = {"guidance": 0.0, "pooled_output": None}
    made = torch.randn(batch, tokens, tiny.CONTEXT, generator=generator)
    if kind == "wan_i2v":
        seen = torch.randn(1, SEEN, SEEN_CHANNELS, generator=torch.Generator().manual_seed(7))
        extras = {"clip_vision_output": types.SimpleNamespace(penultimate_hidden_states=seen)}
    return [[made, extras]]


def others(kind, image):
    """Tokens of a joint sequence that are neither text nor picture, before and behind the picture."""
    if kind == "aura":
        return AURA_REGISTERS, 0
    return (-TEXT % ZIMAGE_MULTIPLE, -image % ZIMAGE_MULTIPLE) if kind == "zimage" else (0, 0)


def latent(kind, batch=1, seed=0, size=(8, 12), frames=3):
    """A non-square LATENT of the kind's channels; a clip for video."""
    generator = torch.Generator().manual_seed(200 + seed)
    channels = {"sd15": 4, "sdxl": 4, "aura": 4, "pixart": 4, "ltx": 128}.get(kind, 16)
    times = {"qwen": (1,)}.get(kind, (frames,) if kind in VIDEO else ())
    return {"samples": torch.randn(batch, channels, *times, *size, generator=generator)}
