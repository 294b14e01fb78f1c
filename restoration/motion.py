"""Where things went between the frames of a clip, and pictures taken along."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional

# Side of the windows that are compared, in pixels: wide enough for an edge among noise, and of an odd size.
_WINDOW = 7
# Pictures are halved until their shorter side would fall below this, so that what moves far is found where it is near.
_SMALLEST = 16
# Deviation in pixels of what is taken off before matching: sub-pixel places of a hard edge cannot be told otherwise.
_BLUR = 1.0
# Finest step of a motion over the whole reach, in pixels.
_FINEST = 0.125
# A difference of so many deviations of the noise is no worse than one of more.
_COVERED = 6.0
# What a window must gain by moving on, in deviations of the noise: plain ground stands.
_RELUCTANCE = 0.05
_AROUND = tuple((float(down), float(right)) for down, right in itertools.product((-1, 0, 1), repeat=2) if down or right)


class Warp:
    """W x (p) = x(p + v(p)), bilinear; what lies outside is the pixel at the border. Linear in x."""

    def __init__(self, motion: Tensor) -> None:
        """Set the motion.

        Args:
            motion: v in pixels, shape (N, 2, H, W), down and right; sides of two pixels at least.
        """
        height, width = motion.shape[-2:]
        places, self.shares = [], []
        for axis, size in enumerate((height, width)):
            shape = (1, size, 1) if axis == 0 else (1, 1, size)
            place = (torch.arange(size, device=motion.device).to(motion).reshape(shape) + motion[:, axis]).clamp(
                0, size - 1
            )
            whole = place.floor().clamp(max=size - 2)
            places.append(whole)
            self.shares.append((place - whole).flatten(1)[:, None])
        self._first = (places[0] * width + places[1]).long().flatten(1)[:, None]
        self._width = width

    def _taps(self) -> tuple[tuple[int, Tensor], ...]:
        down, right = self.shares
        return (
            (0, (1 - down) * (1 - right)),
            (1, (1 - down) * right),
            (self._width, down * (1 - right)),
            (self._width + 1, down * right),
        )

    def forward(self, x: Tensor) -> Tensor:
        """W x, shape (N, C, H, W)."""
        flat, index = x.flatten(2), self._first.expand(-1, x.shape[1], -1)
        total = torch.zeros_like(flat)
        for step, share in self._taps():
            total += share * flat.gather(2, index + step)
        return total.view_as(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """W^T y."""
        flat, index = y.flatten(2), self._first.expand(-1, y.shape[1], -1)
        total = torch.zeros_like(flat)
        for step, share in self._taps():
            total.scatter_add_(2, index + step, share * flat)
        return total.view_as(y)


def _blurred(x: Tensor) -> Tensor:
    reach = int(2 * _BLUR + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / _BLUR).square()).to(x)
    kernel = kernel / kernel.sum()
    channels = x.shape[1]
    for shape, padding in (((1, 1, -1, 1), (0, 0, reach, reach)), ((1, 1, 1, -1), (reach, reach, 0, 0))):
        padded = functional.pad(x, padding, mode="replicate")
        x = functional.conv2d(
            padded, kernel.reshape(shape).expand(channels, 1, *kernel.reshape(shape).shape[2:]), groups=channels
        )
    return x


def windowed(x: Tensor, side: int = _WINDOW) -> Tensor:
    """Mean over the window around each pixel, shape (N, 1, H, W) as given; borders repeat."""
    return functional.avg_pool2d(functional.pad(x, [side // 2] * 4, mode="replicate"), side, 1)


class _Search:
    """The best velocity of each pixel of a picture so far."""

    def __init__(self, here: Tensor, others: Tensor, apart: Tensor, noise: float) -> None:
        self._here, self._others, self._apart, self._noise = here, others, apart.reshape(-1, 1, 1, 1), noise
        self.velocity = torch.zeros_like(here[:, :2])
        self._cost = self._of(self.velocity)

    def _of(self, velocity: Tensor) -> Tensor:
        unlike = (Warp(self._apart * velocity).forward(self._others) - self._here).abs().mean(dim=1, keepdim=True)
        # What is covered in some of the other frames must not outweigh those where it is seen.
        return windowed(unlike.clamp(max=_COVERED * self._noise).mean(dim=0, keepdim=True))

    def offer(self, velocity: Tensor) -> None:
        """Take a velocity where it is better by more than chance."""
        cost = self._of(velocity)
        better = cost < self._cost - _RELUCTANCE * self._noise
        self.velocity = torch.where(better, velocity, self.velocity)
        self._cost = torch.where(better, cost, self._cost)

    def around(self, step: float) -> None:
        """Offer what lies a step off in each direction."""
        start = self.velocity
        for down, right in _AROUND:
            self.offer(start + step * start.new_tensor([down, right]).reshape(1, 2, 1, 1))

    def spread(self) -> None:
        """Offer what the pixels half a window off have, and what those have been given by theirs."""
        reach = _WINDOW // 2
        height, width = self.velocity.shape[-2:]
        for _ in range(2):
            start = functional.pad(self.velocity, [reach] * 4, mode="replicate")
            for down, right in _AROUND:
                top, left = reach + int(down) * reach, reach + int(right) * reach
                self.offer(start[..., top : top + height, left : left + width])


def velocity_of(x: Tensor, frame: int, reach: int, noise: float) -> Tensor:
    """Find v with x_(t + k)(p + k v(p)) = x_t(p) for all |k| <= reach, from coarse to fine.

    Several frames on either side tell a motion several times as finely as the next one does, as long as it goes
    straight on. Windows are compared, in steps down to an eighth of a pixel over the reach. Where nothing tells, v
    is 0.

    Args:
        x: The frames, shape (T, C, H, W).
        frame: t.
        reach: How many frames on either side are looked at, as far as there are any.
        noise: Deviation of what differs between frames by chance.

    Returns:
        Shape (1, 2, H, W), pixels a frame, down and right.
    """
    first, last = max(0, frame - reach), min(len(x), frame + reach + 1)
    others = [other for other in range(first, last) if other != frame]
    apart = x.new_tensor([float(other - frame) for other in others])
    scales = [_blurred(torch.cat([x[frame : frame + 1], x[others]]))]
    while min(scales[-1].shape[-2:]) >= 2 * _SMALLEST:
        scales.append(functional.avg_pool2d(scales[-1], 2))
    velocity = None
    for scale in reversed(scales):
        search = _Search(scale[:1], scale[1:], apart, noise)
        if velocity is not None:
            search.offer(2.0 * functional.interpolate(velocity, size=tuple(scale.shape[-2:]), mode="nearest"))
        step = 1.0
        while step >= (_FINEST / reach if scale is scales[0] else 0.5):
            search.around(step)
            search.spread()
            step /= 2.0
        velocity = search.velocity
    search.spread()
    return search.velocity
