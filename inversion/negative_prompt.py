"""Negative-prompt inversion and proximal guidance: the source prompt as its own negative.

Guidance at scale w moves the prediction away from the negative. With the source prompt in its place

    D = D_src + w prox(D_tgt - D_src)

and a target that is the source leaves D_src at any w: what an inversion at guidance 1 reached comes back as well as it
does without guidance, with nothing to fit. What the target changes is pushed by w; prox lets only its large parts
through, so that what the target does not speak of stays.

Source: Miyake et al. 2023, arXiv:2305.16807; Han et al. 2023 (ProxNPI), arXiv:2306.05414.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..core.denoiser import Denoiser, work_dtype
from ..core.settings import Settings, parameter
from .inversion import Inversion

PROX = ("none", "l0", "l1")
# Below this sine of the angle between two embeddings the arc is their chord.
_PARALLEL = 1e-6


class Difference(NamedTuple):
    """What is left of D_tgt - D_src, and where it was let through (1) or not (0); both of its shape."""

    kept: Tensor
    through: Tensor


def proximal(difference: Tensor, prox: str, quantile: float) -> Difference:
    """Let only the large parts of a difference through.

        l0:  v where |v| > c, else 0                 (the proximal map of a count: hard threshold)
        l1:  sign(v) max(|v| - c, 0)                 (that of a sum: soft threshold)

    c is the given quantile of |v|, taken for each row of the batch by itself. "none" lets all through.

    Args:
        difference: v, shape (B, ...).
        prox: One of PROX.
        quantile: Share of the entries that is held back, 0 .. 1.

    Returns:
        The kept part, and 1 where |v| > c.

    Raises:
        ValueError: If the rule is unknown or the share is out of range.
    """
    if prox not in PROX:
        raise ValueError(f"prox must be one of {', '.join(PROX)}, got {prox!r}; none lets all through.")
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile must lie between 0 and 1, got {quantile:g}; 0.75 is the usual one.")
    if prox == "none" or quantile == 0.0:
        return Difference(difference, torch.ones_like(difference))
    size = difference.abs()
    rows = size.flatten(1)
    # By rank and not by interpolation: torch.quantile takes no more than 16 million entries.
    rank = max(1, math.ceil(quantile * rows.shape[1]))
    cut = rows.kthvalue(rank, dim=1).values.reshape(-1, *(1 for _ in difference.shape[1:]))
    through = size > cut
    large = difference if prox == "l0" else difference - difference.clamp(-cut, cut)
    return Difference(torch.where(through, large, torch.zeros_like(large)), through.to(difference.dtype))


def slerp(low: Tensor, high: Tensor, weight: float) -> Tensor:
    """The arc between two embeddings, row by row, each row as one long vector.

        sin((1 - weight) a) / sin a * low + sin(weight a) / sin a * high,   a: angle between them

    Args:
        low: Result at weight 0, shape (B, ...).
        high: Result at weight 1, same shape.
        weight: 0 .. 1.

    Returns:
        Tensor of that shape; low and high themselves at 0 and 1.

    Raises:
        ValueError: If the shapes differ or the weight is out of range.
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight must lie between 0 and 1, got {weight:g}; 1 is the second embedding alone.")
    if low.shape != high.shape:
        raise ValueError(
            f"embeddings must have one shape to be mixed, got {tuple(low.shape)} and {tuple(high.shape)}; "
            "set interp to 1, or use prompts of like length."
        )
    if weight in (0.0, 1.0):
        return high if weight == 1.0 else low
    one, other = (tensor.flatten(1).to(work_dtype(low.device)) for tensor in (low, high))
    cosine = functional.cosine_similarity(one, other, dim=1).clamp(-1.0, 1.0)
    angle = cosine.acos()[:, None]
    sine = angle.sin()
    # A row of zeros has no angle; neither needs more than the chord.
    flat = (sine < _PARALLEL) | (one.norm(dim=1) == 0.0)[:, None] | (other.norm(dim=1) == 0.0)[:, None]
    safe = torch.where(flat, torch.ones_like(sine), sine)
    arc = ((1.0 - weight) * angle).sin() / safe * one + (weight * angle).sin() / safe * other
    return torch.where(flat, torch.lerp(one, other, weight), arc).reshape(low.shape).to(low.dtype)


@dataclass(frozen=True)
class NegativePrompt(Settings):
    """Guidance away from the source.

    Raises:
        ValueError: If a setting is out of range, or it pulls where nothing says where to.
        TypeError: If one has the wrong type.
    """

    cfg: float = parameter(
        7.5,
        "How far to go from the source to the target: 0 is the source, 1 the target unguided.",
        minimum=0.0,
        maximum=100.0,
        step=0.1,
        round=0.01,
    )
    prox: str = parameter(
        "none",
        "What holds small differences back: none, l0 lets the large ones through as they are, l1 also shortens them, "
        "as the published code does.",
        options=PROX,
    )
    quantile: float = parameter(
        0.75,
        "Share of the latent that prox holds back. 0 lets all through, 1 nothing.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        round=0.001,
    )
    pull: float = parameter(
        0.0,
        "Pull towards the source where prox let nothing through; 1 puts the source there. Needs l0 or l1.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        round=0.001,
    )
    pull_steps: float = parameter(
        0.4,
        "Share of the steps, the last ones, in which pull acts.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        round=0.001,
    )
    dilate: int = parameter(
        1,
        "Cells of the latent that are spared around what prox let through when pull acts.",
        minimum=0,
        maximum=16,
        step=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pull > 0.0 and self.prox == "none":
            raise ValueError(f"pull must be 0 with prox none, got {self.pull:g}; choose l0 or l1 to say where it acts.")

    def denoiser(self, inversion: Inversion, source: Denoiser, target: Denoiser) -> Denoiser:
        """The guided model, for the way down of an inversion.

        Args:
            inversion: The inversion, for its picture and sigmas.
            source: The model under the source conditioning, unguided.
            target: The model under the target conditioning, unguided.

        Returns:
            A denoiser whose every call is one call of each of the two.
        """
        falling = inversion.falling
        # The first sigma of the pull: so many steps before the end.
        top = falling[inversion.index - round(self.pull_steps * inversion.index)]
        clean: list[Tensor] = []

        def denoise(x: Tensor, sigma: float) -> Tensor:
            base = source(x, sigma)
            difference, through = proximal(target(x, sigma) - base, self.prox, self.quantile)
            guided = base + self.cfg * difference
            if self.pull == 0.0 or sigma > top or self.pull_steps == 0.0:
                return guided
            if not clean:
                clean.append(inversion.x0.to(x))
            return guided + self.pull * (1.0 - grown(through, self.dilate)) * (clean[0] - guided)

        return source.answering(denoise)


def grown(through: Tensor, cells: int) -> Tensor:
    """A mask of 0 and 1 (B, C, [T,] H, W), grown by so many cells in height and width."""
    if cells == 0:
        return through
    flat = through.flatten(0, -3)
    for window, pad in (((2 * cells + 1, 1), (cells, 0)), ((1, 2 * cells + 1), (0, cells))):
        flat = functional.max_pool2d(flat, window, stride=1, padding=pad)
    return flat.reshape(through.shape)
