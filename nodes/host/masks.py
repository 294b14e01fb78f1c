"""A MASK of the host on the grid of a latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional


@dataclass(frozen=True, eq=False)
class EditArea:
    """Where an edit may act.

    Attributes:
        mask: MASK, white where the edit may act.
        feather: Width in pixels of the mask of a ramp inside its edge.
    """

    mask: torch.Tensor
    feather: int = 0

    @classmethod
    def of(cls, mask: torch.Tensor | None, feather: int) -> EditArea | None:
        """Return the area of a node's inputs, None without a mask."""
        return None if mask is None else cls(mask, feather)

    def on(self, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """Return its weights on the grid of a latent; see on_latent_grid."""
        return on_latent_grid(self.mask, shape, self.feather)


def feather_inwards(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Soften the edge of a mask without letting it grow.

    The mask is eroded by the radius and then averaged twice over windows of half the radius, whose supports add up
    to the radius: what was zero stays exactly zero, so a region that the user left out is never touched.

    Args:
        mask: Shape (N, 1, H, W), values in [0, 1].
        radius: Width of the ramp in pixels of the mask, 0 for none.

    Returns:
        The softened mask, same shape.
    """
    if radius <= 0:
        return mask
    size = 2 * radius + 1
    # Beyond the picture counts as edited (a mask that touches the border stays full there).
    eroded = functional.pad(-mask, [radius] * 4, value=-1.0)
    for window in ((size, 1), (1, size)):
        eroded = functional.max_pool2d(eroded, window, stride=1)
    soft = -eroded
    for half in (radius // 2, radius - radius // 2):
        if half == 0:
            continue
        soft = functional.pad(soft, [half] * 4, mode="replicate")
        for window in ((2 * half + 1, 1), (1, 2 * half + 1)):
            soft = functional.avg_pool2d(soft, window, stride=1)
    # A window of zeros averages to exactly zero, so only rounding above 1 has to be clipped.
    return soft.clamp(0.0, 1.0)


def on_latent_grid(mask: torch.Tensor, shape: torch.Size | tuple[int, ...], feather: int = 0) -> torch.Tensor:
    """Bring a MASK to the grid of a latent.

    A mask for a clip may hold one picture (used for all frames), one per batch row, or one per frame; frames are
    spread over the latent's frames. In a mask for sound time runs from left to right, and rows are averaged. Cells that
    the mask covers in part get that part as their value; a cell is outside, and bit-equal to the source after an edit,
    when no pixel of it is masked.

    Args:
        mask: Shape (H, W), (N, H, W) or (N, 1, H, W), white (1) where the edit may act.
        shape: Shape of the samples, (B, C, H, W), (B, C, T, H, W) or (B, C, T).
        feather: Width in pixels of the mask of a ramp inside its edge.

    Returns:
        Shape (B, 1, H, W), (B, 1, T, H, W) or (B, 1, T), float64, values in [0, 1].

    Raises:
        ValueError: If the mask is not a stack of pictures, is not finite, fits neither the batch nor the frames, or
            is narrower than its feather.
    """
    if mask.ndim < 2 or mask.ndim > 4 or (mask.ndim == 4 and mask.shape[1] != 1) or mask.numel() == 0:
        raise ValueError(
            f"mask must be a picture or a stack of pictures, got shape {tuple(mask.shape)}; connect a MASK output."
        )
    if not bool(torch.isfinite(mask).all()):
        raise ValueError("mask must be finite, got NaN or infinity; check the node that made it.")
    pictures = mask.detach().to("cpu", torch.float64).reshape(-1, 1, *mask.shape[-2:]).clamp(0.0, 1.0)
    soft = feather_inwards(pictures, feather)
    vanished = (pictures.amax(dim=(1, 2, 3)) > 0.0) & (soft.amax(dim=(1, 2, 3)) == 0.0)
    if bool(vanished.any()):
        raise ValueError(
            f"feather must be less than half the width of the masked area, got {feather} pixels; "
            "lower it or paint a larger mask."
        )
    pictures = _resize(soft, (shape[-2] if len(shape) > 3 else 1, shape[-1]))
    batch, count = shape[0], pictures.shape[0]
    if len(shape) < 5:
        if count not in (1, batch):
            raise ValueError(
                f"mask must hold 1 or {batch} pictures for this latent batch, got {count}; "
                "pick one of them or repeat the latent."
            )
        return pictures.expand(batch, -1, -1, -1).reshape(batch, 1, *shape[2:])
    frames = shape[2]
    if count in (1, batch) and not (batch == 1 and count > 1):
        return pictures[:, :, None].expand(batch, -1, frames, -1, -1).clone()
    clip = pictures.reshape(1, 1, count, shape[-2], shape[-1])
    # Every latent frame covers several frames of the clip: the largest of them counts, so that no pixel that the
    # user marked is left out.
    clip = functional.adaptive_max_pool3d(clip, (frames, shape[-2], shape[-1]))
    return clip.expand(batch, -1, -1, -1, -1).clone()


def _resize(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if pictures.shape[-2:] == size:
        return pictures
    # The mean over each cell is exactly 0 only where nothing is masked, and it upsamples as nearest neighbour.
    return functional.adaptive_avg_pool2d(pictures, size)
