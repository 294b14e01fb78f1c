"""How good an edit is: what the reader sees, what was kept, how far the structure moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from editing_triples import Triple
from torch import Tensor

from retrace.demo import reader
from retrace.inversion.metrics import SSIM_K1, SSIM_K2, SSIM_WIDTH, SSIM_WINDOW

WORDS = ("size", "colour", "shape", "position", "background")


def verdict(triple: Triple, picture: np.ndarray) -> tuple[bool, bool]:
    """Return whether the reader sees the target in every word, and whether at least in the word that changed.

    Args:
        triple: What was asked for.
        picture: uint8, shape (64, 64, 3).
    """
    seen = reader.read(picture)
    right = {word: getattr(seen, word) == getattr(triple.target, word) for word in WORDS}
    return all(right.values()), right[triple.kind]


def kept_psnr(edited: Tensor, source: Tensor, regions: Tensor) -> Tensor:
    """PSNR in dB over the pixels outside the regions, shape (B,); pictures (B, 3, H, W), regions (B, H, W) bool."""
    keep = ~regions[:, None].expand_as(source)
    error = (edited.double() - source.double()).square() * keep
    return -10.0 * torch.log10((error.sum((1, 2, 3)) / keep.sum((1, 2, 3))).clamp_min(1e-12))


def kept_ssim(edited: Tensor, source: Tensor, regions: Tensor) -> Tensor:
    """SSIM over the windows that are centred outside the regions, shape (B,).

    The source stands inside the regions in both pictures, so that a window at their border sees no change there.
    """
    inside = regions[:, None].expand_as(source)
    local = _ssim_map(torch.where(inside, source, edited), source)
    cut = SSIM_WINDOW // 2
    keep = ~inside[..., cut:-cut, cut:-cut]
    return (local * keep).sum((1, 2, 3)) / keep.sum((1, 2, 3)).clamp_min(1)


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """The SSIM of every window, shape (B, C, H - 10, W - 10)."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - (SSIM_WINDOW - 1) / 2
    bell = torch.exp(-0.5 * (offsets / SSIM_WIDTH).square())
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2

    def local(picture: Tensor) -> Tensor:
        flat = picture.reshape(-1, 1, *picture.shape[-2:])
        out = torch.nn.functional.conv2d(flat, window)
        return out.reshape(*picture.shape[:2], *out.shape[-2:])

    a, b = a.double(), b.double()
    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    both = local(a * b) - mean_a * mean_b
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    return (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


class Structure:
    """Distance of two pictures' self-similarity, after the structure distance of Tumanyan et al., arXiv:2201.00424.

        S_ij = cos(f_i, f_j)      distance = mean_ij (S_ij(a) - S_ij(b))^2

    f are the features of the demo VAE's encoder behind its middle block, 64 channels on a 16 x 16 grid, in place of the
    keys of DINO. Between two edits of a colour it is not zero: how alike object and background look changes too. So an
    edit is compared with the target as the world draws it, from which nothing may differ.
    """

    def __init__(self, vae: Any) -> None:
        """Use the encoder of an AutoencoderKL."""
        self._vae = vae

    @torch.no_grad()
    def similarity(self, pictures: Tensor) -> Tensor:
        """Self-similarity of pictures (B, 3, H, W) in 0 .. 1, shape (B, cells, cells)."""
        caught: list[Tensor] = []
        hook = self._vae.encoder.mid_block.register_forward_hook(lambda _, __, out: caught.append(out))
        try:
            self._vae.encoder(pictures.to(self._vae.dtype) * 2.0 - 1.0)
        finally:
            hook.remove()
        cells = torch.nn.functional.normalize(caught[0].flatten(2).double(), dim=1)
        return cells.transpose(1, 2) @ cells

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each picture of a from that of b, shape (B,)."""
        return (self.similarity(a) - self.similarity(b)).square().mean((1, 2))


def as_pixels(pictures: Tensor) -> np.ndarray:
    """Round pictures in 0 .. 1, (B, 3, H, W), to uint8 (B, H, W, 3)."""
    return (pictures * 255.0).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def as_pictures(pixels: np.ndarray) -> Tensor:
    """Return uint8 (B, H, W, 3) as pictures in 0 .. 1, float32 (B, 3, H, W)."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0


def measure(
    chosen: Sequence[Triple],
    edited: Tensor,
    source: Tensor,
    rebuilt: Tensor,
    wanted: Tensor,
    regions: Tensor,
    structure: Structure,
) -> list[dict[str, Any]]:
    """Figures of every edited picture, one dictionary each.

    Args:
        chosen: What was asked for.
        edited: What came out, (B, 3, H, W) in 0 .. 1; rounded to 8 bits first, as a file would have it.
        source: The sources.
        rebuilt: The sources through the autoencoder, not rounded: what an edit that keeps everything comes to.
        wanted: The targets as the world draws them.
        regions: Where an edit may act, (B, H, W).
        structure: The distance of structures.
    """
    pixels = as_pixels(edited)
    rounded = as_pictures(pixels)
    figures = zip(
        kept_psnr(rounded, source, regions).tolist(),
        kept_psnr(rounded, rebuilt, regions).tolist(),
        kept_ssim(rounded, source, regions).tolist(),
        structure(rounded, wanted).tolist(),
        structure(rounded, source).tolist(),
        strict=True,
    )
    rows = []
    for triple, picture, (decibels, own, similar, off, moved) in zip(chosen, pixels, figures, strict=True):
        success, changed = verdict(triple, picture)
        rows.append(
            {
                "kind": triple.kind,
                "success": success,
                "changed": changed,
                "psnr": decibels,
                "psnr_rebuilt": own,
                "ssim": similar,
                "structure": off,
                "structure_moved": moved,
            }
        )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over pictures: shares in percent, PSNR in dB, SSIM, structure distance times 1000."""
    shares, distances = ("success", "changed"), ("structure", "structure_moved")
    scale = {**dict.fromkeys(shares, 100.0), "psnr": 1.0, "psnr_rebuilt": 1.0, "ssim": 1.0}
    scale |= dict.fromkeys(distances, 1e3)
    return {name: factor * float(np.mean([row[name] for row in rows])) for name, factor in scale.items()}
