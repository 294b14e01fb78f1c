"""Boxes around what a mask shows, cut out and put back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional

# Cells of the latent that the sides of a crop are multiples of, where it fits: UNets halve three times.
CELLS = 8


@dataclass(frozen=True)
class Box:
    """A part of a picture."""

    top: int
    left: int
    height: int
    width: int

    def of(self, picture: torch.Tensor) -> torch.Tensor:
        """The part of a picture (..., H, W); a view."""
        return picture[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def resized(self, height: int, width: int, limits: tuple[int, int]) -> Box:
        """A box of another size around the same middle, moved to lie inside the picture."""
        top = self.top + (self.height - height) // 2
        left = self.left + (self.width - width) // 2
        return Box(min(max(top, 0), limits[0] - height), min(max(left, 0), limits[1] - width), height, width)


def boxes_around(weights: torch.Tensor, what: str) -> list[Box]:
    """Return the smallest box around all that is above 0 in each mask.

    Args:
        weights: Shape (N, H, W).
        what: Name of the mask in the user's terms.

    Raises:
        ValueError: If a mask is empty.
    """
    boxes = []
    for number, mask in enumerate(weights):
        rows, columns = (mask > 0).any(1).nonzero()[:, 0], (mask > 0).any(0).nonzero()[:, 0]
        if not len(rows):
            raise ValueError(f"{what} must show something in each picture, got nothing in picture {number}; paint it.")
        top, left = int(rows[0]), int(columns[0])
        boxes.append(Box(top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1))
    return boxes


def of_one_size(groups: list[list[Box]], limits: list[tuple[int, int]]) -> list[list[Box]]:
    """Return boxes that all have the size of the largest, in multiples of CELLS where that fits.

    Args:
        groups: Boxes in the pictures of each kind.
        limits: Height and width of the pictures of each kind.

    Raises:
        ValueError: If the largest does not fit into the pictures of another kind.
    """
    every = [box for group in groups for box in group]
    size = []
    for axis, need in enumerate((max(box.height for box in every), max(box.width for box in every))):
        room = min(limit[axis] for limit in limits)
        if need > room:
            raise ValueError(
                f"masked areas must fit into both latents to crop them without scaling, got {need} cells of {room}; "
                'set crop to "pixels".'
            )
        size.append(min(-(-need // CELLS) * CELLS, room))
    return [
        [box.resized(size[0], size[1], limit) for box in group] for group, limit in zip(groups, limits, strict=True)
    ]


@dataclass(frozen=True)
class Square:
    """A square around a box, of which the part inside the picture is shown and the rest is white."""

    box: Box
    side: int

    @staticmethod
    def around(box: Box, limits: tuple[int, int]) -> Square:
        """The smallest square around a box of a picture of this height and width."""
        side = max(box.height, box.width)
        return Square(box.resized(min(side, limits[0]), min(side, limits[1]), limits), side)

    @property
    def _inset(self) -> Box:
        """Where the picture's part lies in the square."""
        part = self.box
        return Box((self.side - part.height) // 2, (self.side - part.width) // 2, part.height, part.width)

    def cut(self, picture: torch.Tensor, size: int) -> torch.Tensor:
        """Cut out and scale.

        Args:
            picture: Shape (C, H, W).
            size: Wanted side.

        Returns:
            Shape (C, size, size).
        """
        canvas = picture.new_ones(picture.shape[0], self.side, self.side)
        self._inset.of(canvas).copy_(self.box.of(picture))
        return _scaled(canvas, size)

    def paste(self, picture: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Return the picture (C, H, W) with a cut-out (C, size, size) put back."""
        pasted = picture.clone()
        self.box.of(pasted).copy_(self._inset.of(_scaled(part, self.side)))
        return pasted


def _scaled(picture: torch.Tensor, side: int) -> torch.Tensor:
    if picture.shape[-1] == side:
        return picture
    return functional.interpolate(picture[None], (side, side), mode="bilinear", align_corners=False, antialias=True)[
        0
    ].clamp(0.0, 1.0)
