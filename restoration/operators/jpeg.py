"""JPEG: what a picture may have been, given the cells that its coefficients were rounded in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...core.settings import parameter
from .damage import Damage
from .noise import Noise
from .operator import GREY_LEVELS, Operator, Shape

# ITU-T T.81, tables K.1 and K.2, row by row.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# JFIF: RGB to luminance and the two colour differences, BT.601 in full range.
_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.299 / 1.772, -0.587 / 1.772, 0.886 / 1.772),
    (0.701 / 1.402, -0.587 / 1.402, -0.114 / 1.402),
)
# A coefficient is kept this far inside its cell, so that rounding in float32 reads it back as the same number.
_MARGIN = 1e-3

Table = Sequence[Sequence[float]]


def quality_tables(quality: int) -> tuple[Table, Table]:
    """Quantisation tables of the Independent JPEG Group for a quality.

    Args:
        quality: 1 (worst) to 100.

    Returns:
        Luminance and chrominance, 8 rows of 8 steps in grey levels of 255.

    Raises:
        ValueError: If the quality is not from 1 to 100.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be from 1 to 100, got {quality}; 10 is bad and 90 is good.")
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    luminance, chrominance = (
        [[min(255, max(1, (value * scale + 50) // 100)) for value in row] for row in table]
        for table in (_LUMINANCE, _CHROMINANCE)
    )
    return luminance, chrominance


def _cosines() -> Tensor:
    place = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * place + 1) * place[:, None] / 16) / 2.0
    matrix[0] /= math.sqrt(2.0)
    return matrix


class JPEG(Operator):
    """Blocks of 8 by 8 cosine coefficients, each rounded to a multiple of its step.

    ``project`` is the nearest picture, in luminance and colour difference, whose coefficients round to those of y. With
    colour at half resolution the mean of four pixels is moved, which is the orthogonal projection too. On sides that
    are no multiple of 8 (16 with colour at half resolution) the last blocks are those of the picture with its edge
    repeated, and the projection is near the nearest there.
    """

    linear = False

    def __init__(self, shape: Shape, tables: tuple[Table, Table], half_colour: bool = True) -> None:
        """Set the coder.

        Args:
            shape: Shape of a sample with 3 channels (RGB) or 1 (grey).
            tables: Steps of luminance and chrominance, 8 x 8 each, in grey levels of 255; see ``quality_tables``.
            half_colour: Whether colour is kept at half resolution (4:2:0) as most files do.

        Raises:
            ValueError: If the channels are neither 1 nor 3, or a table has a step that is not positive.
        """
        super().__init__(shape, shape)
        if shape[-3] not in (1, 3):
            raise ValueError(f"picture must have 1 or 3 channels to be a JPEG, got {shape[-3]}; drop the alpha.")
        steps = [torch.as_tensor(table, dtype=torch.float64) for table in tables]
        if any(step.shape != (8, 8) or not bool((step > 0).all()) for step in steps):
            raise ValueError("JPEG tables must be 8 x 8 positive steps, got others; take those of a quality.")
        self._steps = (steps[0], steps[1], steps[1])[: shape[-3]]
        self._half = half_colour and shape[-3] == 3
        self._cosines = _cosines()
        self._to_ycc = torch.tensor(_TO_YCC, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """The decoded picture, neither rounded nor clipped to 8 bits."""
        planes = [
            self._pixels((self._coefficients(plane) / step.to(x)).round() * step.to(x))
            for plane, step in zip(self._planes(x), self._steps, strict=True)
        ]
        return self._picture(planes)

    def adjoint(self, y: Tensor) -> Tensor:
        """Refused: rounding has none.

        Raises:
            TypeError: Always.
        """
        raise TypeError("JPEG must be used through its projection, got a call of its adjoint; use project.")

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """Nearest picture to x whose coefficients round to those of y."""
        moved = []
        for plane, wanted, step in zip(self._planes(x), self._planes(y), self._steps, strict=True):
            unit = step.to(x)
            cell, middle = self._coefficients(plane) / unit, (self._coefficients(wanted) / unit).round()
            inside = torch.minimum(torch.maximum(cell, middle - 0.5 + _MARGIN), middle + 0.5 - _MARGIN)
            moved.append(self._pixels((inside - cell) * unit))
        return x + self._picture(moved, difference=True)

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """The projection, whatever the weight."""
        return self.project(x, y)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of x to its projection."""
        return x - self.project(x, y)

    @property
    def linear_part(self) -> Operator:
        """The identity."""
        return Noise(self.shape)

    def coefficients(self, x: Tensor) -> list[Tensor]:
        """The rounded coefficients of every plane: shape (..., blocks down, blocks across, 8, 8)."""
        return [
            (self._coefficients(plane) / step.to(x)).round()
            for plane, step in zip(self._planes(x), self._steps, strict=True)
        ]

    def initial(self, y: Tensor) -> Tensor:
        """The decoded picture itself."""
        return y

    def _planes(self, x: Tensor) -> list[Tensor]:
        """Planes in grey levels of 255, luminance less 128, padded to whole blocks."""
        grey = GREY_LEVELS * x
        if x.shape[-3] == 3:
            grey = torch.einsum("ij,...jhw->...ihw", self._to_ycc.to(x), grey)
        block = 16 if self._half else 8
        right, below = -x.shape[-1] % block, -x.shape[-2] % block
        flat = grey.reshape(-1, *grey.shape[-3:])
        whole = functional.pad(flat, (0, right, 0, below), mode="replicate")
        planes = list(whole.reshape(*x.shape[:-3], *whole.shape[-3:]).unbind(dim=-3))
        planes[0] = planes[0] - 0.5  # 127.5 (x + 1) less 128
        if self._half:
            planes[1:] = [(plane[..., 0::2] + plane[..., 1::2]) / 2 for plane in planes[1:]]
            planes[1:] = [(plane[..., 0::2, :] + plane[..., 1::2, :]) / 2 for plane in planes[1:]]
        return planes

    def _picture(self, planes: list[Tensor], difference: bool = False) -> Tensor:
        luminance = planes[0] if difference else planes[0] + 0.5
        colours = planes[1:]
        if self._half:
            colours = [colour.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1) for colour in colours]
        grey = torch.stack([luminance, *colours], dim=-3)[..., : self.shape[-2], : self.shape[-1]]
        if len(planes) == 3:
            grey = torch.einsum("ij,...jhw->...ihw", torch.linalg.inv(self._to_ycc).to(grey), grey)
        return grey / GREY_LEVELS

    def _coefficients(self, plane: Tensor) -> Tensor:
        height, width = plane.shape[-2:]
        blocks = plane.reshape(*plane.shape[:-2], height // 8, 8, width // 8, 8).transpose(-3, -2)
        cosines = self._cosines.to(plane)
        coefficients: Tensor = cosines @ blocks @ cosines.mT
        return coefficients

    def _pixels(self, coefficients: Tensor) -> Tensor:
        cosines = self._cosines.to(coefficients)
        blocks = cosines.mT @ coefficients @ cosines
        return blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)

    def _measure_norm(self) -> float:
        return 1.0


@dataclass(frozen=True)
class SavedAs:
    """How a JPEG file was saved: its name, the two tables, and whether colour is at half resolution."""

    name: str
    tables: tuple[Table, Table]
    half_colour: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class DamageJPEG(Damage):
    """The picture was saved as a JPEG."""

    title = "JPEG"
    description = "Says that the picture was saved as a JPEG. What is restored saves to the same JPEG again."
    aliases = ("JPEG artifacts", "compression artifacts", "deblock")

    quality: int = parameter(10, "Quality at which it was saved, as most programs count.", 1, 100, 1)
    half_colour: bool = parameter(True, "Whether colour was kept at half resolution (4:2:0), as most programs do.")
    # A file, which then says it all.
    saved: SavedAs | None = None

    @property
    def label(self) -> str:
        """See Damage."""
        return f"JPEG of quality {self.quality}" if self.saved is None else f"JPEG as {self.saved.name}"

    def build(self, shape: Shape) -> Operator:
        """See Damage."""
        if self.saved is not None:
            return JPEG(shape, self.saved.tables, self.saved.half_colour)
        return JPEG(shape, quality_tables(self.quality), self.half_colour)

    @classmethod
    def examples(cls) -> Mapping[str, tuple[Damage, Shape]]:
        """See Damage."""
        return {
            "JPEG": (cls(quality=30), (3, 32, 48)),
            "JPEG, whole colour": (cls(quality=5, half_colour=False), (3, 32, 48)),
            "JPEG of grey": (cls(quality=90), (1, 16, 24)),
        }
