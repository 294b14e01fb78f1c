"""Tiny models of the host's own classes, as the host has them: built under inference_mode, random but seeded."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.latent_formats
import comfy.ldm.flux.model
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch

CONTEXT = 32
POOLED = 16
# Six numbers of size and crop, each embedded in 256 channels, follow the pooled text in SDXL.
SDXL_SIZES = 6 * 256

KINDS = ("sd15", "sd15_v", "sdxl", "sd3", "flux", "wan")
FLOWS = ("sd3", "flux", "wan")


# Scale of the last layer of a tame network. At 1 a step at cfg 7.5 multiplies what rounding leaves, by 15 in the UNets
# and by 5 in Flux, and a walk of four steps turns the last bits of another kernel into another picture. sigma begins at
# 15 for the UNets and at 1 for the others, so that a prompt still changes a latent by about its own size.
LAST_LAYER = {"out.2.weight": 0.01, "final_layer.linear.weight": 0.1, "head.head.weight": 0.1}


def _fill(module, seed):
    """Give every weight a seeded value of a sensible size; the host leaves them uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if not value.is_floating_point() or value.numel() == 0:
            continue
        if value.ndim > 1:
            fan = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) / fan**0.5)
        elif name.endswith(("weight", "scale")):
            value.fill_(1.0)
        else:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.02)


def _unet_config(adm):
    return dict(
        image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2],
        transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1], transformer_depth_middle=1, num_heads=4,
        num_head_channels=-1, use_spatial_transformer=True, context_dim=CONTEXT, use_linear_in_transformer=False,
        adm_in_channels=adm, num_classes=None if adm is None else "sequential", legacy=False,
        use_temporal_attention=False, dtype=torch.float32,
    )  # fmt: skip


def _own_heads(config):
    """Undo what BASE.__init__ did: it writes the heads of the real model into the configuration."""
    config.unet_config.update(num_heads=4, num_head_channels=-1)


def _build(kind):
    supported, base = comfy.supported_models, comfy.model_base
    if kind in ("sd15", "sd15_v"):
        config = supported.SD15(_unet_config(None))
        kind_of_output = base.ModelType.V_PREDICTION if kind == "sd15_v" else base.ModelType.EPS
        _own_heads(config)
        return config, lambda: base.BaseModel(config, model_type=kind_of_output)
    if kind == "sdxl":
        config = supported.SDXL(_unet_config(POOLED + SDXL_SIZES))
        _own_heads(config)
        return config, lambda: base.SDXL(config, model_type=base.ModelType.EPS)
    if kind == "sd3":
        linear = dict(target="torch.nn.Linear", params=dict(in_features=CONTEXT, out_features=64))
        config = supported.SD3(dict(
            in_channels=16, patch_size=2, out_channels=16, depth=1, input_size=None, adm_in_channels=POOLED,
            context_embedder_config=linear, num_patches=256, pos_embed_max_size=16, pos_embed_scaling_factor=None,
            context_size=CONTEXT, dtype=torch.float32,
        ))  # fmt: skip
        return config, lambda: base.SD3(config)
    if kind == "flux":
        unet = dict(
            image_model="flux", in_channels=16, out_channels=16, vec_in_dim=POOLED, context_in_dim=CONTEXT,
            hidden_size=32, mlp_ratio=4.0, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[4, 6, 6], theta=10000,
            patch_size=2, qkv_bias=True, guidance_embed=True, dtype=torch.float32,
        )  # fmt: skip
        if "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__:
            unet["txt_ids_dims"] = []
        config = supported.Flux(unet)
        return config, lambda: base.Flux(config)
    config = supported.WAN21_T2V(dict(
        image_model="wan2.1", model_type="t2v", dim=32, ffn_dim=64, num_heads=2, num_layers=1, in_dim=16, out_dim=16,
        text_dim=CONTEXT, text_len=8, freq_dim=32, patch_size=(1, 2, 2), window_size=(-1, -1), qk_norm=True,
        cross_attn_norm=True, eps=1e-6, dtype=torch.float32,
    ))  # fmt: skip
    return config, lambda: base.WAN21(config)


def model(kind, seed=0, dtype=torch.float32, tame=False):
    """A MODEL of one of KINDS, its network in a dtype; a tame one does not enlarge what rounding leaves."""
    with torch.inference_mode():
        config, make = _build(kind)
        config.unet_config["dtype"] = dtype
        config.manual_cast_dtype = None
        made = make()
        _fill(made.diffusion_model, seed)
        if tame:
            for name, value in made.diffusion_model.named_parameters():
                value.mul_(LAST_LAYER.get(name, 1.0))
        made.eval()
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(made, load_device=cpu, offload_device=cpu)


def control_net(kind, seed=0):
    """A CONTROL_NET for the UNets of this file, whose answer is as large as theirs."""
    with torch.inference_mode():
        shape = {
            name: value
            for name, value in _unet_config(POOLED + SDXL_SIZES if kind == "sdxl" else None).items()
            # The side that goes up again, which a ControlNet has not.
            if name not in ("out_channels", "transformer_depth_output", "use_temporal_attention")
        }
        network = comfy.cldm.cldm.ControlNet(hint_channels=3, operations=comfy.ops.disable_weight_init, **shape)
        _fill(network, seed)
        network.eval()
        cpu = torch.device("cpu")
        return comfy.controlnet.ControlNet(network, load_device=cpu)


def conditioning(kind, seed=0, batch=1):
    """A CONDITIONING that fits the kind."""
    generator = torch.Generator().manual_seed(100 + seed)
    tokens = 77 if kind.startswith("sd") else 8
    extras = {}
    if kind in ("sdxl", "sd3", "flux"):
        extras["pooled_output"] = torch.randn(batch, POOLED, generator=generator)
    if kind == "flux":
        extras["guidance"] = 2.0
    return [[torch.randn(batch, tokens, CONTEXT, generator=generator), extras]]


def latent(kind, batch=1, seed=0, size=(8, 12)):
    """A non-square LATENT of the kind's channels; a clip of three frames for video."""
    generator = torch.Generator().manual_seed(200 + seed)
    channels = 4 if kind in ("sd15", "sd15_v", "sdxl") else 16
    frames = (3,) if kind == "wan" else ()
    return {"samples": torch.randn(batch, channels, *frames, *size, generator=generator)}
