"""The LCM-LoRA of the eps demo model: its file, its noise levels, and `python -m retrace.demo.lcm`, which measures it.

A latent consistency model predicts, from any level of the teacher's guided path, where that path ends, so that few
levels with fresh noise between them make a picture. Luo et al. 2023, arXiv:2310.04378 and arXiv:2311.05556 (the LoRA).

The file has the keys and the layout of the published LCM-LoRAs: for each layer `lora_unet_<name>.lora_down.weight`,
`.lora_up.weight` and `.alpha`, and the layer's weight becomes W + alpha / rank * up @ down.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import measure, models

TRAINED_STEPS = 1000
SOLVER_STEPS = 50  # levels on the path that are distilled: timesteps 19, 39, ... 999, as ComfyUI's "lcm" sampling asks
SKIP = TRAINED_STEPS // SOLVER_STEPS
RANK = 10  # the largest round number with a file below 1 MB
# As the published LCM-LoRAs: everything but the first and the last convolution and the embedding of the timestep.
LEFT_OUT = ("conv_in", "conv_out", "time_embedding")


def layers(network: nn.Module) -> dict[str, Tensor]:
    """Weights of a diffusers UNet that the LoRA changes, by the name of their layer."""
    return {
        name: layer.weight
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not name.startswith(LEFT_OUT)
    }


def key(layer: str) -> str:
    """The layer's name in the file."""
    return "lora_unet_" + layer.replace(".", "_")


def change(up: Tensor, down: Tensor, shape: torch.Size) -> Tensor:
    """The product of both factors in the shape of the layer's weight."""
    return (up.flatten(1) @ down.flatten(1)).reshape(shape)


def save(factors: dict[str, tuple[Tensor, Tensor]], path: Path = models.LCM_LORA) -> None:
    """Write (up, down) of each layer as fp16."""
    tensors = {}
    for layer, (up, down) in factors.items():
        tensors[f"{key(layer)}.lora_up.weight"] = up.detach().half().contiguous()
        tensors[f"{key(layer)}.lora_down.weight"] = down.detach().half().contiguous()
        # The product is taken as it is.
        tensors[f"{key(layer)}.alpha"] = torch.tensor(float(down.shape[0]), dtype=torch.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"})


@torch.no_grad()
def apply(network: nn.Module, path: Path = models.LCM_LORA) -> None:
    """Add the LoRA to the weights of a diffusers UNet, in place.

    Raises:
        ValueError: If the file is not one for this network.
    """
    tensors = load_file(path)
    for name, weight in layers(network).items():
        try:
            up, down, alpha = (
                tensors.pop(f"{key(name)}.{part}") for part in ("lora_up.weight", "lora_down.weight", "alpha")
            )
        except KeyError as error:
            raise ValueError(
                f"{path.name} must have a change of every layer, got none of {name}; make it again."
            ) from error
        weight += (float(alpha) / down.shape[0] * change(up.float(), down.float(), weight.shape)).to(weight)
    if tensors:
        raise ValueError(f"{path.name} must fit the network, got {next(iter(tensors))!r} too; make it again.")


def kept() -> Tensor:
    """Share a of the clean latent in the state sqrt(a) x0 + sqrt(1 - a) n of each trained timestep, shape (1000,)."""
    schedule = models.EPS_SCHEDULE
    roots = torch.linspace(
        schedule["beta_start"] ** 0.5, schedule["beta_end"] ** 0.5, TRAINED_STEPS, dtype=torch.float64
    )
    return torch.cumprod(1 - roots**2, 0).float()


def levels(steps: int) -> tuple[list[float], list[float]]:
    """Timesteps (steps) and falling sigmas (steps + 1, the last 0) as ComfyUI's `sgm_uniform` on its "lcm" sampling."""
    known = np.arange(SKIP - 1, TRAINED_STEPS, SKIP)
    share = kept().double().numpy()[known]
    trained = 0.5 * np.log((1 - share) / share)
    asked = np.interp(np.linspace(known[-1], known[0], steps + 1)[:-1], known, trained)
    nearest = known[np.abs(asked[:, None] - trained).argmin(1)]
    return nearest.astype(float).tolist(), [*np.exp(asked).tolist(), 0.0]


@torch.inference_mode()
def sample(model: models.ShapesModel, captions: Sequence[str], steps: int, cfg: float, seed: int) -> np.ndarray:
    """Pictures of captions by multistep consistency sampling, x' = denoised + sigma' n with fresh n, in float32.

    Args:
        model: The eps demo model, with the LoRA added or without.
        captions: B captions.
        steps: Levels; each costs one call, and one more without the caption where cfg is not 1.
        cfg: Guidance scale; 1 is what the LoRA is made for.
        seed: Seed of the noise.

    Returns:
        Pictures, uint8, shape (B, 64, 64, 3).
    """
    timesteps, sigmas = levels(steps)
    generator = torch.Generator().manual_seed(seed)
    noises = [torch.randn((len(captions), 4, 16, 16), generator=generator) for _ in range(steps)]
    pictures = []
    for first in range(0, len(captions), measure.BATCH):
        rows = slice(first, first + measure.BATCH)
        denoised = measure.denoiser(model, captions[rows], cfg)
        x = noises[0][rows] * sigmas[0]
        for i, timestep in enumerate(timesteps):
            x = denoised(x, sigmas[i], timestep)
            if i + 1 < steps:
                x = x + sigmas[i + 1] * noises[i + 1][rows]
        pictures.append(measure.decode(model, x))
    return np.concatenate(pictures)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="held-out captions")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lora", type=Path, default=models.LCM_LORA, help="file of the LoRA")
    parser.add_argument("--sheet", type=Path, help="write the pictures with the LoRA as PNG")
    chosen = parser.parse_args(arguments)
    try:
        scenes = measure.unseen(chosen.count, chosen.seed)
    except ValueError as error:
        parser.error(str(error))
    print(f"{chosen.count} held-out captions, {chosen.steps} lcm steps, cfg {chosen.cfg:g}, seed {chosen.seed}")
    print("right in %".ljust(12) + "".join(title.rjust(12) for title in (*measure.COLUMNS, "all")))
    model: Any = models.load("eps")
    for name in ("without", "with LoRA"):
        if name != "without":
            apply(model.denoiser, chosen.lora)
        pictures = sample(model, [scene.caption for scene in scenes], chosen.steps, chosen.cfg, chosen.seed)
        found = measure.verdicts(scenes, pictures)
        found["all"] = np.all(list(found.values()), axis=0)
        print(name.ljust(12) + "".join(f"{100 * right.mean():12.1f}" for right in found.values()), flush=True)
    if chosen.sheet:
        measure.sheet(pictures, found["all"]).save(chosen.sheet)


if __name__ == "__main__":
    main()
