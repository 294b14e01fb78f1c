"""The host's own model classes, in the sizes of the demo models."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.latent_formats
import comfy.model_detection
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base

from ...demo.models import FLOW_SHIFT


class ShapesLatent(comfy.latent_formats.LatentFormat):
    """Latents of the demo autoencoder: 4 channels at a quarter of the picture's size.

    Args:
        scale: Factor that gives the latents unit variance.
        preview: "factors" (4, 3) and "bias" (3) of the linear map to RGB in -1..1 for the host's quick previews.
    """

    latent_channels = 4
    # Newer hosts resize the zeros of EmptyLatentImage by this; host 0.8.0 does not know it.
    spacial_downscale_ratio = 4

    def __init__(self, scale: float = 1.0, preview: dict[str, Any] | None = None) -> None:
        self.scale_factor = scale
        if preview is not None:
            self.latent_rgb_factors = preview["factors"]
            self.latent_rgb_factors_bias = preview["bias"]


class ShapesSD15(comfy.supported_models.SD15):
    """An SD1.5 of the demo's size. The class is not entered into the host's list of models that it detects."""

    unet_extra_config: dict[str, Any] = {}
    latent_format = ShapesLatent


class ShapesSD3(comfy.supported_models.SD3):
    """An SD3 of the demo's size. The class is not entered into the host's list of models that it detects."""

    sampling_settings = {"shift": FLOW_SHIFT}
    latent_format = ShapesLatent


class _Multiple:
    """A channel multiplier such as 1.5 whose product with a channel count is a whole number, as layers want it."""

    def __init__(self, numerator: int, denominator: int) -> None:
        self._numerator, self._denominator = numerator, denominator

    def __mul__(self, channels: int) -> int:
        return channels * self._numerator // self._denominator

    __rmul__ = __mul__


def unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """Translate the configuration of a diffusers UNet of SD1.x type into that of the host's UNet.

    Args:
        config: config.json of a ``UNet2DConditionModel`` whose blocks all have cross attention.

    Returns:
        Arguments of the host's ``UNetModel``.
    """
    widths, blocks = config["block_out_channels"], config["layers_per_block"]
    return {
        "image_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "num_res_blocks": [blocks] * len(widths),
        "channel_mult": [_Multiple(width, widths[0]) for width in widths],
        "transformer_depth": [1] * blocks * len(widths),
        "transformer_depth_output": [1] * (blocks + 1) * len(widths),
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "context_dim": config["cross_attention_dim"],
        # diffusers calls the number of heads attention_head_dim in configurations of SD1.x.
        "num_heads": config["attention_head_dim"],
        "num_head_channels": -1,
        "legacy": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    }


def mmdit_config(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the host's ``MMDiT`` for tensors under the host's names."""
    found: dict[str, Any] = comfy.model_detection.detect_unet_config(tensors, "")
    return found


class _TextModel(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text model with a vocabulary of another size than CLIP's."""

    def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(config, dtype, device, operations)
        self.set_input_embeddings(
            operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
        )


class _TextEncoder(comfy.sd1_clip.SDClipModel):
    """Token states after the final norm, and the pooled state projected, as the denoisers were trained with."""

    def __init__(
        self, config: dict[str, Any], device: Any = "cpu", dtype: Any = None, model_options: Any = None
    ) -> None:
        super().__init__(
            device=device,
            max_length=config["max_position_embeddings"],
            layer="last",
            textmodel_json_config=dict(config),
            dtype=dtype,
            model_class=_TextModel,
            special_tokens={
                "start": config["bos_token_id"],
                "end": config["eos_token_id"],
                "pad": config["pad_token_id"],
            },
            return_projected_pooled=True,
            model_options=model_options or {},
        )


def clip_target(config: dict[str, Any], tokenizer: Path) -> comfy.supported_models_base.ClipTarget:
    """Return what the host's CLIP is built from.

    Args:
        config: config.json of the text encoder.
        tokenizer: Folder of the tokenizer's files.
    """
    piece = functools.partial(
        comfy.sd1_clip.SDTokenizer,
        tokenizer_path=str(tokenizer),
        max_length=config["max_position_embeddings"],
        embedding_size=config["hidden_size"],
    )
    target = comfy.supported_models_base.ClipTarget(
        functools.partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=piece), comfy.sd1_clip.SD1ClipModel
    )
    target.params["clip_model"] = functools.partial(_TextEncoder, config)
    return target


def vae_config(config: dict[str, Any]) -> dict[str, Any]:
    """Translate the configuration of a diffusers AutoencoderKL into that of the host's.

    Args:
        config: config.json of an ``AutoencoderKL``.

    Returns:
        The ``config`` argument of the host's VAE.
    """
    widths = config["block_out_channels"]
    sizes = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {"params": {"ddconfig": sizes, "embed_dim": config["latent_channels"]}}
