"""A colour picture of which brightness alone is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.settings import parameter
from .damage import Damage
from .operator import Operator, Shape

# ITU-R BT.601, the weights of television and of JPEG; BT.709 those of HD video.
REC601 = (0.299, 0.587, 0.114)
REC709 = (0.2126, 0.7152, 0.0722)
WEIGHTS = {"Rec.601": REC601, "Rec.709": REC709, "mean": (1 / 3, 1 / 3, 1 / 3)}


class BlackWhite(Operator):
    """y = w . (r, g, b) for every pixel.

    prox: x + g w (y - w . x) / (1 + g w . w).
    """

    def __init__(self, shape: Shape, weights: Sequence[float] = REC601) -> None:
        """Set the weights.

        Args:
            shape: Shape of a sample with as many channels as weights.
            weights: Share of every channel.

        Raises:
            ValueError: If the channels do not fit or all weights are zero.
        """
        super().__init__(shape, (*shape[:-3], 1, *shape[-2:]))
        if len(weights) != shape[-3]:
            raise ValueError(
                f"picture must have {len(weights)} channels to lose its colour, got {shape[-3]}; use an RGB picture."
            )
        if not any(weights) or not all(map(math.isfinite, weights)):
            raise ValueError(f"weights must be finite and not all zero, got {tuple(weights)}; use Rec.601.")
        self._weights = torch.tensor(weights, dtype=torch.float64)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Brightness w . x."""
        return (self._weights.to(x) * x).sum(dim=-3, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """Colours w y."""
        return self._weights.to(y) * y

    def row_energy(self) -> Tensor:
        """Squared length w . w, the same for all."""
        return self._weights.square().sum(dim=0, keepdim=True)

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Exact, pixel by pixel."""
        size = float(self._weights.square().sum())
        return x + weight / (1.0 + weight * size) * self.adjoint(y - self.forward(x))

    def _measure_norm(self) -> float:
        return float(self._weights.norm())


@dataclass(frozen=True, eq=False, kw_only=True)
class DamageBlackWhite(Damage):
    """The colour is lost."""

    title = "Black and White"
    description = "Says that the colour of the picture is lost and its brightness is left."
    aliases = ("colourise operator", "colorize", "grayscale")
    label = "black and white"

    weights: str = parameter(
        "Rec.601",
        "How bright red, green and blue became: Rec.601 as most programs do, Rec.709 as HD video, mean for the plain "
        "mean.",
        options=tuple(WEIGHTS),
    )

    def build(self, shape: Shape) -> Operator:
        """See Damage."""
        return BlackWhite(shape, WEIGHTS[self.weights])

    @classmethod
    def examples(cls) -> Mapping[str, tuple[Damage, Shape]]:
        """See Damage."""
        return {f"black and white, {name}": (cls(weights=name), (3, 9, 12)) for name in WEIGHTS}
