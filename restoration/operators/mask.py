"""A missing area."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.settings import link, parameter
from .damage import Damage
from .operator import Operator, Shape


class Mask(Operator):
    """y = m x with m in [0, 1]: 1 where the picture is kept, 0 where it is missing.

    prox: (x + g m y) / (1 + g m^2).
    """

    def __init__(self, shape: Shape, keep: Tensor) -> None:
        """Set what is kept.

        Args:
            shape: Shape of a sample.
            keep: Broadcastable to (..., *shape); a mask for each picture of a batch has it as leading dimension.

        Raises:
            ValueError: If the mask does not fit, is not within [0, 1], or keeps nothing.
        """
        super().__init__(shape, shape)
        if keep.shape[-2:] != tuple(shape[-2:]):
            raise ValueError(
                f"mask must be {shape[-1]} x {shape[-2]} pixels as the picture is, "
                f"got {keep.shape[-1]} x {keep.shape[-2]}; scale the mask."
            )
        frames = shape[0] if len(shape) == 4 else 0
        if frames and keep.ndim >= 4 and keep.shape[-4] not in (1, frames):
            raise ValueError(
                f"mask must hold 1 or {frames} pictures for a clip of {frames} frames, got {keep.shape[-4]}; "
                "pick one of them or make one for each frame."
            )
        if not bool(((keep >= 0) & (keep <= 1)).all()):
            raise ValueError("mask must lie between 0 and 1, got values outside or NaN; check the node that made it.")
        if not bool((keep > 0).any()):
            raise ValueError(
                "mask must keep a part of the picture, got one that covers all of it; paint a smaller one."
            )
        self._keep = keep

    def _on(self, x: Tensor) -> Tensor:
        return self._keep.to(device=x.device, dtype=x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Kept part m x."""
        return self._on(x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        """Kept part m y."""
        return self.forward(y)

    def row_energy(self) -> Tensor:
        """Squared mask m^2."""
        return self._keep.square()

    def seen(self, y: Tensor) -> Tensor:
        """Damaged picture where it is kept, zero where it is missing."""
        return torch.where(self._on(y) > 0, y, torch.zeros_like(y))

    @property
    def measured(self) -> int | Tensor:
        """Values that are kept: a number, or one for each picture of a batch whose masks differ."""
        lead = self._keep.shape[: max(0, self._keep.ndim - len(self.shape))]
        counts = (self._keep.expand(*lead, *self.shape) > 0).flatten(len(lead)).sum(dim=-1).clamp_min(1)
        return counts.reshape(*lead, *([1] * len(self.shape))) if counts.numel() > 1 else int(counts)

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """(x + g m y) / (1 + g m^2)."""
        keep = self._on(x)
        return (x + weight * keep * y) / (1.0 + weight * keep.square())

    def _measure_norm(self) -> float:
        return float(self._keep.max())


@dataclass(frozen=True, eq=False, kw_only=True)
class DamageMask(Damage):
    """A part of the picture is missing."""

    title = "Missing Area"
    description = (
        "Says that a part of the picture is missing: scratches, holes, text, an object to remove. What the photo shows "
        "there does not count."
    )
    aliases = ("inpaint operator", "missing pixels", "scratches")
    label = "a missing area"

    mask: Tensor = link(
        "mask",
        "White where the picture is missing, of the picture's own size. Any grey counts too. One mask for all "
        "pictures, or one for each.",
    )
    grow: int = parameter(0, "Pixels by which the missing area is grown, to take in a dirty edge.", 0, 256, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = tuple(self.mask.shape)
        if len(shape) not in (2, 3) or self.mask.numel() == 0:
            raise ValueError(f"mask must be a picture or a stack of pictures, got shape {shape}; draw one.")

    @property
    def pictures(self) -> int:
        """As many as there are masks."""
        return self.mask.shape[0] if self.mask.ndim == 3 else 1

    def build(self, shape: Shape) -> Operator:
        """See Damage."""
        missing = (self.mask.detach().to("cpu", torch.float32) > 0).float().reshape(-1, 1, *self.mask.shape[-2:])
        if self.grow > 0:
            # Rows, then columns: a square window at once would take as many looks a pixel as it has pixels.
            for reach in ((self.grow, 0), (0, self.grow)):
                window = (2 * reach[0] + 1, 2 * reach[1] + 1)
                missing = torch.nn.functional.max_pool2d(missing, window, stride=1, padding=reach)
        return Mask(shape, 1.0 - missing)

    @classmethod
    def examples(cls) -> Mapping[str, tuple[Damage, Shape]]:
        """See Damage."""
        hole = torch.zeros(1, 9, 12)
        hole[:, 2:6, 3:8] = 0.3
        frames = torch.stack([hole[0, :8, :6], hole[0, 1:, 6:]]).repeat(3, 1, 1)
        return {
            "mask": (cls(mask=hole), (3, 9, 12)),
            "grown mask": (cls(mask=hole, grow=1), (3, 9, 12)),
            "masks of frames": (cls(mask=frames), (6, 3, 8, 6)),
        }
