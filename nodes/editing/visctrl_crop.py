"""What VisCtrl works on: the whole latents, parts of them, or parts of the pictures at another scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..host.masks import on_latent_grid
from .crop import Square, boxes_around, of_one_size

# (reference, target, weights of the reference, weights of the target) -> edited target
Edit = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor]


def weights_of(mask: torch.Tensor | None, samples: torch.Tensor) -> torch.Tensor | None:
    """Return a MASK as weights (items, frames or 1, h, w) on the grid of a latent, None for none."""
    if mask is None:
        return None
    grid = on_latent_grid(mask, samples.shape)
    return (grid[:, 0] if grid.ndim == 5 else grid).float()


def on_latents(
    edit: Edit,
    reference: torch.Tensor,
    target: torch.Tensor,
    reference_mask: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Edit the part of the latents around both masks, as large as it is.

    Args:
        edit: The edit.
        reference: Samples (R, C, *).
        target: Samples (B, C, *).
        reference_mask: MASK of the references.
        mask: MASK of the target.

    Returns:
        The target's samples with the edited part.

    Raises:
        ValueError: If a mask is missing, empty or larger than the other's picture.
    """
    seen, where = _both(weights_of(reference_mask, reference), weights_of(mask, target))
    groups = [boxes_around(seen.amax(1), "reference_mask"), boxes_around(where.amax(1), "mask")]
    limits = [(each.shape[-2], each.shape[-1]) for each in (reference, target)]
    groups = of_one_size(groups, limits)

    def cut(samples: torch.Tensor, number: int) -> torch.Tensor:
        return torch.stack([box.of(each) for box, each in zip(groups[number], samples, strict=True)])

    part = edit(cut(reference, 0), cut(target, 1), cut(seen, 0), cut(where, 1))
    edited = target.clone()
    for box, whole, new in zip(groups[1], edited, part, strict=True):
        box.of(whole).copy_(new)
    return edited


def on_pictures(
    edit: Edit,
    vae: Any,
    reference: torch.Tensor,
    target: torch.Tensor,
    reference_mask: torch.Tensor | None,
    mask: torch.Tensor | None,
    size: int,
    white: bool,
) -> torch.Tensor:
    """Edit squares around both masks, scaled to one size; the pictures are decoded and encoded once.

    Args:
        edit: The edit.
        vae: The host's VAE.
        reference: Samples (R, C, H, W).
        target: Samples (B, C, H, W).
        reference_mask: MASK of the references, None for all of them.
        mask: MASK of the target.
        size: Side of the squares in pixels.
        white: Whether everything outside the masks is made white in the squares.

    Returns:
        The target's samples with the edited part, encoded anew.

    Raises:
        ValueError: If the VAE or a mask is missing, a mask is empty, or there are frames.
    """
    if vae is None:
        raise ValueError('vae must be connected to crop in pixels, got none; connect it or set crop to "latent".')
    if target.ndim == 5 and target.shape[2] > 1:
        raise ValueError(
            f"crop must be none or latent for clips, got pixels and {target.shape[2]} frames; choose latent."
        )
    if mask is None:
        raise ValueError('mask must be connected to crop, got none; paint where the target is or set crop to "none".')
    squares, pictures, seen = [], [], []
    for samples, drawn, name in ((reference, reference_mask, "reference_mask"), (target, mask, "mask")):
        picture = _decoded(vae, samples)
        limits = (picture.shape[-2], picture.shape[-1])
        shown = torch.ones(len(picture), 1, *limits) if drawn is None else on_latent_grid(drawn, picture.shape).float()
        boxes = [Square.around(box, limits) for box in boxes_around(shown[:, 0], name)]
        bare = torch.lerp(torch.ones_like(picture), picture, shown) if white else picture
        squares.append([square.cut(each, size) for square, each in zip(boxes, bare, strict=True)])
        # The square is white beyond the picture, the mask is empty there.
        seen.append(torch.stack([1.0 - sq.cut(1.0 - m, size) for sq, m in zip(boxes, shown, strict=True)])[:, 0])
        pictures.append((picture, boxes))
    encoded = [_encoded(vae, torch.stack(each), target) for each in squares]
    limited = [
        None if white or (drawn is None) else weights_of(each, samples)
        for each, drawn, samples in zip(seen, (reference_mask, mask), encoded, strict=True)
    ]
    part = edit(encoded[0], encoded[1], limited[0], limited[1])
    picture, boxes = pictures[1]
    new = [square.paste(each, small) for square, each, small in zip(boxes, picture, _decoded(vae, part), strict=True)]
    return _encoded(vae, torch.stack(new), target)


def _both(seen: torch.Tensor | None, where: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    for drawn, name in ((seen, "reference_mask"), (where, "mask")):
        if drawn is None:
            raise ValueError(f'{name} must be connected to crop, got none; connect it or set crop to "none".')
    assert seen is not None and where is not None
    return seen, where


def _decoded(vae: Any, samples: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, H, W) in 0 .. 1."""
    image: torch.Tensor = vae.decode(samples)
    return image.reshape(-1, *image.shape[-3:]).movedim(-1, 1)[:, :3].to("cpu", torch.float32).clone()


def _encoded(vae: Any, pictures: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    samples: torch.Tensor = vae.encode(pictures.movedim(1, -1)).to("cpu", like.dtype)
    return samples if samples.ndim == like.ndim else samples.reshape(*samples.shape[:2], 1, *samples.shape[-2:])
