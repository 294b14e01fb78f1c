"""The demo models of the Shapes world as the host's MODEL, CLIP and VAE.

The files are those that diffusers reads; here they go into the host's own classes through the host's own
name maps, with the host's choice of devices and number types, so that whatever works on a checkpoint works
on them: patches, prompt weights, offloading.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths

from ...demo.models import KINDS, LCM_LORA, WEIGHTS
from ..host.compat import clip_of, is_streamed, patcher_class
from .network_classes import ShapesLatent, ShapesSD3, ShapesSD15, clip_target, mmdit_config, unet_config, vae_config
from .weights import (
    check_complete,
    mmdit_tensors,
    read_json,
    read_part,
    read_tensors,
    text_tensors,
    unet_tensors,
    vae_tensors,
)


def load_model(kind: str, weights: Path = WEIGHTS, disable_dynamic: bool = False) -> Any:
    """Load a demo denoiser.

    Args:
        kind: "eps" (SD1.5 type UNet) or "flow" (SD3 type transformer).
        weights: Folder of the demo models.
        disable_dynamic: Whether to leave out the host's dynamic weight loading, which newer hosts ask for.

    Returns:
        A MODEL.

    Raises:
        ValueError: If the kind is unknown or a file is missing or damaged.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}; choose one of these.")
    folder = weights / ("unet" if kind == "eps" else "transformer")
    config, tensors = read_part(folder)
    if kind == "eps":
        settings = unet_config(config)
        tensors = unet_tensors(tensors, settings)
        host_config: Any = ShapesSD15(settings)
    else:
        tensors = mmdit_tensors(tensors)
        host_config = ShapesSD3(mmdit_config(tensors))
    host_config.latent_format = _latent_format(weights)

    management = comfy.model_management
    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    supported = list(host_config.supported_inference_dtypes)
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(tensors),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(tensors),
    )
    host_config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, load_device, supported))
    network = host_config.get_model(tensors, "")
    check_complete(set(network.diffusion_model.state_dict()), tensors, folder)
    if not management.is_device_cpu(offload_device):
        network.to(offload_device)
    patcher = patcher_class(disable_dynamic)(network, load_device=load_device, offload_device=offload_device)
    dynamic = {"assign": True} if is_streamed(patcher) else {}
    network.load_model_weights(tensors, "", **dynamic)
    patcher.cached_patcher_init = (load_model, (kind, weights))
    return patcher


def check_lcm(kind: str) -> None:
    """Refuse the LCM-LoRA for a model that it is not made for.

    Raises:
        ValueError: If the kind is not "eps".
    """
    if kind != "eps":
        raise ValueError(f"kind must be eps for the LCM LoRA, got {kind!r}; switch lcm off.")


def with_lcm_lora(model: Any, kind: str, weights: Path = WEIGHTS) -> Any:
    """Add the LCM-LoRA of the eps demo model by the host's own LoRA code.

    Args:
        model: A MODEL of ``load_model``; it is not changed.
        kind: Its kind.
        weights: Folder of the demo models.

    Returns:
        A clone of the MODEL with the LoRA at strength 1.

    Raises:
        ValueError: If the kind is not "eps", or the file is missing or damaged or not that of this model.
    """
    check_lcm(kind)
    path = weights / LCM_LORA.relative_to(WEIGHTS)
    tensors = read_tensors(path)
    patched = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)[0]
    # The host only logs what does not fit. Each layer has three tensors: two factors and their scale.
    if 3 * len(patched.patches) != len(tensors):
        raise ValueError(
            f"LoRA in {path} must fit the demo model, got {len(patched.patches)} layers of it from {len(tensors)} "
            "tensors; install the pack again."
        )
    return patched


def load_clip(weights: Path = WEIGHTS, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Load the demo text encoder with its tokenizer.

    Args:
        weights: Folder of the demo models.
        disable_dynamic: Whether to leave out the host's dynamic weight loading, which newer hosts ask for.

    Returns:
        A CLIP.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    folder = weights / "text_encoder"
    config, tensors = read_part(folder)
    read_json(weights / "tokenizer" / "vocab.json")
    tensors = text_tensors(tensors)
    clip = clip_of(
        clip_target(config, weights / "tokenizer"),
        tensors,
        disable_dynamic,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=comfy.utils.calculate_parameters(tensors),
    )
    # CLIP's temperature is of no use to a denoiser and not among the files.
    names = {name for name in clip.cond_stage_model.state_dict() if not name.endswith(".logit_scale")}
    check_complete(names, tensors, folder)
    clip.patcher.cached_patcher_init = (_load_clip_patcher, (weights,))
    return clip


def load_vae(weights: Path = WEIGHTS) -> comfy.sd.VAE:
    """Load the demo autoencoder.

    Args:
        weights: Folder of the demo models.

    Returns:
        A VAE whose latents have a quarter of the picture's size.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    folder = weights / "vae"
    config, tensors = read_part(folder)
    levels = len(config["block_out_channels"])
    tensors = vae_tensors(tensors, levels)
    vae = comfy.sd.VAE(sd=dict(tensors), config=vae_config(config))
    check_complete(set(vae.get_sd()), tensors, folder)
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (levels - 1)
    vae.latent_channels = config["latent_channels"]
    vae.patcher.cached_patcher_init = (_load_vae_patcher, (weights,))
    return vae


def _load_clip_patcher(weights: Path, disable_dynamic: bool = False) -> Any:
    return load_clip(weights, disable_dynamic).patcher


def _load_vae_patcher(weights: Path, disable_dynamic: bool = False) -> Any:
    return load_vae(weights).patcher


def _latent_format(weights: Path) -> ShapesLatent:
    preview = weights / "vae" / "latent_rgb.json"
    scale = read_json(weights / "vae" / "config.json")["scaling_factor"]
    return ShapesLatent(scale, read_json(preview) if preview.is_file() else None)
