"""A picture scaled down: box, bicubic or Lanczos, by whole and by broken factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.settings import parameter
from .damage import Damage
from .operator import Operator, Shape
from .separable import Separable

# Keys 1981; -0.5 is the value that Pillow takes and the one of third order.
_CUBIC = -0.5


def _bicubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = ((_CUBIC + 2.0) * x - (_CUBIC + 3.0)) * x * x + 1.0
    far = ((x - 5.0) * x + 8.0) * x * _CUBIC - 4.0 * _CUBIC
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3.0, torch.sinc(x) * torch.sinc(x / 3.0), torch.zeros_like(x))


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": _bicubic, "lanczos": _lanczos}
FILTERS = ("box", *_KERNELS)


def resampling_matrix(size: int, small: int, kernel: str) -> Tensor:
    """The weights with which a row of pixels is scaled down.

    Pixel i of the small row lies at c = (i + 1/2) f of the large one, f = size / small; pixel j weighs
    k((j + 1/2 - c) / f), and the weights of a row add up to 1 (at an edge those that are there). A box of a broken
    factor weighs pixels by how much of them it covers.

    Args:
        size: Pixels of the large row.
        small: Pixels of the small row, at most size.
        kernel: A name of FILTERS.

    Returns:
        Shape (small, size), float64.

    Raises:
        ValueError: If the kernel is unknown or the sizes do not fit.
    """
    if kernel not in FILTERS:
        raise ValueError(f"filter must be one of {', '.join(FILTERS)}, got {kernel!r}; choose one of these.")
    if not 1 <= small <= size:
        raise ValueError(f"small picture must have 1 to {size} pixels a side, got {small}; lower the scale.")
    factor = size / small
    centres = (torch.arange(small, dtype=torch.float64)[:, None] + 0.5) * factor
    pixels = torch.arange(size, dtype=torch.float64)
    if kernel == "box":
        covered = torch.minimum(pixels + 1.0, centres + factor / 2) - torch.maximum(pixels, centres - factor / 2)
        weights = covered.clamp_min(0.0)
    else:
        weights = _KERNELS[kernel]((pixels + 0.5 - centres) / factor)
    return weights / weights.sum(dim=1, keepdim=True)


class LowResolution(Separable):
    """y = R x C^T with the weights of ``resampling_matrix`` for rows and columns; the prox is exact."""

    def __init__(self, shape: Shape, factor: float, kernel: str = "bicubic") -> None:
        """Set the scale.

        Args:
            shape: Shape of a sample, ending in (H, W).
            factor: How many times smaller the damaged picture is, at least 1; sides are rounded to pixels.
            kernel: "box", "bicubic" or "lanczos".

        Raises:
            ValueError: If the factor is below 1, the kernel unknown, or nothing would be left.
        """
        if not (math.isfinite(factor) and factor >= 1.0):
            raise ValueError(f"scale must be at least 1, got {factor:g}; 4 makes a picture of a quarter of the width.")
        small = [round(side / factor) for side in shape[-2:]]
        if min(small) < 1:
            raise ValueError(
                f"scale must leave a pixel of {shape[-1]} x {shape[-2]}, got {factor:g}; choose a smaller one."
            )
        super().__init__(
            shape,
            resampling_matrix(shape[-2], small[0], kernel),
            resampling_matrix(shape[-1], small[1], kernel),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class DamageLowResolution(Damage):
    """The picture was scaled down."""

    title = "Low Resolution"
    description = "Says that the picture was scaled down. The restored picture is larger by the scale."
    aliases = ("super resolution operator", "upscale", "downscale")
    keeps_size = False

    scale: float = parameter(
        4.0,
        "How many times smaller the picture became. Broken factors are exact too.",
        1.0,
        64.0,
        0.05,
        round=0.001,
    )
    filter: str = parameter(
        "bicubic",
        "How it was scaled down: bicubic and lanczos as Pillow and most programs do, box takes the mean of the pixels "
        "that fall together, as a camera's binning does.",
        options=FILTERS,
    )

    @property
    def label(self) -> str:
        """See Damage."""
        return f"{self.scale:g} times smaller ({self.filter})"

    def build(self, shape: Shape) -> Operator:
        """See Damage."""
        return LowResolution(shape, self.scale, self.filter)

    @classmethod
    def examples(cls) -> Mapping[str, tuple[Damage, Shape]]:
        """See Damage."""
        kinds = [("box", 3.0), ("bicubic", 2.0), ("lanczos", 2.0), ("box", 1.7), ("bicubic", 2.6)]
        return {f"{name}, {scale}": (cls(scale=scale, filter=name), (3, 9, 12)) for name, scale in kinds}
