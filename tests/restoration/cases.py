"""Small pictures and clips, neither square nor even where they need not be, and the matrix of an operator."""

import torch

PICTURE = (3, 9, 12)
CLIP = (6, 3, 8, 6)


def hole(count=1):
    """White where pictures of PICTURE are missing."""
    missing = torch.zeros(count, 9, 12)
    missing[:, 2:6, 3:8] = 1.0
    return missing


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
