"""What the host's own errors about conditionings and latents of another model mean, in one sentence.

Nothing is judged before it runs: adapters of other packs may feed a network what its file does not tell of. Only
where a run has failed are the conditionings held against the network's configuration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import comfy.model_base
import torch

# First layers that the text meets: in Flux and Qwen, the Hunyuan video models, SD3, Wan, Lumina, LTXV, PixArt and
# AuraFlow. In UNets it meets many, and the configuration tells its width.
_TEXT_LAYERS = (
    "txt_in",
    "txt_in.input_embedder",
    "context_embedder",
    "text_embedding.0",
    "cap_embedder.1",
    "caption_projection.linear_1",
    "y_embedder.y_proj.fc1",
    "cond_seq_linear",
)
# Numbers of size, crop and score that follow the pooled text of an SDXL UNet, each embedded in this many channels.
_SDXL_NUMBERS, _SDXL_REFINER_NUMBERS, _SDXL_CHANNELS = 6, 5, 256

_POOLED = "pooled_output"
_REMEDY = "encode the prompt with the CLIP that belongs to this model"


@contextlib.contextmanager
def explained(guider: Any, channels: int | None = None) -> Iterator[None]:
    """Say what did not fit, where the host fails over a conditioning or a latent of another model.

    Args:
        guider: The guider of the run, with its conditionings as they were given to it.
        channels: Channels of the latent of the run, None where they were checked before.

    Raises:
        ValueError: In place of the host's error, which stays its cause.
    """
    try:
        yield
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        # Out of memory is a RuntimeError too.
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        sentence = _misfit(error, guider, channels)
        if sentence is None:
            raise
        raise ValueError(sentence) from error


def _misfit(error: Exception, guider: Any, channels: int | None) -> str | None:
    model = guider.model_patcher.model
    called = getattr(guider, "called", {})
    conds = {called.get(name, name): entries for name, entries in getattr(guider, "original_conds", {}).items()}
    if isinstance(error, KeyError):
        return _without_pooled(model, conds) if error.args == (_POOLED,) else None
    wanted = getattr(getattr(model, "latent_format", None), "latent_channels", channels)
    if channels is not None and channels != wanted:
        return (
            f"latent must have the {wanted} channels of this model, got {channels}; "
            "encode the picture with the model's own VAE."
        )
    return _of_other_width(model, conds)


def _without_pooled(model: Any, conds: Mapping[str, Any]) -> str | None:
    for name, entries in conds.items():
        if any(_POOLED not in entry for entry in entries):
            return f"{name} must hold the pooled text that {_named(model)} reads, got none; {_REMEDY}."
    return None


def _of_other_width(model: Any, conds: Mapping[str, Any]) -> str | None:
    wanted = (("cross_attn", "text", _text_width(model)), (_POOLED, "pooled text", _pooled_width(model)))
    for name, entries in conds.items():
        for key, called, width in wanted:
            if width is None:
                continue
            for entry in entries:
                got = getattr(entry.get(key), "shape", (width,))[-1]
                if got != width:
                    return (
                        f"{name} must hold {called} of {width} channels for {_named(model)}, got {got} channels; "
                        f"{_REMEDY}."
                    )
    return None


def _named(model: Any) -> str:
    """The host's name of a model's kind, which says more than that of its class."""
    return type(model.model_config).__name__


def _text_width(model: Any) -> int | None:
    width = model.model_config.unet_config.get("context_dim")
    layers = dict(model.diffusion_model.named_modules())
    widths = [width, *(getattr(layers.get(name), "in_features", None) for name in _TEXT_LAYERS)]
    return next((width for width in widths if isinstance(width, int)), None)


def _pooled_width(model: Any) -> int | None:
    config = model.model_config.unet_config
    if isinstance(model, comfy.model_base.SDXLRefiner):
        return int(config["adm_in_channels"]) - _SDXL_REFINER_NUMBERS * _SDXL_CHANNELS
    if isinstance(model, comfy.model_base.SDXL):
        return int(config["adm_in_channels"]) - _SDXL_NUMBERS * _SDXL_CHANNELS
    width = config.get("adm_in_channels" if isinstance(model, comfy.model_base.SD3) else "vec_in_dim")
    return width if isinstance(width, int) else None
