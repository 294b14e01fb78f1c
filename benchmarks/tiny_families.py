"""Tiny random models of every generating class of ComfyUI's supported_models, made by the host's own configurations.

What the running host does not have is left out, so that a row a family is one host's.
"""

import builtins
import dataclasses
import types
from collections.abc import Callable
from typing import Any

import comfy.ldm.audio.embedders
import comfy.model_base
import comfy.model_patcher
import comfy.nested_tensor
import comfy.supported_models
import torch

# Widths of the text and of the pooled text.
W, P = 32, 16


@dataclasses.dataclass(frozen=True)
class Family:
    """How a tiny model of a class is made, and what it is shown.

    Attributes:
        supported: Class of comfy.supported_models.
        unet: Its configuration, or what makes it.
        size: Rows and columns of the latent.
        frames: Frames of a clip.
        tokens: Tokens of the prompt.
        width: Their width.
        extras: Further entries of a conditioning, which differ from prompt to prompt: (generator, batch).
        after: What is put into the configuration once the host has read it.
        state: Weights by which the host tells kinds apart, or what makes them.
        make: What makes the model of the configuration; None for the host's own way.
        attach: Pictures and sizes beside the prompt, the same for every prompt: (generator).
        shapes: Shapes of the latent's streams, where the format does not tell them.
        note: What is special.
    """

    supported: str
    unet: Any
    size: tuple[int, int] = (8, 12)
    frames: int = 3
    tokens: int = 8
    width: int = W
    extras: Callable[..., dict[str, Any]] = lambda g, b: {}
    after: dict[str, Any] = dataclasses.field(default_factory=dict)
    state: Any = dataclasses.field(default_factory=dict)
    make: Callable[..., Any] | None = None
    attach: Callable[..., dict[str, Any]] = lambda g: {}
    shapes: tuple[tuple[int, ...], ...] = ()
    note: str = ""


FAMILIES: dict[str, Family] = {}


def fam(name: str, *args: Any, **more: Any) -> None:
    """Enter a family."""
    FAMILIES[name] = Family(*args, **more)


def build(name: str, seed: int = 0) -> Any:
    """A MODEL of a family with seeded weights.

    Raises:
        AttributeError, TypeError: If this host does not have it.
    """
    about = FAMILIES[name]
    with torch.inference_mode():
        config = getattr(comfy.supported_models, about.supported)(dict(_made(about.unet)))
        config.unet_config.update(about.after)
        config.unet_config["dtype"] = torch.float32
        config.manual_cast_dtype = None
        model = about.make(config) if about.make else config.get_model(dict(_made(about.state)), "", None)
        fill(model.diffusion_model, seed)
        for part in ("seconds_start_embedder", "seconds_total_embedder"):
            if hasattr(model, part):
                fill(getattr(model, part), 5)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


def conditioning(name: str, seed: int = 0, batch: int = 1) -> list[Any]:
    """A CONDITIONING of a family."""
    about, g = FAMILIES[name], torch.Generator().manual_seed(100 + seed)
    text = torch.randn(batch, about.tokens, about.width, generator=g)
    return [[text, {**about.extras(g, batch), **about.attach(torch.Generator().manual_seed(7))}]]


def latent(name: str, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    """A LATENT of a family."""
    about, g = FAMILIES[name], torch.Generator().manual_seed(200 + seed)
    parts = [torch.randn(batch, *shape, generator=g) for shape in about.shapes]
    if parts:
        return {"samples": parts[0] if len(parts) == 1 else comfy.nested_tensor.NestedTensor(parts)}
    latent_format = getattr(comfy.supported_models, about.supported).latent_format
    tail = {1: about.size[1:], 2: about.size, 3: (about.frames, *about.size)}[latent_format.latent_dimensions]
    return {"samples": torch.randn(batch, latent_format.latent_channels, *tail, generator=g)}


def fill(module: torch.nn.Module, seed: int) -> None:
    """Give every weight a seeded value of a sensible size; the host leaves them uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if not value.is_floating_point() or value.numel() == 0:
            continue
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
        elif name.endswith(("weight", "scale")):
            value.fill_(1.0)
        else:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.02)


def _made(value: Any) -> Any:
    return value() if callable(value) else value


def pooled(width: int = P) -> Callable[..., dict[str, Any]]:
    """Entries of a conditioning with pooled text."""
    return lambda g, b: {"pooled_output": torch.randn(b, width, generator=g)}


def unet(adm: int | None = None, cin: int = 4, **more: Any) -> dict[str, Any]:
    """Configuration of a UNet."""
    return {
        **dict(
            image_size=32, in_channels=cin, out_channels=4, model_channels=32, num_res_blocks=[1, 1],
            channel_mult=[1, 2], transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1],
            transformer_depth_middle=1, num_heads=4, num_head_channels=-1, use_spatial_transformer=True, context_dim=W,
            use_linear_in_transformer=False, adm_in_channels=adm, num_classes=None if adm is None else "sequential",
            legacy=False, use_temporal_attention=False,
        ),
        **more,
    }  # fmt: skip


def svd_unet(adm: int) -> dict[str, Any]:
    """Configuration of a UNet over time."""
    return unet(
        adm=adm, cin=8, use_linear_in_transformer=True, use_temporal_attention=True, use_temporal_resblock=True,
        extra_ff_mix_layer=True, use_spatial_context=True, merge_strategy="learned_with_images", merge_factor=0.0,
        video_kernel_size=[3, 1, 1], disable_temporal_crossattention=False, max_ddpm_temb_period=10000,
    )  # fmt: skip


def clipvision(g: torch.Generator, tokens: int = 5, width: int = 1024, embed: int = 768) -> types.SimpleNamespace:
    """What CLIPVisionEncode gives."""
    return types.SimpleNamespace(
        penultimate_hidden_states=torch.randn(1, tokens, width, generator=g),
        last_hidden_state=torch.randn(1, tokens, width, generator=g),
        image_embeds=torch.randn(1, embed, generator=g),
    )


def _numbers(**more: Any) -> dict[str, torch.Tensor]:
    kind = comfy.ldm.audio.embedders.NumberConditioner
    return kind(768, min_val=0, **{"max_val": 512, **more}).state_dict()


def _minimax_music(config: Any) -> Any:
    """One of its 36 layers, at full width."""
    import comfy.ldm.minimax_music.dit as dit

    dit.range = lambda n: builtins.range(1)
    try:
        return config.get_model({}, "", None)
    finally:
        del dit.range


# Configurations, a line of them as wide as it goes; lambdas have names here since they are entries like the others.
# ruff: noqa: E731
# fmt: off
SD3_CONFIG = {"in_channels": 16, "patch_size": 2, "out_channels": 16, "input_size": None, "adm_in_channels": P,
    "num_patches": 256, "pos_embed_max_size": 16, "pos_embed_scaling_factor": None, "context_size": W}
HEADS = {"num_heads": 4, "num_head_channels": -1}
SDXLADM = P + 6 * 256
fam("SD15", "SD15", lambda: unet(), after=HEADS, tokens=77)
fam("SD15_inpaint", "SD15", lambda: unet(cin=9), after=HEADS, tokens=77,
    note="mask + masked picture beside the noise", attach=lambda g: {"concat_latent_image": torch.randn(1, 4, 8, 12,
    generator=g), "concat_mask": (torch.rand(1, 1, 8, 12, generator=g) > 0.5).float()})
fam("SD15_ip2p", "SD15_instructpix2pix", lambda: unet(cin=8), after=HEADS, tokens=77,
    attach=lambda g: {"concat_latent_image": torch.randn(1, 4, 8, 12, generator=g)})
fam("SD20_eps", "SD20", lambda: unet(use_linear_in_transformer=True), after=HEADS, tokens=77,
    make=lambda c: comfy.model_base.BaseModel(c, model_type=comfy.model_base.ModelType.EPS))
fam("SD21_v", "SD20", lambda: unet(use_linear_in_transformer=True), after=HEADS, tokens=77,
    make=lambda c: comfy.model_base.BaseModel(c, model_type=comfy.model_base.ModelType.V_PREDICTION))
fam("SD21_unclip", "SD21UnclipL", lambda: unet(adm=1536, use_linear_in_transformer=True), after=HEADS, tokens=77,
    make=lambda c: comfy.model_base.SD21UNCLIP(c, c.noise_aug_config,
    model_type=comfy.model_base.ModelType.V_PREDICTION),
    attach=lambda g: {"unclip_conditioning": [{"clip_vision_output": clipvision(g), "strength": 1.0,
    "noise_augmentation": 0.1}]})
fam("SD_x4_upscaler", "SD_X4Upscaler", lambda: unet(cin=7, use_linear_in_transformer=True), after={**HEADS,
    "disable_self_attentions": [True, False], "num_classes": 1000}, tokens=77,
    attach=lambda g: {"concat_image": torch.rand(1, 3, 8, 12, generator=g)})
fam("LotusD", "LotusD", lambda: unet(adm=4, use_linear_in_transformer=True), after={**HEADS,
    "num_classes": "sequential"}, tokens=77)
fam("SDXL_base", "SDXL", lambda: unet(adm=SDXLADM), after=HEADS, tokens=77, extras=pooled())
fam("SDXL_zsnr_v", "SDXL", lambda: unet(adm=SDXLADM), after=HEADS, tokens=77, extras=pooled(),
    state={"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
fam("SDXL_edm_v(CosXL)", "SDXL", lambda: unet(adm=SDXLADM), after=HEADS, tokens=77, extras=pooled(),
    state={"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)})
fam("Playground25_EDM", "SDXL", lambda: unet(adm=SDXLADM), after=HEADS, tokens=77, extras=pooled(),
    state={"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)})
fam("SDXL_refiner", "SDXLRefiner", lambda: unet(adm=P + 5 * 256), after=HEADS, tokens=77, extras=pooled())
fam("SDXL_inpaint", "SDXL", lambda: unet(adm=SDXLADM, cin=9), after=HEADS, tokens=77, extras=pooled(),
    attach=lambda g: {"concat_latent_image": torch.randn(1, 4, 8, 12, generator=g), "concat_mask": (torch.rand(1, 1,
    8, 12, generator=g) > 0.5).float()})
fam("SDXL_ip2p", "SDXL_instructpix2pix", lambda: unet(adm=SDXLADM, cin=8), after=HEADS, tokens=77, extras=pooled(),
    attach=lambda g: {"concat_latent_image": torch.randn(1, 4, 8, 12, generator=g)})
for n in ("SSD1B", "Segmind_Vega"):
    fam(n, n, lambda: unet(adm=SDXLADM, transformer_depth_middle=-1), after=HEADS, tokens=77, extras=pooled())
for n in ("KOALA_700M", "KOALA_1B"):
    fam(n, n, lambda: unet(adm=SDXLADM, transformer_depth_middle=-2), after=HEADS, tokens=77, extras=pooled(),
        note="no middle block")
SVDC = lambda g: {"concat_latent_image": torch.randn(1, 4, 8, 12, generator=g), "motion_bucket_id": 127, "fps": 6,
    "augmentation_level": 0.0}
fam("SVD", "SVD_img2vid", lambda: svd_unet(768), after=HEADS, tokens=1, attach=SVDC, note="frames are the batch (3)")
fam("SV3D_u", "SV3D_u", lambda: svd_unet(256), after=HEADS, tokens=1, attach=SVDC)
fam("SV3D_p", "SV3D_p", lambda: svd_unet(1280), after=HEADS, tokens=1,
    attach=lambda g: {"concat_latent_image": torch.randn(1, 4, 8, 12, generator=g), "augmentation_level": 0.0,
    "elevation": [0.0, 0.0, 0.0], "azimuth": [0.0, 120.0, 240.0]})
fam("Zero123", "Stable_Zero123", lambda: unet(cin=8, context_dim=768), after=HEADS, tokens=1, width=772,
    state=lambda: {"cc_projection.weight": torch.randn(768, 772) * 0.03, "cc_projection.bias": torch.zeros(768)},
    attach=lambda g: {"concat_latent_image": torch.randn(1, 4, 8, 12, generator=g)})
fam("Cascade_C", "Stable_Cascade_C", {"stable_cascade_stage": "c", "c_cond": 64, "c_hidden": [64, 64], "nhead": [4,
    4], "blocks": [[1, 1], [1, 1]], "c_clip_text": W, "c_clip_text_pooled": P, "c_clip_img": 768}, extras=pooled())
fam("Cascade_B", "Stable_Cascade_B", {"stable_cascade_stage": "b", "c_cond": 64, "c_hidden": [32, 64], "nhead": [-1,
    4], "blocks": [[1, 1], [1, 1]], "block_repeat": [[1, 1], [1, 1]], "level_config": ["CT", "CTA"], "c_clip": P,
    "dropout": [0, 0.0]}, size=(8, 16), extras=pooled(), attach=lambda g: {"stable_cascade_prior": torch.randn(1, 16,
    4, 6, generator=g)})
fam("SD3", "SD3", SD3_CONFIG, after={"depth": 2, "context_embedder_config": {"target": "torch.nn.Linear",
    "params": {"in_features": W, "out_features": 128}}}, tokens=77, extras=pooled())
fam("SD35_medium", "SD3", SD3_CONFIG, after={"depth": 2, "num_blocks": 4, "x_block_self_attn_layers": [0, 1],
    "qk_norm": "rms", "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": W,
    "out_features": 128}}}, tokens=77, extras=pooled())
fam("AuraFlow", "AuraFlow", {"cond_seq_dim": W, "max_seq": 64, "dim": 32, "n_layers": 4, "n_double_layers": 2,
    "n_heads": 2, "global_conddim": 32})
PIX = {"hidden_size": 32, "depth": 2, "num_heads": 2, "caption_channels": W, "pe_interpolation": 1.0,
    "model_max_length": 8, "in_channels": 4}
fam("PixArt_alpha", "PixArtAlpha", {**PIX, "image_model": "pixart_alpha", "micro_condition": True, "hidden_size": 48,
    "num_heads": 2}, extras=lambda g, b: {"width": 512, "height": 512}, size=(64, 64))
fam("PixArt_sigma", "PixArtSigma", {**PIX, "image_model": "pixart_sigma", "micro_condition": False}, size=(64, 64))
HY = {"hidden_size": 64, "depth": 4, "num_heads": 2, "text_states_dim": W, "text_states_dim_t5": 24, "text_len": 8,
    "text_len_t5": 6}
HYX = lambda g, b: {"attention_mask": torch.ones(b, 8), "conditioning_mt5xl": torch.randn(b, 6, 24, generator=g),
    "attention_mask_mt5xl": torch.ones(b, 6)}
fam("HunyuanDiT", "HunyuanDiT", {**HY, "image_model": "hydit"}, extras=HYX)
fam("HunyuanDiT1", "HunyuanDiT1", {**HY, "image_model": "hydit1", "size_cond": True, "use_style_cond": True},
    extras=HYX)
FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": P, "context_in_dim": W,
    "hidden_size": 32, "mlp_ratio": 4.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6],
    "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}
FX = lambda g, b: {"pooled_output": torch.randn(b, P, generator=g), "guidance": 3.5}
fam("Flux_dev", "Flux", FLUX, extras=FX)
fam("Flux_schnell", "FluxSchnell", {**FLUX, "guidance_embed": False}, extras=FX)
fam("Flux_Fill", "FluxInpaint", {**FLUX, "in_channels": 96}, extras=FX,
    attach=lambda g: {"concat_latent_image": torch.randn(1, 16, 8, 12, generator=g), "concat_mask": (torch.rand(1, 1,
    64, 96, generator=g) > 0.5).float()})
fam("Flux_Depth/Canny", "Flux", {**FLUX, "in_channels": 32}, extras=FX,
    attach=lambda g: {"concat_latent_image": torch.randn(1, 16, 8, 12, generator=g)})
fam("Flux_Kontext", "Flux", FLUX, extras=FX, attach=lambda g: {"reference_latents": [torch.randn(1, 16, 6, 10,
    generator=g)]})
fam("LongCatImage", "LongCatImage", {**FLUX, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]})
fam("Ovis(yak)", "Flux", {**FLUX, "vec_in_dim": None, "guidance_embed": False, "yak_mlp": True, "txt_norm": True,
    "txt_ids_dims": [1, 2]}, note="Flux class, Ovis network")
FLUX2 = {**FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "axes_dim": [4, 4, 4, 4],
    "mlp_ratio": 3.0, "theta": 2000, "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False,
    "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3], "patch_size": 1,
    "vec_in_dim": None}
fam("Flux2_dev", "Flux2", FLUX2, extras=lambda g, b: {"guidance": 3.5}, size=(4, 6))
fam("Flux2_dev+ref", "Flux2", FLUX2, extras=lambda g, b: {"guidance": 3.5}, size=(4, 6),
    attach=lambda g: {"reference_latents": [torch.randn(1, 128, 3, 5, generator=g)]})
fam("Flux2_klein", "Flux2", {**FLUX2, "guidance_embed": False}, size=(4, 6))
CHROMA = {"in_channels": 64, "out_channels": 64, "context_in_dim": W, "hidden_size": 32, "mlp_ratio": 2.0,
    "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "in_dim": 64, "out_dim": 32, "hidden_dim": 32, "n_layers": 1, "txt_ids_dims": [],
    "vec_in_dim": None}
CX = lambda g, b: {"guidance": 0.0, "pooled_output": None}
fam("Chroma", "Chroma", {**CHROMA, "image_model": "chroma"}, extras=CX)
RAD = {**CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 4,
    "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 2, "nerf_max_freqs": 4, "nerf_tile_size": 0,
    "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": False,
    "use_sequential_txt_ids": False}
fam("Chroma_Radiance", "ChromaRadiance", RAD, extras=CX, size=(16, 24), note="pixel space")
fam("Chroma_Radiance_x0", "ChromaRadiance", {**RAD, "use_x0": True, "nerf_final_head_type": "linear"}, extras=CX,
    size=(16, 24))
fam("Lens", "Lens", {"image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2,
    "attention_head_dim": 16, "num_attention_heads": 2, "enc_hidden_dim": W, "axes_dims_rope": (4, 6, 6),
    "multi_layer_encoder_feature": False, "selected_layer_index": (0,)}, size=(4, 6))
LUM = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 48, "n_layers": 2, "n_refiner_layers": 1,
    "n_heads": 2, "n_kv_heads": 1, "multiple_of": 16, "ffn_dim_multiplier": 1.0, "qk_norm": True, "cap_feat_dim": W,
    "axes_dims": [8, 8, 8], "axes_lens": [64, 64, 64]}
fam("Lumina2", "Lumina2", LUM, extras=lambda g, b: {"attention_mask": torch.ones(b, 8, dtype=torch.long)})
fam("NewBie", "Lumina2", {**LUM, "clip_text_dim": P}, extras=lambda g, b: {"pooled_output": torch.randn(b, P,
    generator=g), "attention_mask": torch.ones(b, 8, dtype=torch.long)})
ZI = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "n_layers": 2, "n_refiner_layers": 1,
    "n_heads": 4, "n_kv_heads": 4, "multiple_of": 16, "ffn_dim_multiplier": 0.25, "qk_norm": True, "cap_feat_dim": W,
    "axes_dims": [16, 24, 24], "axes_lens": [64, 64, 64], "rope_theta": 256.0, "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 5}
fam("ZImage", "ZImage", ZI)
fam("ZImage_omni+ref", "ZImage", {**ZI, "siglip_feat_dim": 24}, attach=lambda g: {"reference_latents": [torch.randn(1,
    16, 6, 8, generator=g)]})
fam("ZImage_pixel", "ZImagePixelSpace", {**ZI, "image_model": "zimage_pixel", "in_channels": 3, "patch_size": 4,
    "decoder_in_channels": 48, "decoder_hidden_size": 32, "decoder_num_res_blocks": 1, "decoder_max_freqs": 4},
    size=(16, 24))
fam("PixelDiT_T2I", "PixelDiTT2I", {"image_model": "pixeldit_t2i", "num_groups": 4, "hidden_size": 64,
    "pixel_hidden_size": 8, "pixel_attn_hidden_size": 32, "pixel_num_groups": 2, "patch_depth": 2, "pixel_depth": 1,
    "patch_size": 8, "txt_embed_dim": W, "txt_max_length": 16}, size=(16, 24))
fam("PiD", "PiD", {"image_model": "pid", "lq_latent_channels": 16, "lq_hidden_dim": 16, "lq_num_res_blocks": 1,
    "num_groups": 4, "hidden_size": 64, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 32, "pixel_num_groups": 2,
    "patch_depth": 2, "pixel_depth": 1, "patch_size": 16, "txt_embed_dim": W, "txt_max_length": 16}, size=(64, 64),
    attach=lambda g: {"lq_latent": torch.randn(1, 16, 2, 2, generator=g),
    "degrade_sigma": torch.tensor([0.1])})
HID = {"image_model": "hidream", "attention_head_dim": 32, "axes_dims_rope": [16, 8, 8], "caption_channels": [W, W],
    "max_resolution": [128, 128], "in_channels": 16, "llama_layers": [0, 1], "num_attention_heads": 2,
    "num_routed_experts": 2, "num_activated_experts": 1, "num_layers": 1, "num_single_layers": 1, "out_channels": 16,
    "patch_size": 2, "text_emb_dim": P}
HIDX = lambda g, b: {"pooled_output": torch.randn(b, P, generator=g), "conditioning_llama3": torch.randn(b, 2, 8, W,
    generator=g)}
fam("HiDream_I1", "HiDream", HID, extras=HIDX)
fam("HiDream_E1", "HiDream", HID, extras=HIDX, attach=lambda g: {"concat_latent_image": torch.randn(1, 16, 8, 12,
    generator=g)})
fam("HiDream_O1", "HiDreamO1", {"image_model": "hidream_o1", "text_config_overrides": dict(vocab_size=151936,
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    head_dim=16, rope_dims=[4, 2, 2]), "vision_config_overrides": dict(hidden_size=32, num_heads=2,
    intermediate_size=48, depth=1, out_hidden_size=32)}, size=(64, 96), extras=lambda g,
    b: {"text_input_ids": torch.randint(0, 1000, (1, 9), generator=g)}, note="pixel space, noise_scale 8")
fam("OmniGen2", "Omnigen2", {"image_model": "omnigen2", "axes_dim_rope": [8, 8, 8], "axes_lens": [64, 64, 64],
    "ffn_dim_multiplier": None, "hidden_size": 48, "in_channels": 16, "multiple_of": 16, "norm_eps": 1e-05,
    "num_attention_heads": 2, "num_kv_heads": 1, "num_layers": 2, "num_refiner_layers": 1, "out_channels": None,
    "patch_size": 2, "text_feat_dim": W, "timestep_scale": 1000.0}, extras=lambda g,
    b: {"attention_mask": torch.ones(b, 8, dtype=torch.long)}, attach=lambda g: {"reference_latents": [torch.randn(1,
    16, 6, 8, generator=g)]})
fam("Boogu", "Boogu", {"image_model": "boogu", "axes_dim_rope": [8, 8, 8], "axes_lens": [64, 64, 64],
    "hidden_size": 48, "num_attention_heads": 2, "num_kv_heads": 1, "num_layers": 2, "num_double_stream_layers": 1,
    "num_refiner_layers": 1, "multiple_of": 16, "instruction_feat_dim": W}, extras=lambda g,
    b: {"attention_mask": torch.ones(b, 8, dtype=torch.long)})
QW = {"image_model": "qwen_image", "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 2,
    "attention_head_dim": 24, "num_attention_heads": 2, "joint_attention_dim": W, "axes_dims_rope": (4, 10, 10)}
fam("Qwen_Image", "QwenImage", QW, frames=1)
fam("Qwen_Image_Edit", "QwenImage", QW, frames=1, attach=lambda g: {"reference_latents": [torch.randn(1, 16, 1, 6, 10,
    generator=g)]})
fam("Qwen_Edit_2511", "QwenImage", {**QW, "default_ref_method": "index_timestep_zero"}, frames=1,
    attach=lambda g: {"reference_latents": [torch.randn(1, 16, 1, 6, 10, generator=g)]})
fam("Qwen_Layered", "QwenImage", {**QW, "use_additional_t_cond": True, "default_ref_method": "negative_index"},
    frames=3, attach=lambda g: {"reference_latents": [torch.randn(1, 16, 1, 8, 12, generator=g)]})
fam("MageFlow", "MageFlow", {"image_model": "mage_flow", "in_channels": 128, "num_layers": 2,
    "attention_head_dim": 24, "num_attention_heads": 2, "joint_attention_dim": W, "axes_dims_rope": (4, 10, 10)},
    size=(4, 6))
fam("JoyImage", "JoyImage", {"image_model": "joyimage", "patch_size": [1, 2, 2], "in_channels": 16, "hidden_size": 48,
    "num_attention_heads": 2, "text_dim": W, "num_layers": 2}, after={"rope_dim_list": [8, 8, 8]}, frames=1)
fam("Ideogram4", "Ideogram4", {"image_model": "ideogram4", "in_channels": 128, "num_layers": 2},
    after={"num_attention_heads": 2, "attention_head_dim": 64, "intermediate_size": 64, "adaln_dim": 16,
    "llm_features_dim": W, "mrope_section": [12, 10, 10]}, size=(4, 6))
fam("Krea2", "Krea2", {"image_model": "krea2", "features": 64, "txtdim": W, "heads": 2, "kvheads": 1, "layers": 2,
    "patch": 2, "channels": 16, "txtlayers": 1, "txtheads": 2, "txtkvheads": 2, "multiplier": 2}, frames=1)
HV = {"image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": P, "context_in_dim": W,
    "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6],
    "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}
HVX = lambda g, b: {"pooled_output": torch.randn(b, P, generator=g), "guidance": 6.0}
fam("HunyuanImage21", "HunyuanImage21", {**HV, "in_channels": 64, "out_channels": 64, "vec_in_dim": None,
    "axes_dim": [8, 8], "patch_size": [1, 1], "guidance_embed": False, "byt5": True}, extras=lambda g,
    b: {"conditioning_byt5small": torch.randn(b, 4, 1472, generator=g)}, size=(4, 6))
fam("HunyuanImage21_distilled", "HunyuanImage21", {**HV, "in_channels": 64, "out_channels": 64, "vec_in_dim": None,
    "axes_dim": [8, 8], "patch_size": [1, 1], "meanflow": True}, size=(4, 6))
fam("HunyuanImage21_refiner", "HunyuanImage21Refiner", {**HV, "in_channels": 128, "out_channels": 64,
    "vec_in_dim": None, "patch_size": [1, 1, 1], "meanflow": True}, size=(4, 6), frames=2,
    attach=lambda g: {"concat_latent_image": torch.randn(1, 32, 3, 4, 6, generator=g)}, shapes=((32, 3, 4, 6),),
    note="format folds frames into channels")
K5 = {"image_model": "kandinsky5", "in_text_dim": W, "in_text_dim2": P, "time_dim": 32, "model_dim": 48, "ff_dim": 64,
    "visual_embed_dim": 132, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (8, 8, 8)}
fam("Kandinsky5_video", "Kandinsky5", K5, extras=pooled())
fam("Kandinsky5_image", "Kandinsky5Image", {**K5, "visual_embed_dim": 64}, extras=pooled())
fam("Ernie_Image", "ErnieImage", {"image_model": "ernie", "hidden_size": 48, "num_attention_heads": 2,
    "num_layers": 2, "ffn_hidden_size": 64, "text_in_dim": W, "rope_axes_dim": (8, 8, 8)}, size=(4, 6))
fam("Mochi", "GenmoMochi", {"image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 2,
    "hidden_size_x": 48, "hidden_size_y": 32, "mlp_ratio_x": 256.0, "mlp_ratio_y": 384.0, "learn_sigma": False,
    "in_channels": 12, "qk_norm": True, "qkv_bias": False, "out_bias": True, "attn_drop": 0.0,
    "patch_embed_bias": True, "posenc_preserve_area": True, "timestep_mlp_bias": True, "attend_to_padding": False,
    "timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": W, "t5_token_length": 8, "rope_theta": 10000.0},
    extras=lambda g, b: {"attention_mask": torch.ones(b, 8, dtype=torch.long)})
fam("LTXV", "LTXV", {"image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 48, "attention_head_dim": 24,
    "num_attention_heads": 2, "caption_channels": W, "num_layers": 2}, extras=lambda g,
    b: {"attention_mask": torch.ones(b, 8, dtype=torch.long)}, size=(4, 6))
LTXAV = {"image_model": "ltxav", "connector_attention_head_dim": 16, "connector_num_attention_heads": 2,
    "connector_num_layers": 1, "in_channels": 128, "audio_in_channels": 128, "cross_attention_dim": 48,
    "audio_cross_attention_dim": 32, "attention_head_dim": 24, "audio_attention_head_dim": 16,
    "num_attention_heads": 2, "audio_num_attention_heads": 2, "caption_channels": W, "num_layers": 2}
fam("LTX2_audio_video", "LTXAV", LTXAV, width=2 * W, tokens=8, note="NestedTensor [video, audio]", shapes=((128, 3,
    4, 6), (8, 5, 16)))
fam("LTX2_video_alone", "LTXAV", LTXAV, width=2 * W, tokens=8, size=(4, 6), note="only the video stream given")
fam("HunyuanVideo", "HunyuanVideo", HV, extras=HVX)
fam("HunyuanVideo_I2V", "HunyuanVideoI2V", {**HV, "in_channels": 33}, extras=HVX,
    attach=lambda g: {"concat_latent_image": torch.randn(1, 16, 3, 8, 12, generator=g), "concat_mask": torch.ones(1,
    1, 3, 8, 12)})
fam("HunyuanVideo_I2V_v2(ref)", "HunyuanVideo", HV, extras=HVX, attach=lambda g: {"guiding_frame_index": 0,
    "ref_latent": torch.randn(1, 16, 1, 8, 12, generator=g)})
fam("SkyReels_I2V", "HunyuanVideoSkyreelsI2V", {**HV, "in_channels": 32}, extras=HVX,
    attach=lambda g: {"concat_latent_image": torch.randn(1, 16, 3, 8, 12, generator=g)})
HV15 = {**HV, "in_channels": 65, "out_channels": 32, "vec_in_dim": None, "depth_single_blocks": 0,
    "guidance_embed": False, "byt5": True, "use_cond_type_embedding": True, "vision_in_dim": 24, "meanflow_sum": True,
    "patch_size": [1, 1, 1]}
HV15X = lambda g, b: {"conditioning_byt5small": torch.randn(b, 4, 1472, generator=g), "pooled_output": None}
fam("HunyuanVideo15_t2v", "HunyuanVideo15", HV15, extras=HV15X, size=(4, 6))
fam("HunyuanVideo15_i2v", "HunyuanVideo15", HV15, extras=HV15X, size=(4, 6),
    attach=lambda g: {"concat_latent_image": torch.randn(1, 32, 3, 4, 6, generator=g), "concat_mask": torch.ones(1, 1,
    3, 4, 6), "clip_vision_output": clipvision(g, width=24)})
fam("HunyuanVideo15_SR", "HunyuanVideo15_SR_Distilled", {**HV15, "in_channels": 98, "meanflow": True}, extras=HV15X,
    size=(4, 6), attach=lambda g: {"concat_latent_image": torch.randn(1, 66, 3, 4, 6, generator=g)})
COS = {"image_model": "cosmos", "in_channels": 16, "out_channels": 16, "max_img_h": 240, "max_img_w": 240,
    "max_frames": 128, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "block_config": "FA-CA-MLP",
    "concat_padding_mask": True, "pos_emb_cls": "rope3d", "pos_emb_learnable": False, "pos_emb_interpolation": "crop",
    "block_x_format": "THWBD", "affline_emb_norm": True, "use_adaln_lora": True, "adaln_lora_dim": 16,
    "num_blocks": 2, "num_heads": 2, "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable", "crossattn_emb_channels": W}
fam("Cosmos1_t2v", "CosmosT2V", COS)
fam("Cosmos1_i2v", "CosmosI2V", {**COS, "in_channels": 17}, attach=lambda g: {"concat_mask": torch.ones(1, 1, 3, 8,
    12)})
CP2 = {"image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "concat_padding_mask": True,
    "crossattn_emb_channels": W, "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop",
    "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 16, "num_blocks": 2, "num_heads": 2,
    "extra_per_block_abs_pos_emb": False, "rope_enable_fps_modulation": False}
fam("CosmosPredict2_t2i", "CosmosT2IPredict2", CP2, frames=1)
fam("CosmosPredict2_i2v", "CosmosI2VPredict2", {**CP2, "in_channels": 17},
    attach=lambda g: {"concat_mask": torch.ones(1, 1, 3, 8, 12)})
fam("Anima", "Anima", {**CP2, "image_model": "anima", "crossattn_emb_channels": 1024}, width=1024, frames=1,
    extras=lambda g, b: {"t5xxl_ids": torch.randint(0, 1000, (6,), generator=g), "t5xxl_weights": torch.ones(6)})
WAN = {"image_model": "wan2.1", "model_type": "t2v", "dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 2,
    "in_dim": 16, "out_dim": 16, "text_dim": W, "text_len": 8, "freq_dim": 32, "patch_size": (1, 2, 2),
    "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-06}
fam("Wan21_t2v", "WAN21_T2V", WAN)
fam("Wan21_t2v+phantom", "WAN21_T2V", WAN, attach=lambda g: {"time_dim_concat": torch.randn(1, 16, 1, 8, 12,
    generator=g)})
fam("Wan_Bernini(context)", "WAN21_T2V", WAN, attach=lambda g: {"context_latents": [torch.randn(1, 16, 1, 8, 12,
    generator=g)]})
fam("Wan_causal_AR", "WAN21_CausalAR_T2V", {**WAN, "causal_ar": True})
I2V = lambda ch, frames=3: lambda g: {"concat_latent_image": torch.randn(1, ch, frames, 8, 12, generator=g),
    "concat_mask": torch.ones(1, 1, frames, 8, 12), "clip_vision_output": clipvision(g, width=1280)}
fam("Wan21_i2v", "WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36}, attach=I2V(16))
fam("Wan21_fun_control", "WAN21_FunControl2V", {**WAN, "model_type": "i2v", "in_dim": 48},
    attach=lambda g: {"concat_latent_image": torch.randn(1, 32, 3, 8, 12, generator=g),
    "clip_vision_output": clipvision(g, width=1280)})
fam("Wan22_fun_control+ref", "WAN21_FunControl2V", {**WAN, "model_type": "t2v", "in_dim": 48, "in_dim_ref_conv": 16},
    attach=lambda g: {"concat_latent_image": torch.randn(1, 32, 3, 8, 12, generator=g),
    "reference_latents": [torch.randn(1, 16, 1, 8, 12, generator=g)]})
fam("Wan21_camera", "WAN21_Camera", {**WAN, "model_type": "camera", "in_dim": 32},
    attach=lambda g: {"concat_latent_image": torch.randn(1, 16, 3, 8, 12, generator=g),
    "clip_vision_output": clipvision(g, width=1280), "camera_conditions": torch.randn(1, 24, 3, 64, 96, generator=g)})
fam("Wan22_camera", "WAN22_Camera", {**WAN, "model_type": "camera_2.2", "in_dim": 36},
    attach=lambda g: {"concat_latent_image": torch.randn(1, 16, 3, 8, 12, generator=g),
    "camera_conditions": torch.randn(1, 24, 3, 64, 96, generator=g)})
fam("Wan21_VACE", "WAN21_Vace", {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
    attach=lambda g: {"vace_frames": [torch.randn(1, 32, 3, 8, 12, generator=g)], "vace_mask": [torch.ones(1, 64, 3,
    8, 12)], "vace_strength": [1.0]})
fam("Wan21_VACE+ref", "WAN21_Vace", {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
    note="a reference frame in front of the latent (trim_latent)", frames=4,
    attach=lambda g: {"vace_frames": [torch.randn(1, 32, 4, 8, 12, generator=g)], "vace_mask": [torch.ones(1, 64, 4,
    8, 12)], "vace_strength": [1.0]})
fam("Wan21_HuMo", "WAN21_HuMo", {**WAN, "model_type": "humo", "in_dim": 36},
    attach=lambda g: {"audio_embed": torch.randn(1, 3, 8, 5, 1280, generator=g), "reference_latents": [torch.randn(1,
    16, 1, 8, 12, generator=g)]})
fam("Wan22_S2V", "WAN22_S2V", {**WAN, "model_type": "s2v"}, after={"audio_inject_layers": [0], "audio_dim": 32},
    attach=lambda g: {"audio_embed": torch.randn(1, 25, 32, 12, generator=g), "reference_latents": [torch.randn(1, 16,
    1, 8, 12, generator=g)]})
fam("Wan22_Animate", "WAN22_Animate", {**WAN, "model_type": "animate", "in_dim": 36, "motion_encoder_dim": 512},
    attach=lambda g: {"concat_latent_image": torch.randn(1, 16, 3, 8, 12, generator=g), "concat_mask": torch.ones(1,
    1, 3, 8, 12), "clip_vision_output": clipvision(g, width=1280), "pose_video_latent": torch.randn(1, 16, 2, 8, 12,
    generator=g)})
fam("Wan_Animate2", "WAN_Animate2", {**WAN, "model_type": "animate2", "in_dim": 36},
    attach=lambda g: {"concat_latent_image": torch.randn(1, 16, 3, 8, 12, generator=g), "concat_mask": torch.ones(1,
    1, 3, 8, 12), "clip_vision_output": clipvision(g, width=1280), "pose_video_latent": torch.randn(1, 16, 2, 8, 12,
    generator=g)})
fam("Wan22_ti2v_5B", "WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48}, size=(4, 6))
fam("Wan22_14B_high/low", "WAN21_T2V", WAN, note="one network of the pair; the switch tested apart")
fam("Wan_FlowRVS", "WAN21_FlowRVS", {**WAN, "model_type": "flow_rvs"})
fam("Wan_SCAIL", "WAN21_SCAIL", {**WAN, "model_type": "scail", "in_dim": 20},
    attach=lambda g: {"reference_latents": [torch.randn(1, 16, 1, 8, 12, generator=g)],
    "pose_video_latent": torch.randn(1, 16, 3, 4, 6, generator=g)})
fam("Wan_SCAIL2", "WAN21_SCAIL2", {**WAN, "model_type": "scail2", "in_dim": 20},
    attach=lambda g: {"reference_latents": [torch.randn(1, 16, 1, 8, 12, generator=g)],
    "pose_video_latent": torch.randn(1, 16, 3, 4, 6, generator=g)})
fam("WanDancer", "WAN22_WanDancer", {**WAN, "model_type": "wandancer", "in_dim": 36},
    after={"audio_inject_layers": [0], "music_dim": 16, "music_heads": 2, "music_latent_dim": 16}, attach=I2V(16))
CV = {"image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 64, "time_embed_dim": 32,
    "num_layers": 2, "in_channels": 16, "patch_size": 2, "text_embed_dim": W,
    "use_learned_positional_embeddings": False, "use_rotary_positional_embeddings": True, "max_text_seq_length": 8}
fam("CogVideoX_t2v", "CogVideoX_T2V", CV, note="V_PREDICTION_DDPM: network reads the raw state")
fam("CogVideoX_i2v", "CogVideoX_I2V", {**CV, "in_channels": 32},
    attach=lambda g: {"concat_latent_image": torch.randn(1, 16, 3, 8, 12, generator=g)})
fam("CogVideoX_inpaint(VOID)", "CogVideoX_Inpaint", {**CV, "in_channels": 48},
    attach=lambda g: {"concat_latent_image": torch.randn(1, 32, 3, 8, 12, generator=g)})
fam("SeedVR2", "SeedVR2", {"image_model": "seedvr2", "norm_eps": 1e-05, "num_layers": 2, "mlp_type": "normal",
    "vid_dim": 64, "txt_in_dim": W, "heads": 2, "head_dim": 32, "mm_layers": 2, "expand_ratio": 2,
    "rope_type": "rope3d", "rope_dim": 24}, attach=lambda g: {"condition": torch.randn(1, 17, 3, 8, 12, generator=g)})
SAUD = {"audio_model": "dit1.0", "io_channels": 64, "embed_dim": 64, "cond_token_dim": 768, "global_cond_dim": 1536,
    "depth": 2, "num_heads": 1, "project_cond_tokens": False, "global_cond_type": "prepend"}
fam("StableAudio1", "StableAudio", {**SAUD, "embed_dim": 768, "num_heads": 12}, width=768,
    make=lambda c: comfy.model_base.StableAudio1(c, _numbers(), _numbers()), size=(1, 24), extras=lambda g,
    b: {"seconds_start": 0, "seconds_total": 4})
fam("StableAudio3", "StableAudio3", {**SAUD, "io_channels": 256, "embed_dim": 768, "num_heads": 12,
    "global_cond_dim": 768, "global_cond_shared_embed": True, "global_cond_type": "adaLN",
    "timestep_features_type": "expo", "local_add_cond_dim": 257}, width=768,
    make=lambda c: comfy.model_base.StableAudio3(c, _numbers(max_val=384, fourier_features_type="expo")), size=(1,
    24))
fam("ACE_Step1", "ACEStep", {"audio_model": "ace", "attention_head_dim": 16, "in_channels": 8, "inner_dim": 32,
    "max_height": 16, "max_position": 32768, "max_width": 32768, "mlp_ratio": 2.5, "num_attention_heads": 2,
    "num_layers": 2, "out_channels": 8, "patch_size": [16, 1], "rope_theta": 1000000.0, "speaker_embedding_dim": 512,
    "text_embedding_dim": W, "ssl_encoder_depths": [2, 2], "ssl_latent_dims": [16, 16], "ssl_names": ["mert",
    "m-hubert"], "lyric_encoder_vocab_size": 100, "lyric_hidden_size": 1024}, size=(16, 24), extras=lambda g,
    b: {"conditioning_lyrics": torch.randint(0, 100, (b, 6), generator=g)}, note="4-D latent of audio")
fam("ACE_Step15", "ACEStep15", {"audio_model": "ace1.5", "hidden_size": 64, "intermediate_size": 64, "num_heads": 2,
    "encoder_hidden_size": 64, "encoder_num_heads": 2, "encoder_intermediate_size": 64, "num_dit_layers": 2},
    after={"text_hidden_dim": W, "num_kv_heads": 1, "head_dim": 32, "num_lyric_layers": 1, "num_timbre_layers": 1,
    "num_tokenizer_layers": 1, "fsq_dim": 64}, size=(1, 25), extras=lambda g,
    b: {"conditioning_lyrics": torch.randn(b, 6, W, generator=g)})
fam("MiniMaxMusic3", "MiniMaxMusic3", {"audio_model": "minimax_music3"}, width=8 * 4096, tokens=6,
    make=_minimax_music, size=(1, 24), extras=lambda g, b: {"conditioning_scale": torch.ones(1, 1, 1)},
    note="1 of 36 layers, full width")
fam("Hunyuan3D_2", "Hunyuan3Dv2", {"image_model": "hunyuan3d2", "in_channels": 64, "context_in_dim": W,
    "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 4, "depth": 2, "depth_single_blocks": 2, "qkv_bias": True,
    "guidance_embed": False}, size=(1, 24))
fam("Hunyuan3D_2mini", "Hunyuan3Dv2mini", {"image_model": "hunyuan3d2", "in_channels": 64, "context_in_dim": W,
    "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 4, "depth": 2, "depth_single_blocks": 2, "qkv_bias": True,
    "guidance_embed": True}, size=(1, 24), note="with guidance embed (turbo)")
fam("Hunyuan3D_2.1", "Hunyuan3Dv2_1", {"image_model": "hunyuan3d2_1", "in_channels": 64, "context_dim": W,
    "hidden_size": 64, "depth": 2, "num_heads": 4, "num_moe_layers": 1, "guidance_cond_proj_dim": None,
    "num_experts": 2, "moe_top_k": 1}, size=(1, 24))
fam("TripoSplat", "TripoSplat", {"image_model": "triposplat", "q_token_length": 16, "model_channels": 64,
    "cond_channels": W, "num_blocks": 2, "num_refiner_blocks": 1, "num_head_channels": 32},
    note="NestedTensor [latent, camera]", shapes=((16, 16), (1, 5)))
MMH3 = {"image_model": "minimax_h3", "hidden_size": 64, "num_layers": 2, "token_refiner_num_layers": 1,
    "num_attention_heads": 2, "attention_head_dim": 32, "ffn_hidden_size": 64, "text_dim": W,
    "timestep_input_dim": 32, "time_embed_hidden_size": 32, "time_embed_dim": 32, "rope_inv_freq_len": 4}
fam("MiniMaxH3_av", "MiniMaxH3", MMH3, note="NestedTensor [video, audio]", shapes=((24, 3, 4, 6), (32, 2, 12)))
# fmt: on
