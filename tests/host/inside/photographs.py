"""Two photographs that come with scikit-image, and an autoencoder that is cheap at their size."""

import functools
import math
import os
from pathlib import Path

import comfy.model_patcher
import comfy.sd
import numpy as np
import torch
from PIL import Image

NAMES = ("astronaut", "chelsea")
BLOCK = 8
# What makes latents of a photograph about as large as the format of each width wants them.
SCALES = {4: 1.0, 16: 8.0}


def photograph(name):
    """An IMAGE of its own size: from the folder that the test has made, or from scikit-image itself."""
    folder = os.environ.get("RETRACE_PHOTOGRAPHS")
    if folder:
        pixels = np.asarray(Image.open(Path(folder) / f"{name}.png").convert("RGB"))
    else:
        import skimage.data

        pixels = getattr(skimage.data, name)()
    return torch.from_numpy(pixels.copy()).float()[None] / 255


class Cosines(torch.nn.Module):
    """The first cosine coefficients of blocks of eight by eight pixels, grey and two colour differences."""

    # It is an autoencoder that loses what an average one of so few channels must, without a training.

    def __init__(self, channels):
        super().__init__()
        place = torch.arange(BLOCK, dtype=torch.float64)
        waves = torch.cos(math.pi * (2 * place + 1) * place[:, None] / (2 * BLOCK)) * (2 / BLOCK) ** 0.5
        waves[0] /= 2**0.5
        colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
        colours = colours / colours.norm(dim=1, keepdim=True)
        order = sorted((i + j, c, i, j) for c in range(3) for i in range(BLOCK) for j in range(BLOCK))
        basis = [torch.einsum("c,h,w->chw", colours[c], waves[i], waves[j]) for _, c, i, j in order[:channels]]
        self.basis = torch.nn.Parameter(torch.stack(basis).float(), requires_grad=False)
        self.scale = SCALES[channels]

    def encode(self, pictures):
        return torch.nn.functional.conv2d(pictures, self.basis.to(pictures), stride=BLOCK) / self.scale

    def decode(self, latents):
        return torch.nn.functional.conv_transpose2d(latents * self.scale, self.basis.to(latents), stride=BLOCK)


def vae_of(pack, channels, make=None):
    """A small VAE of the host for three colours, around another network if one is to be made, in inference mode."""
    config = {"block_out_channels": [32] * 3, "latent_channels": channels, "sample_size": 32, "in_channels": 3}
    classes = pack.module("nodes.shapes.network_classes")
    with torch.inference_mode():
        vae = comfy.sd.VAE(sd={}, config=classes.vae_config({**config, "out_channels": 3, "layers_per_block": 1}))
        if make is not None:
            vae.first_stage_model = make().to(vae.vae_dtype).eval()
            cpu = torch.device("cpu")
            vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, cpu, cpu)
    return vae


@functools.cache
def cosine_vae(pack, channels):
    """A VAE of the host around `Cosines`."""
    return vae_of(pack, channels, lambda: Cosines(channels))
