"""Every operator once, on small samples that are neither square nor even where they need not be."""

import torch

from retrace.restoration.operators import (
    REC709,
    AveragedFrames,
    BlackWhite,
    Blur,
    Combine,
    DroppedFrames,
    GaussianBlur,
    InterlacedFrames,
    LowResolution,
    Mask,
    Noise,
    PerFrame,
    gaussian_kernel,
    motion_kernel,
)

PICTURE = (3, 9, 12)
CLIP = (6, 3, 8, 6)


def hole(shape=PICTURE, soft=False):
    keep = torch.ones(1, *shape[-2:])
    keep[:, 2:6, 3:8] = 0.3 if soft else 0.0
    return keep


def lopsided_kernel():
    generator = torch.Generator().manual_seed(4)
    kernel = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    return kernel / kernel.sum()


LINEAR = {
    "mask": lambda: Mask(PICTURE, hole()),
    "soft mask": lambda: Mask(PICTURE, hole(soft=True)),
    "box": lambda: LowResolution(PICTURE, 3, "box"),
    "bicubic": lambda: LowResolution(PICTURE, 2, "bicubic"),
    "lanczos": lambda: LowResolution(PICTURE, 2, "lanczos"),
    "broken box": lambda: LowResolution(PICTURE, 1.7, "box"),
    "broken bicubic": lambda: LowResolution(PICTURE, 2.6, "bicubic"),
    "gaussian": lambda: GaussianBlur(PICTURE, 1.3),
    "circular gaussian": lambda: GaussianBlur(PICTURE, 1.3, "circular"),
    "motion": lambda: Blur(PICTURE, motion_kernel(5, 30)),
    "circular motion": lambda: Blur(PICTURE, motion_kernel(5, 30), "circular"),
    "kernel": lambda: Blur(PICTURE, lopsided_kernel()),
    "circular kernel": lambda: Blur(PICTURE, lopsided_kernel(), "circular"),
    "black and white": lambda: BlackWhite(PICTURE),
    "black and white 709": lambda: BlackWhite(PICTURE, REC709),
    "noise": lambda: Noise(PICTURE),
    "dropped": lambda: DroppedFrames(CLIP, 4),
    "averaged": lambda: AveragedFrames(CLIP, 3),
    "interlaced": lambda: InterlacedFrames(CLIP),
    "per frame": lambda: PerFrame([Blur(CLIP[1:], motion_kernel(3, 90)), Blur(CLIP[1:], motion_kernel(3, 0))], 6),
    "masks per frame": lambda: PerFrame([Mask(CLIP[1:], hole(CLIP)), Noise(CLIP[1:])], 6),
    "combination": lambda: Combine(
        [GaussianBlur(PICTURE, 1.0), LowResolution(PICTURE, 3), BlackWhite((3, 3, 4))],
    ),
    "clip combination": lambda: Combine(
        [LowResolution(CLIP, 2, "box"), AveragedFrames((6, 3, 4, 3), 2), BlackWhite((3, 3, 4, 3))]
    ),
    "one alone": lambda: Combine([LowResolution(PICTURE, 3)]),
}
# The same blur as one of the operators above, made in the other way.
TWINS = {"circular gaussian": lambda: Blur(PICTURE, two_dimensional(gaussian_kernel(1.3)), "circular")}


def two_dimensional(kernel):
    return torch.outer(kernel, kernel)


def matrix_of(operator):
    """The dense matrix of a linear operator, by its forward alone."""
    size = torch.Size(operator.shape).numel()
    units = torch.eye(size, dtype=torch.float64).reshape(size, *operator.shape)
    return operator.forward(units).reshape(size, -1).T


def picture(operator, batch=(2,), seed=0, out=False):
    """Seeded values of the operator's own size, float64."""
    shape = operator.out_shape if out else operator.shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)
