"""Fit the linear map from latents to colours that hosts use for quick previews: `python -m retrace.demo.preview`.

To be run again whenever the autoencoder was trained again; it writes demo/weights/vae/latent_rgb.json.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from . import models, world

PICTURES = 256


@torch.inference_mode()
def fit(vae: Any, seed: int = 0) -> dict[str, list[Any]]:
    """Least squares from scaled latents to the mean colour, -1..1, of the pixels that each stands for.

    Args:
        vae: The autoencoder.
        seed: Seed of the pictures.

    Returns:
        "factors", one row of RGB for each latent channel, and "bias", RGB, so that
        rgb = latent @ factors + bias.
    """
    known = list(world.scenes())
    chosen = np.random.default_rng(seed).integers(len(known), size=PICTURES)
    pictures, _ = world.render([known[i] for i in chosen], seed)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(32)]) * vae.config.scaling_factor
    colours = torch.nn.functional.adaptive_avg_pool2d(pixels, tuple(latents.shape[-2:]))
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).double()
    wanted = colours.permute(0, 2, 3, 1).reshape(-1, 3).double()
    with_one = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
    solution = torch.linalg.lstsq(with_one, wanted).solution.float()
    rounded = [[round(value, 4) for value in row] for row in solution.tolist()]
    return {"factors": rounded[:-1], "bias": rounded[-1]}


def main() -> None:
    """Command line."""
    path = models.WEIGHTS / "vae" / "latent_rgb.json"
    path.write_text(json.dumps(fit(models.load_vae()), indent=1) + "\n")


if __name__ == "__main__":
    main()
