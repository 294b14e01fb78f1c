"""What happens to a clip along time: frames dropped, averaged or interlaced, or each damaged in its own way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .operator import Operator, Shape


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


class PerFrame(Operator):
    """Frame t is damaged by operator t, t modulo their number; all leave frames of one size."""

    def __init__(self, operators: Sequence[Operator], frames: int) -> None:
        """Set the operators.

        Args:
            operators: Linear operators on pictures of one shape, with one shape of what they leave.
            frames: Number of frames T.

        Raises:
            ValueError: If there is none, one is not linear, or their shapes differ.
        """
        if not operators or frames < 1:
            raise ValueError(f"clip must have a damage and a frame at least, got {len(operators)}; connect one.")
        shapes = {(op.shape, op.out_shape) for op in operators}
        if len(shapes) != 1:
            raise ValueError(
                f"damages of a clip must leave one size, got {sorted(s[1] for s in shapes)}; use one size."
            )
        if not all(op.linear for op in operators):
            raise ValueError("damages of single frames must be linear, got JPEG; combine JPEG with the whole clip.")
        first = operators[0]
        super().__init__((frames, *first.shape), (frames, *first.out_shape))
        self._operators = tuple(operators)

    def _each(self, value: Tensor, name: str) -> Tensor:
        frames = value.unbind(dim=-4)
        count = len(self._operators)
        return torch.stack([getattr(self._operators[t % count], name)(f) for t, f in enumerate(frames)], dim=-4)

    def forward(self, x: Tensor) -> Tensor:
        """Every frame by its own operator."""
        return self._each(x, "forward")

    def adjoint(self, y: Tensor) -> Tensor:
        """Every frame by its own adjoint."""
        return self._each(y, "adjoint")

    def seen(self, y: Tensor) -> Tensor:
        """Frame by frame."""
        return self._each(y, "seen")

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor | None:
        """Frame by frame, where every operator has one."""
        found = []
        for t, (frame, wanted) in enumerate(zip(x.unbind(dim=-4), y.unbind(dim=-4), strict=True)):
            closed = self._operators[t % len(self._operators)].prox(frame, wanted, weight)
            if closed is None:
                return None
            found.append(closed)
        return torch.stack(found, dim=-4)

    @property
    def measured(self) -> int | Tensor:
        """Values of all frames."""
        count = len(self._operators)
        return sum(int(self._operators[t % count].measured) for t in range(self.shape[0]))

    def _measure_norm(self) -> float:
        return max(operator.norm for operator in self._operators[: self.shape[0]])
