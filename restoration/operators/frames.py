"""What happens to a clip along time: frames dropped, averaged or interlaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.settings import link, parameter
from .combine import Combine
from .damage import Damage
from .low_resolution import DamageLowResolution
from .operator import Operator, Shape

PATTERNS = ("dropped", "averaged", "interlaced")


class _OverTime(Operator):
    """Frames of y are sums of frames of x: y = P x along time, with a small matrix P of shape (T', T)."""

    def __init__(self, shape: Shape, matrix: Tensor) -> None:
        super().__init__(shape, (matrix.shape[0], *shape[1:]))
        self._matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        """P x."""
        return torch.einsum("st,...tchw->...schw", self._matrix.to(x), x)

    def adjoint(self, y: Tensor) -> Tensor:
        """P^T y."""
        return torch.einsum("st,...schw->...tchw", self._matrix.to(y), y)

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """(1 + g P^T P)^-1 (x + g P^T y), a small system along time whose P P^T is diagonal."""
        # Frames of y share no frame of x, so P P^T is diagonal and (I + g P^T P)^-1 needs no solve.
        size = self._matrix.square().sum(dim=1).to(x)[:, None, None, None]
        return x + self.adjoint(weight / (1.0 + weight * size) * (y - self.forward(x)))

    def _measure_norm(self) -> float:
        return float(torch.linalg.matrix_norm(self._matrix, 2))


def _check_clip(shape: Shape) -> None:
    if len(shape) != 4:
        raise ValueError(f"clip must have frames, got a picture of shape {tuple(shape)}; use a batch of frames.")
    if shape[0] < 2:
        raise ValueError(
            f"clip must have two frames at least, got {shape[0]}; restore more frames, or leave this damage out."
        )


class DroppedFrames(_OverTime):
    """Frames 0, n, 2n, ... are kept, all others are missing."""

    def __init__(self, shape: Shape, every: int) -> None:
        """Set the pattern.

        Args:
            shape: (T, C, H, W).
            every: One frame in so many is kept, at least 1.

        Raises:
            ValueError: If the shape is no clip or every is below 1.
        """
        _check_clip(shape)
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}; 2 keeps each second frame.")
        super().__init__(shape, torch.eye(shape[0], dtype=torch.float64)[::every])


class AveragedFrames(_OverTime):
    """Every n frames in a row are averaged into one, as a long shutter does."""

    def __init__(self, shape: Shape, every: int) -> None:
        """Set the shutter.

        Args:
            shape: (T, C, H, W), T a multiple of every.
            every: Frames in one exposure, at least 1.

        Raises:
            ValueError: If the shape is no clip or its frames do not divide.
        """
        _check_clip(shape)
        if every < 1 or shape[0] % every:
            raise ValueError(
                f"frames must be a multiple of every, got {shape[0]} frames and every {every}; cut the clip."
            )
        matrix = torch.eye(shape[0] // every, dtype=torch.float64).repeat_interleave(every, dim=1) / every
        super().__init__(shape, matrix)


class InterlacedFrames(Operator):
    """Frame t holds rows t, t + 2, ... alone; a frame of y has half the height."""

    def __init__(self, shape: Shape) -> None:
        """Set the clip.

        Args:
            shape: (T, C, H, W), H even.

        Raises:
            ValueError: If the shape is no clip or its height is odd.
        """
        _check_clip(shape)
        if shape[-2] % 2:
            raise ValueError(f"height must be even to be interlaced, got {shape[-2]}; cut a row off.")
        super().__init__(shape, (*shape[:2], shape[2] // 2, shape[3]))

    def forward(self, x: Tensor) -> Tensor:
        """Even rows of even frames, odd rows of odd ones."""
        y = x[..., 0::2, :].clone()
        y[..., 1::2, :, :, :] = x[..., 1::2, :, 1::2, :]
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        """Rows back to where they were, zero between."""
        x = y.new_zeros(*y.shape[:-2], self.shape[-2], self.shape[-1])
        x[..., 0::2, :, 0::2, :] = y[..., 0::2, :, :, :]
        x[..., 1::2, :, 1::2, :] = y[..., 1::2, :, :, :]
        return x

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Closed, because A A^T is the identity."""
        return x + weight / (1.0 + weight) * self.adjoint(y - self.forward(x))

    def _measure_norm(self) -> float:
        return 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class DamageFrames(Damage):
    """Something happened to a clip along time."""

    title = "Frames"
    description = (
        "Says what happened to a clip along time: frames were dropped, averaged by a long shutter, or interlaced. All "
        "frames of the batch are then restored together."
    )
    aliases = ("frame interpolation operator", "deinterlace", "shutter")
    over_time = True

    pattern: str = parameter(
        "dropped",
        "dropped: one frame in `every` is left. averaged: each `every` frames became one. interlaced: even frames hold "
        "the even rows and odd frames the odd rows, at half the height.",
        options=PATTERNS,
    )
    every: int = parameter(
        2,
        "dropped and averaged: how many frames became one. The restored clip has that many times the frames.",
        1,
        64,
        1,
    )
    operator: Damage | None = link(
        "operator",
        "What happened to each frame by itself before that, for example low resolution.",
        optional=True,
    )

    @property
    def label(self) -> str:
        """See Damage."""
        labels = {"dropped": f"one frame in {self.every} kept", "averaged": f"{self.every} frames averaged"}
        own = labels.get(self.pattern, "interlaced")
        return own if self.operator is None else f"{self.operator.label}, then {own}"

    @property
    def pictures(self) -> int:
        """Those of what happened to each frame."""
        return 1 if self.operator is None else self.operator.pictures

    def build(self, shape: Shape) -> Operator:
        """See Damage."""
        if self.operator is not None:
            before = self.operator.build(shape)
            return Combine([before, replace(self, operator=None).build(before.out_shape)])
        if self.pattern == "interlaced":
            return InterlacedFrames(shape)
        return (DroppedFrames if self.pattern == "dropped" else AveragedFrames)(shape, self.every)

    @classmethod
    def examples(cls) -> Mapping[str, tuple[Damage, Shape]]:
        """See Damage."""
        small = DamageLowResolution(scale=2.0, filter="box")
        return {
            "dropped": (cls(every=4), (6, 3, 8, 6)),
            "averaged": (cls(pattern="averaged", every=3), (6, 3, 8, 6)),
            "interlaced": (cls(pattern="interlaced"), (6, 3, 8, 6)),
            "small, averaged": (cls(pattern="averaged", operator=small), (6, 3, 8, 6)),
        }
