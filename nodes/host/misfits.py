"""What the host's own errors about conditionings and latents of another model mean, in one sentence.

Nothing is judged before it runs: adapters of other packs may feed a network what its file does not tell of. Only
where a run has failed are the conditionings held against the network's configuration, or where that tells no width,
against the layer that failed.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import comfy.model_base
import torch

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
    return _of_other_width(error, model, conds)


def _without_pooled(model: Any, conds: Mapping[str, Any]) -> str | None:
    for name, entries in conds.items():
        if any(_POOLED not in entry for entry in entries):
            return f"{name} must hold the pooled text that {_named(model)} reads, got none; {_REMEDY}."
    return None


def _of_other_width(error: Exception, model: Any, conds: Mapping[str, Any]) -> str | None:
    failed = _failed(error, model.diffusion_model)
    wanted = (("cross_attn", "text", _text_width(model)), (_POOLED, "pooled text", _pooled_width(model)))
    for name, entries in conds.items():
        for key, called, known in wanted:
            for entry in entries:
                got = getattr(entry.get(key), "shape", (0,))[-1]
                width = failed.get(got) if known is None else known
                if got and width not in (None, got):
                    return (
                        f"{name} must hold {called} of {width} channels for {_named(model)}, got {got} channels; "
                        f"{_REMEDY}."
                    )
    return None


def _failed(error: Exception, network: torch.nn.Module) -> dict[int, int]:
    """Return the channels that the layer takes in which a network failed, by those that it got; empty if none did."""
    layers = set(network.modules())
    for frame in reversed([frame for frame, _ in traceback.walk_tb(error.__traceback__)]):
        layer = frame.f_locals.get("self")
        weight = getattr(layer, "weight", None)
        if isinstance(layer, torch.nn.Module) and layer in layers and isinstance(weight, torch.Tensor):
            # What a layer is given is the first of its arguments.
            given = next((value for value in frame.f_locals.values() if isinstance(value, torch.Tensor)), None)
            return {} if given is None else {given.shape[-1]: weight.shape[-1]}
    return {}


def _named(model: Any) -> str:
    """The host's name of a model's kind, which says more than that of its class."""
    return type(model.model_config).__name__


def _text_width(model: Any) -> int | None:
    """Channels of a UNet's text, which its ControlNet meets before it does."""
    width = model.model_config.unet_config.get("context_dim")
    return width if isinstance(width, int) else None


def _pooled_width(model: Any) -> int | None:
    config = model.model_config.unet_config
    if isinstance(model, comfy.model_base.SDXLRefiner):
        return int(config["adm_in_channels"]) - _SDXL_REFINER_NUMBERS * _SDXL_CHANNELS
    if isinstance(model, comfy.model_base.SDXL):
        return int(config["adm_in_channels"]) - _SDXL_NUMBERS * _SDXL_CHANNELS
    width = config.get("adm_in_channels" if isinstance(model, comfy.model_base.SD3) else "vec_in_dim")
    return width if isinstance(width, int) else None
