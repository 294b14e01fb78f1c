"""IMAGE of the host, (N, H, W, C) in [0, 1], as pictures (N, C, H, W) in [-1, 1], and back."""

from __future__ import annotations

import torch

from ...restoration.operators import REC601, Damage, Operator, one_or


def pixels_of(image: torch.Tensor, what: str = "image") -> torch.Tensor:
    """Return the pictures of an IMAGE.

    Args:
        image: Shape (N, H, W, C); channels past the third are dropped, a single one is repeated.
        what: Its name in the user's terms, for the error.

    Returns:
        Shape (N, 3, H, W), float32 on the CPU.

    Raises:
        ValueError: If it is no stack of pictures or not finite.
    """
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or image.numel() == 0:
        raise ValueError(f"{what} must be pictures with 1, 3 or 4 channels, got shape {tuple(image.shape)}; load one.")
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"{what} must be finite, got NaN or infinity; check the node that made it.")
    pixels = image[..., :3].detach().to("cpu", torch.float32).movedim(-1, 1)
    return (2.0 * pixels - 1.0).expand(-1, 3, -1, -1).clone()


def image_of(pixels: torch.Tensor) -> torch.Tensor:
    """Return pictures (..., C, H, W) in [-1, 1] as an IMAGE, a single channel as grey."""
    flat = pixels.reshape(-1, *pixels.shape[-3:]).to("cpu", torch.float32)
    image = (flat.movedim(1, -1) + 1.0) / 2.0
    return image.expand(*image.shape[:-1], 3).clone() if image.shape[-1] == 1 else image


def damaged_pixels(image: torch.Tensor, operator: Operator) -> torch.Tensor:
    """Return the damaged pictures of an IMAGE in the channels that the damage leaves.

    Args:
        image: The damaged IMAGE.
        operator: What damaged it.

    Returns:
        Shape (N, C, H, W): C is 1 after a loss of colour, where brightness is read as Rec. 601 weighs it, which is
        the value itself for grey.

    Raises:
        ValueError: If the size is not the one that the damage leaves.
    """
    pixels = pixels_of(image, "damaged image")
    if operator.out_shape[-3] == 1:
        weights = torch.tensor(REC601)[:, None, None]
        pixels = (weights * pixels).sum(dim=1, keepdim=True)
    if pixels.shape[-2:] != operator.out_shape[-2:]:
        height, width = operator.out_shape[-2:]
        raise ValueError(
            f"damaged image must be {width} x {height} pixels for a restored picture of "
            f"{operator.shape[-1]} x {operator.shape[-2]}, got {pixels.shape[-1]} x {pixels.shape[-2]}; "
            "set the latent to the restored size, crop or scale the photo to fit, or correct the operator."
        )
    return pixels


def per_sample(pixels: torch.Tensor, operator: Operator, lead: tuple[int, ...], damage: Damage) -> torch.Tensor:
    """Arrange damaged pictures (N, C, H, W) so that they broadcast against A x of a whole batch.

    Args:
        pixels: The damaged pictures.
        operator: What damaged them.
        lead: Leading dimensions of x: (B,) for pictures, (B, T) for clips.
        damage: The recipe, for its name.

    Returns:
        Shape (*lead or 1s, C, H, W), or with the frames that are left in place of the last of lead where frames are
        coupled.

    Raises:
        ValueError: If the number of pictures fits neither.
    """
    count = pixels.shape[0]
    if damage.over_time:
        left = operator.out_shape[0]
        if count == left:
            return pixels[(None,) * (len(lead) - 1)]
        raise ValueError(
            f"damaged image must hold the {left} frames that are left of {operator.shape[0]}, got {count}; "
            "set the latent to the number of restored frames."
        )
    if count == 1:
        return pixels[(None,) * (len(lead) - 1)]
    if len(lead) == 1 and count == lead[0]:
        return pixels
    if len(lead) == 2 and count == lead[1]:
        return pixels[None]
    if len(lead) == 2 and count == lead[0] * lead[1]:
        return pixels.reshape(*lead, *pixels.shape[1:])
    fitting = one_or(lead[0]) if len(lead) == 1 else f"1, {lead[1]} or {lead[0]} x {lead[1]} pictures"
    raise ValueError(
        f"damaged image must hold {fitting} for this latent, got {count}; repeat the latent or pick one picture."
    )
