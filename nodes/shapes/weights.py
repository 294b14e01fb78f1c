"""The demo models' files, and their tensors under the host's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.diffusers_convert
import comfy.model_detection
import comfy.utils
import torch
from safetensors import SafetensorError

# comfy.diffusers_convert counts the levels of a decoder from the end of SD's four.
_LEVELS_OF_SD = 4


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration of the demo models.

    Raises:
        ValueError: If it is missing or damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(_damaged(path)) from error
    return found


def read_part(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read one network of the demo models in diffusers layout.

    Args:
        folder: Folder with a config.json and one .safetensors file.

    Returns:
        Its configuration and its tensors.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    config = read_json(folder / "config.json")
    name = "model.safetensors" if folder.name == "text_encoder" else "diffusion_pytorch_model.safetensors"
    return config, read_tensors(folder / name)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of tensors of the demo models.

    Raises:
        ValueError: If it is missing or damaged.
    """
    try:
        tensors: dict[str, torch.Tensor] = comfy.utils.load_torch_file(str(path), safe_load=True)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(_damaged(path)) from error
    return tensors


def unet_tensors(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a diffusers UNet under the host's names, by the host's own map.

    Args:
        tensors: Tensors under the names of diffusers.
        config: Arguments of the host's ``UNetModel``.
    """
    names = comfy.utils.unet_to_diffusers(config)
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def mmdit_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a diffusers SD3 transformer under the host's names, by the host's own map."""
    # The host takes out what it knows; what is left over stays, for check_complete to see.
    unknown = dict(tensors)
    converted: dict[str, torch.Tensor] = comfy.model_detection.convert_diffusers_mmdit(unknown, "") or {}
    return {**unknown, **converted}


def text_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a text encoder under the host's names."""
    return {f"clip_l.transformer.{name}": tensor for name, tensor in tensors.items()}


def vae_tensors(tensors: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a diffusers autoencoder under the host's names, by the host's own map.

    Args:
        tensors: Tensors under the names of diffusers.
        levels: Levels of the autoencoder, at most four.
    """
    start = "decoder.up_blocks."
    shifted = {}
    for name, tensor in tensors.items():
        if name.startswith(start):
            level, rest = name[len(start) :].split(".", 1)
            name = f"{start}{int(level) + _LEVELS_OF_SD - levels}.{rest}"
        shifted[name] = tensor
    converted: dict[str, torch.Tensor] = comfy.diffusers_convert.convert_vae_state_dict(shifted)
    return converted


def check_complete(wanted: set[str], tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse tensors that are not those of a network: the host would only log it and go on with what is in memory.

    Args:
        wanted: Names of the network's tensors.
        tensors: Tensors under the host's names.
        path: Where they come from.

    Raises:
        ValueError: If one is missing or too many.
    """
    odd = sorted(wanted ^ set(tensors))
    if odd:
        raise ValueError(
            f"weights in {path} must be those of the demo model, got {len(odd)} tensors that do not fit, "
            f"{odd[0]!r} among them; install the pack again."
        )


def _damaged(path: Path) -> str:
    return f"demo models must lie in the pack's folder demo/weights, got no readable {path}; install the pack again."
