"""Tiny models of every architecture whose attention is known, and what the checks must know of each.

A resolver has its tiny model here, under any name; every check of attention then runs on it.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import tiny
import torch
from comfyui_version import __version__

TEXT = 8
# Tokens of the picture that image-to-video networks look at, 257 in CLIP's; 1280 channels are fixed in the host.
SEEN, SEEN_CHANNELS = 6, 1280
CLIP = 1_000


@dataclass(frozen=True)
class Tiny:
    """A tiny model."""

    family: str  # of its resolver
    build: Callable  # returns the host's configuration and what makes the model of it
    channels: int = 16
    pixels: int = 8  # of the picture along a side of a latent cell
    frames: int = 0  # most of its latent, 0 where it has no such axis
    text: int = TEXT  # tokens of a prompt
    filled_text: bool = False  # whether the network fills every prompt up to one length
    # Further entries of a CONDITIONING, from its rows, tokens and a generator.
    extras: Callable = lambda batch, tokens, generator: {}
    front: int = 0  # tokens of a joint sequence in front of the text
    filled: int = 1  # text and picture are each filled up to a multiple of this many tokens
    mixed: tuple[str, ...] = ()  # which of "image" and "text" a refiner mixes before the first block
    unreached: int = 0  # attention calls of a forward that no rule reaches
    whole: bool = False  # whether the host's own network fails where a latent has half a patch
    wrapped: bool = True  # whether the host lets something stand around the network
    residual: int = 0  # channels of what a ControlNet adds to a block's picture, 0 where there is no such thing
    published: tuple[dict, ...] = ()  # settings that give it the blocks of models that people have
    since: tuple[int, int, int] = (0, 8, 0)  # version of the host that first has it


def _of(name, base=None, **config):
    """A configuration of the host by its name, and the model that goes with it."""
    made = getattr(comfy.supported_models, name)(config)
    return made, lambda: getattr(comfy.model_base, base or name)(made)


def _changed(kind, **changes):
    """A model of tiny.py with other settings, two blocks where it has one."""
    made, make = tiny._build(kind)
    made.unet_config.update(changes)
    return made, make


def _sd3(**changes):
    made, make = _changed("sd3", depth=2, **changes)
    made.unet_config["context_embedder_config"]["params"]["out_features"] = 128
    return made, make


def _blocks(**changes):
    """What networks after Flux's design have in common."""
    return {"context_in_dim": tiny.CONTEXT, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "qkv_bias": True,
            "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 256, **changes}  # fmt: skip


def _flux2():
    config = _blocks(
        image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, axes_dim=[4] * 4, patch_size=1,
        guidance_embed=True, global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index",
        ref_index_scale=10.0, txt_ids_dims=[3],
    )  # fmt: skip
    return _of("Flux2", **{**config, "qkv_bias": False})


def _chroma():
    # Embeddings of the level, of guidance and of the place of a modulation: 16, 16 and 32 channels.
    config = _blocks(
        image_model="chroma", in_channels=64, out_channels=64, theta=10000, patch_size=2, in_dim=64, out_dim=32,
        hidden_dim=32, n_layers=1, txt_ids_dims=[], vec_in_dim=None,
    )  # fmt: skip
    return _of("Chroma", **config)


def _hunyuan(name="HunyuanVideo", **changes):
    config = _blocks(
        image_model="hunyuan_video", in_channels=16, out_channels=16, vec_in_dim=tiny.POOLED, patch_size=[1, 2, 2],
        guidance_embed=True, byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None,
        meanflow_sum=False,
    )  # fmt: skip
    return _of(name, **{**config, **changes})


def _hunyuan_15():
    # 32 channels of noise, 32 of a first frame and one of its mask.
    changes = {"in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "depth_single_blocks": 0}
    return _hunyuan("HunyuanVideo15", vec_in_dim=None, guidance_embed=False, **changes)


def _lumina(name="Lumina2", **changes):
    config = {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 48, "n_layers": 2, "n_refiner_layers": 1,
        "n_heads": 2, "n_kv_heads": 1, "multiple_of": 16, "ffn_dim_multiplier": 1.0, "qk_norm": True,
        "cap_feat_dim": tiny.CONTEXT, "axes_dims": [8, 8, 8], "axes_lens": [64, 64, 64],
    }  # fmt: skip
    return _of(name, "Lumina2", **{**config, **changes})


def _zimage():
    # The host ties the width of the time embedding, 256, to the least width of a block.
    return _lumina(
        "ZImage", dim=256, n_heads=4, n_kv_heads=4, ffn_dim_multiplier=0.25, axes_dims=[16, 24, 24], rope_theta=256.0,
        z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=TINY["zimage"].filled,
    )  # fmt: skip


def _wan_i2v():
    # 16 channels of noise, 16 of the first frame and 4 of a mask.
    config, _ = _changed("wan", num_layers=2, model_type="i2v", in_dim=36)
    made = comfy.supported_models.WAN21_I2V(config.unet_config)
    return made, lambda: comfy.model_base.WAN21(made, image_to_video=True)


def _qwen():
    return _of(
        "QwenImage", image_model="qwen_image", patch_size=2, in_channels=64, out_channels=16, num_layers=2,
        attention_head_dim=24, num_attention_heads=2, joint_attention_dim=tiny.CONTEXT, axes_dims_rope=(4, 10, 10),
    )  # fmt: skip


def _ltx():
    return _of(
        "LTXV", image_model="ltxv", in_channels=128, cross_attention_dim=48, attention_head_dim=24,
        num_attention_heads=2, caption_channels=tiny.CONTEXT, num_layers=2,
    )  # fmt: skip


def _kandinsky5(name="Kandinsky5", of_cell=4 * (16 + 16 + 1)):
    # A patch of noise, and for clips as much of a first frame with a channel of its mask.
    return _of(
        name, image_model="kandinsky5", in_text_dim=tiny.CONTEXT, in_text_dim2=tiny.POOLED, time_dim=16, model_dim=32,
        ff_dim=64, visual_embed_dim=of_cell, axes_dims=(4, 6, 6), num_text_blocks=2, num_visual_blocks=2,
    )  # fmt: skip


def _aura():
    return _of(
        "AuraFlow", cond_seq_dim=tiny.CONTEXT, max_seq=64, dim=32, n_layers=4, n_double_layers=2, n_heads=2,
        global_conddim=32,
    )  # fmt: skip


def _pixart():
    return _of(
        "PixArtAlpha", "PixArt", image_model="pixart_alpha", hidden_size=32, depth=1, num_heads=2,
        caption_channels=tiny.CONTEXT, pe_interpolation=1.0, micro_condition=False, model_max_length=TEXT,
    )  # fmt: skip


def _pooled(**more):
    return lambda batch, tokens, made: {"pooled_output": torch.randn(batch, tiny.POOLED, generator=made), **more}


def _unpooled(batch, tokens, generator):
    # As the text encoders of these give it, which have no pooled part.
    return {"guidance": 0.0, "pooled_output": None}


def _mask(batch, tokens, generator):
    return {"attention_mask": torch.ones(batch, tokens, dtype=torch.long)}


def _seen(batch, tokens, generator):
    states = torch.randn(1, SEEN, SEEN_CHANNELS, generator=torch.Generator().manual_seed(7))
    return {"clip_vision_output": types.SimpleNamespace(penultimate_hidden_states=states)}


_SD15 = {
    "num_res_blocks": [2] * 4, "channel_mult": (1, 2, 4, 4), "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip
_SDXL = {
    "num_res_blocks": [2] * 3, "channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0] * 3 + [2] * 3 + [10] * 3, "transformer_depth_middle": 10,
}  # fmt: skip
_SD3 = {"text": 77, "extras": _pooled(), "residual": 128, "wrapped": False}
_BOTH = ("image", "text")


def _depths(*depths, names=("depth", "depth_single_blocks")):
    return tuple(dict(zip(names, each)) for each in depths)


TINY = {
    "sd15": Tiny("sd15", lambda: tiny._build("sd15"), channels=4, text=77, published=(_SD15,)),
    "sdxl": Tiny("sdxl", lambda: tiny._build("sdxl"), channels=4, text=77, extras=_pooled(), published=(_SDXL,)),
    "sd3": Tiny("sd3", _sd3, **_SD3),
    # SD3.5-medium, whose first blocks attend a second time to the picture alone.
    "sd35": Tiny("sd3", lambda: _sd3(num_blocks=4, x_block_self_attn_layers=[0, 1], qk_norm="rms"), **_SD3),
    "flux": Tiny(
        "flux", lambda: _changed("flux", depth=2, depth_single_blocks=2), extras=_pooled(guidance=2.0), residual=32,
        published=_depths((19, 38)),
    ),
    "chroma": Tiny("flux", _chroma, extras=_unpooled, residual=32),
    # The host fills its text up to 512 tokens from the front. Dev and Klein of Flux.2, and LongCat-Image.
    "flux2": Tiny(
        "flux2", _flux2, channels=128, pixels=16, extras=_unpooled, text=500, front=12, residual=32,
        published=_depths((8, 48), (5, 20), (10, 20)),
    ),
    "qwen": Tiny("qwen", _qwen, frames=1, residual=48, published=({"num_layers": 60},)),
    "wan": Tiny(
        "wan", lambda: _changed("wan", num_layers=2), frames=CLIP, filled_text=True, published=({"num_layers": 30},)
    ),
    "wan_i2v": Tiny("wan", _wan_i2v, frames=CLIP, filled_text=True, extras=_seen, unreached=2),
    "hunyuan": Tiny(
        "hunyuan_video", _hunyuan, frames=CLIP, extras=_pooled(guidance=6.0), mixed=("text",), unreached=2,
        whole=True,
        published=_depths((20, 40)),
    ),
    "hunyuan_15": Tiny(
        "hunyuan_video_15", _hunyuan_15, channels=32, pixels=16, frames=CLIP, extras=_unpooled, mixed=("text",),
        unreached=2,
        published=_depths((54, 0)),
    ),
    "ltx": Tiny("ltx", _ltx, channels=128, pixels=32, frames=CLIP, extras=_mask, published=({"num_layers": 28},)),
    "lumina": Tiny("lumina", _lumina, extras=_mask, mixed=_BOTH, unreached=2, published=({"n_layers": 26},)),
    # Text and picture are filled up to a multiple of 32 tokens; 5 leaves both with some to fill here.
    "zimage": Tiny("lumina", _zimage, mixed=_BOTH, unreached=2, filled=5),
    # Lite and Pro of the models for clips.
    "kandinsky5": Tiny(
        "kandinsky5", _kandinsky5, frames=CLIP, extras=_pooled(), mixed=("text",), unreached=2, whole=True,
        published=_depths((32,), (60,), names=("num_visual_blocks",)),
    ),
    "kandinsky5_image": Tiny(
        "kandinsky5", lambda: _kandinsky5("Kandinsky5Image", 4 * 16), extras=_pooled(), mixed=("text",), unreached=2,
        whole=True, published=_depths((50,), names=("num_visual_blocks",)),
    ),
    # 8 learnt tokens stand in front of the text.
    "aura": Tiny(
        "aura", _aura, channels=4, front=8, published=_depths((36, 4), names=("n_layers", "n_double_layers"))
    ),
    # An architecture that has no resolver.
    "pixart": Tiny("", _pixart, channels=4),
}  # fmt: skip
HOST = tuple(int(number) for number in __version__.split(".")[:3])
KINDS = tuple(kind for kind, about in TINY.items() if about.family and about.since <= HOST)
UNETS = tuple(kind for kind in KINDS if TINY[kind].family in ("sd15", "sdxl"))
DITS = tuple(kind for kind in KINDS if kind not in UNETS)
VIDEO = tuple(kind for kind in KINDS if TINY[kind].frames > 1)
READS_CLIP = tuple(kind for kind in KINDS if TINY[kind].text == 77)


def _empty(kind, **changes):
    """The host's model without weights."""
    config, make = TINY[kind].build()
    config.manual_cast_dtype = None
    config.unet_config = {"dtype": torch.float32, **config.unet_config, **changes}
    return make().eval()


def model(kind, seed=0):
    """A MODEL of one of KINDS, or of "pixart", whose attention nobody knows."""
    with torch.inference_mode():
        made = _empty(kind)
        tiny._fill(made.diffusion_model, seed)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(made, load_device=cpu, offload_device=cpu)


def published(kind):
    """Networks with the blocks of models that people have, and no weights."""
    return [_empty(kind, **changes).diffusion_model for changes in TINY[kind].published]


def conditioning(kind, seed=0, batch=1, tokens=None):
    """A CONDITIONING that fits the kind."""
    about, generator = TINY[kind], torch.Generator().manual_seed(100 + seed)
    tokens = about.text if tokens is None else tokens
    extras = about.extras(batch, tokens, generator)
    return [[torch.randn(batch, tokens, tiny.CONTEXT, generator=generator), extras]]


def filling(kind, tokens):
    """Tokens that fill up as many of text or picture."""
    return -tokens % TINY[kind].filled


def latent(kind, batch=1, seed=0, size=(8, 12), frames=3):
    """A non-square LATENT of the kind's channels; a clip for video."""
    about, generator = TINY[kind], torch.Generator().manual_seed(200 + seed)
    times = (min(frames, about.frames),) if about.frames else ()
    return {"samples": torch.randn(batch, about.channels, *times, *size, generator=generator)}
