"""Pictures and masks between files and tensors, and labelled grids of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from torch import Tensor

# Formats that both keep RGB and are written by every Pillow.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read_picture(path: str | Path, multiple: int, size: tuple[int, int] | None = None) -> Tensor:
    """Read a picture for encoding.

    Args:
        path: Any file that Pillow reads. The camera's orientation is applied, transparency dropped.
        multiple: The sides are cropped around the centre to multiples of this.
        size: Width and height to cover first by resizing and cropping around the centre; None keeps the size.

    Returns:
        RGB between 0 and 1, float32, shape (1, 3, H, W).

    Raises:
        ValueError: If there is no such picture, or it is smaller than one multiple.
    """
    return _tensor(_frame(_open(path, "picture").convert("RGB"), multiple, size, path))


def read_mask(
    path: str | Path, multiple: int, size: tuple[int, int] | None, cells: tuple[int, int], feather: float = 0.0
) -> Tensor:
    """Read a mask, white = edit, for the picture that `read_picture` read with the same multiple and size.

    Args:
        path: Any file that Pillow reads; its brightness counts.
        multiple: As for the picture.
        size: As for the picture.
        cells: Height and width of the latent.
        feather: Radius of a Gaussian blur in pixels; 0 keeps hard edges.

    Returns:
        Weights between 0 and 1, the mean over each latent cell, float32, shape (1, 1, *cells).
    """
    image = _frame(_open(path, "mask").convert("L"), multiple, size, path)
    check_feather(feather)
    if feather:
        image = image.filter(ImageFilter.GaussianBlur(feather))
    return torch.nn.functional.adaptive_avg_pool2d(_tensor(image), cells)


def write_picture(picture: Tensor, path: str | Path) -> None:
    """Write one picture, RGB between 0 and 1, shape (3, H, W) or (1, 3, H, W); whole or not at all."""
    save_image(to_image(picture), path)


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write an image; a failure leaves an older file of that name as it was."""
    target = Path(path)
    # In the same folder, so that the replacement is one step; an ordinary open, so that the usual rights apply.
    draft = target.with_name(f".{target.stem}-{os.getpid()}{target.suffix}")
    try:
        image.save(draft)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def check_picture(path: str | Path, what: str = "picture") -> None:
    """Refuse a file that is no picture, before anything slow is done.

    Raises:
        ValueError: If there is no such picture.
    """
    _open(path, what)


def check_feather(radius: float) -> None:
    """Refuse a blur that is none.

    Raises:
        ValueError: If it is negative or no number.
    """
    if not 0.0 <= radius < math.inf:
        raise ValueError(f"feather must be 0 or more pixels, got {radius}; 0 keeps hard edges.")


def check_writable(path: str | Path, suffixes: Sequence[str] = SUFFIXES) -> Path:
    """Return the path if a file can be written there, so that no work is done for nothing.

    Raises:
        ValueError: If the folder is missing or the ending is none of `suffixes`.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"output folder must exist, got {target.parent}; make it first.")
    if target.suffix.lower() not in suffixes:
        raise ValueError(f"output file must end in {' or '.join(suffixes)}, got {target.name}; rename it.")
    if target.is_dir():
        raise ValueError(f"output file must not be a folder, got {target}; name a file in it.")
    return target


def to_image(picture: Tensor) -> Image.Image:
    """Return the Pillow image of one picture, RGB between 0 and 1, shape (3, H, W) or (1, 3, H, W)."""
    pixels = picture.detach().float().cpu().reshape(picture.shape[-3:]).clamp(0.0, 1.0)
    return Image.fromarray((pixels * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy(), "RGB")


def grid(rows: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]], side: int = 192) -> Image.Image:
    """Draw rows of labelled pictures.

    Args:
        rows: For each row its title and its (label, picture) pairs; a label may have several lines.
        side: Pixels that the longer side of each picture is enlarged or reduced to.
    """
    gap, font = 12, ImageFont.load_default(13)
    line = 17
    label_lines = max(label.count("\n") + 1 for _, cells in rows for label, _ in cells)
    columns = max(len(cells) for _, cells in rows)
    row_height = line + 6 + side + 4 + label_lines * line + gap
    sheet = Image.new("RGB", (gap + columns * (side + gap), gap + len(rows) * row_height), (250, 250, 250))
    draw = ImageDraw.Draw(sheet)
    for r, (title, cells) in enumerate(rows):
        top = gap + r * row_height
        draw.text((gap, top), title, (20, 20, 20), font)
        for c, (label, image) in enumerate(cells):
            left = gap + c * (side + gap)
            scale = side / max(image.size)
            # Pixels of a small picture stay visible as squares; a large one is smoothed.
            how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
            fitted = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)
            sheet.paste(fitted, (left, top + line + 6))
            draw.multiline_text((left, top + line + 6 + side + 4), label, (60, 60, 60), font, spacing=4)
    return sheet


def _open(path: str | Path, what: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise ValueError(f"{what} must be a file, got {path} which does not exist; correct the path.") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{what} must be a picture that Pillow reads, got {path}; save it as PNG.") from error


def _frame(image: Image.Image, multiple: int, size: tuple[int, int] | None, path: str | Path) -> Image.Image:
    if size is not None:
        image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    width, height = (side // multiple * multiple for side in image.size)
    if not width or not height:
        raise ValueError(
            f"picture must be at least {multiple} pixels wide and high for this model, got {path} with "
            f"{image.width} by {image.height}; enlarge it."
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255.0)
    return pixels.reshape(image.height, image.width, -1).permute(2, 0, 1)[None]
