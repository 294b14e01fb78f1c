"""Measure the demo models: `python -m retrace.demo.measure`.

Samples each denoiser from seeded noise for captions that were never trained on, lets the rule-based
reader look at the pictures, and prints in how many percent it finds what the caption asked for. The
autoencoder is measured by the PSNR of pictures that were never trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import models, reader, world

BATCH = 50
# What the table shows, and where a Reading and a Scene keep it.
COLUMNS = {"object": "colour", "background": "background", "shape": "shape", "size": "size", "position": "position"}


def unseen(count: int, seed: int = 0) -> list[world.Scene]:
    """Held-out scenes, chosen by a seed without repetition.

    Raises:
        ValueError: If there are not so many.
    """
    known = list(world.scenes(held_out=True))
    if not 1 <= count <= len(known):
        raise ValueError(f"count must be between 1 and {len(known)}, the held-out scenes, got {count}; choose 200.")
    order = np.random.default_rng(seed).permutation(len(known))
    return [known[i] for i in order[:count]]


def levels(kind: str, steps: int) -> tuple[list[float], list[float]]:
    """Falling sigmas (steps + 1, the last 0) and the timesteps (steps) that the network is told.

    eps: timesteps at equal distances from 999 to 0, sigma interpolated in log sigma between the trained
    levels sqrt((1 - a) / a), as ComfyUI's scheduler `normal`. flow: sigma = 3 s / (1 + 2 s), s falling
    from 1 to 0 at equal distances; the timestep is 1000 sigma.
    """
    if kind == "flow":
        shift = models.FLOW_SHIFT
        even = [1 - i / steps for i in range(steps + 1)]
        sigmas = [shift * s / (1 + (shift - 1) * s) for s in even]
        return sigmas, [1000 * sigma for sigma in sigmas[:-1]]
    schedule = models.EPS_SCHEDULE
    roots = np.linspace(schedule["beta_start"] ** 0.5, schedule["beta_end"] ** 0.5, schedule["num_train_timesteps"])
    kept = np.cumprod(1 - roots**2)
    timesteps = np.linspace(len(kept) - 1, 0, steps)
    trained = 0.5 * np.log((1 - kept) / kept)
    return [*np.exp(np.interp(timesteps, np.arange(len(kept)), trained)).tolist(), 0.0], timesteps.tolist()


def denoiser(
    model: models.ShapesModel, captions: Sequence[str], cfg: float
) -> Callable[[Tensor, float, float], Tensor]:
    """The guided `denoised(x, sigma, timestep)` of a batch of captions.

    eps:  denoised = x - sigma eps(x / sqrt(1 + sigma^2), timestep)
    flow: denoised = x - sigma v(x, timestep)
    """
    states, pooled = models.encode_text(model, [*captions, *[""] * len(captions)])

    def denoised(x: Tensor, sigma: float, timestep: float) -> Tensor:
        twice = torch.cat([x, x])
        times = torch.full((len(twice),), timestep)
        if model.kind == "eps":
            out = model.denoiser(twice / (1 + sigma**2) ** 0.5, times, states).sample
        else:
            out = model.denoiser(twice, states, pooled, times).sample
        wanted, empty = (twice - sigma * out).chunk(2)
        return empty + cfg * (wanted - empty)

    return denoised


@torch.inference_mode()
def sample(model: models.ShapesModel, captions: Sequence[str], steps: int, cfg: float, seed: int) -> np.ndarray:
    """Pictures of captions by Euler steps x' = x + (sigma' - sigma) (x - denoised) / sigma, in float32.

    Args:
        model: A demo model.
        captions: B captions.
        steps: Euler steps; each costs one call with and one without the caption.
        cfg: Guidance scale.
        seed: Seed of the noise; picture i depends on (seed, i) alone.

    Returns:
        Pictures, uint8, shape (B, 64, 64, 3).
    """
    sigmas, timesteps = levels(model.kind, steps)
    noise = torch.randn((len(captions), 4, 16, 16), generator=torch.Generator().manual_seed(seed))
    pictures = []
    for first in range(0, len(captions), BATCH):
        x = noise[first : first + BATCH]
        if model.kind == "eps":
            x = x * (1 + sigmas[0] ** 2) ** 0.5
        denoised = denoiser(model, captions[first : first + BATCH], cfg)
        for sigma, sigma_next, timestep in zip(sigmas, sigmas[1:], timesteps, strict=False):
            x = x + (sigma_next - sigma) / sigma * (x - denoised(x, sigma, timestep))
        pictures.append(decode(model, x))
    return np.concatenate(pictures)


def decode(model: models.ShapesModel, latents: Tensor) -> np.ndarray:
    """Pictures, uint8, shape (B, H, W, 3), of scaled latents."""
    pixels = model.vae.decode(latents / model.vae.config.scaling_factor).sample
    rounded: np.ndarray = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return rounded


def verdicts(scenes: Sequence[world.Scene], pictures: np.ndarray) -> dict[str, np.ndarray]:
    """For each column of the table, whether the reader found in each picture what its scene says."""
    seen = [reader.read(picture) for picture in pictures]
    return {
        title: np.array([getattr(s, name) == getattr(r, name) for s, r in zip(scenes, seen, strict=True)])
        for title, name in COLUMNS.items()
    }


@torch.inference_mode()
def vae_psnr(vae: torch.nn.Module, scenes: Sequence[world.Scene], seed: int) -> np.ndarray:
    """PSNR in dB of each picture after encoding and decoding, 8-bit rounded, shape (B,)."""
    pictures, _ = world.render(scenes, seed)
    decibels = []
    for first in range(0, len(pictures), BATCH):
        original = pictures[first : first + BATCH]
        pixels = torch.from_numpy(original).permute(0, 3, 1, 2).float() / 127.5 - 1
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample  # type: ignore[operator]
        rounded = ((decoded + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
        error = ((rounded - original.astype(np.float64)) ** 2).mean((1, 2, 3))
        decibels.append(10 * np.log10(255**2 / np.maximum(error, 1e-10)))
    return np.concatenate(decibels)


def sheet(pictures: np.ndarray, right: np.ndarray, columns: int = 20) -> Image.Image:
    """All pictures in rows; those where something is wrong stand in a magenta frame."""
    side, frame = world.SIZE, 3
    cell = side + 2 * frame
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (min(columns, len(pictures)) * cell, rows * cell), (128, 128, 128))
    for i, picture in enumerate(pictures):
        x, y = i % columns * cell, i // columns * cell
        if not right[i]:
            canvas.paste((255, 0, 255), (x, y, x + cell, y + cell))
        canvas.paste(Image.fromarray(picture), (x + frame, y + frame))
    return canvas


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=(*models.KINDS, "vae", "all"), default="all")
    parser.add_argument("--count", type=int, default=200, help="held-out captions or pictures")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice without this")
    parser.add_argument("--sheet", type=Path, help="write the pictures as PNG; with several kinds, KIND is appended")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    try:
        scenes = unseen(chosen.count, chosen.seed)
    except ValueError as error:
        parser.error(str(error))
    kinds = models.KINDS if chosen.kind == "all" else tuple(k for k in models.KINDS if k == chosen.kind)
    if kinds:
        print(f"{chosen.count} held-out captions, {chosen.steps} Euler steps, cfg {chosen.cfg:g}, seed {chosen.seed}")
        print("right in %".ljust(12) + "".join(title.rjust(12) for title in (*COLUMNS, "all")))
    for kind in kinds:
        model = models.load(kind)
        pictures = sample(model, [scene.caption for scene in scenes], chosen.steps, chosen.cfg, chosen.seed)
        found = verdicts(scenes, pictures)
        found["all"] = np.all(list(found.values()), axis=0)
        print(kind.ljust(12) + "".join(f"{100 * right.mean():12.1f}" for right in found.values()), flush=True)
        if chosen.sheet:
            several = chosen.sheet.with_stem(f"{chosen.sheet.stem}-{kind}")
            sheet(pictures, found["all"]).save(several if len(kinds) > 1 else chosen.sheet)
    if chosen.kind in ("vae", "all"):
        decibels = vae_psnr(models.load_vae(), scenes, chosen.seed)
        print(
            f"VAE PSNR of {chosen.count} held-out pictures: mean {decibels.mean():.2f} dB, "
            f"lowest {decibels.min():.2f} dB"
        )


if __name__ == "__main__":
    main()
