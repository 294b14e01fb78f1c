"""Small linear solves on batches of samples, each sample with its own steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def dot(a: Tensor, b: Tensor, sample_dims: int) -> Tensor:
    """<a, b> of every sample: shape (..., 1, ..., 1), broadcastable against a."""
    return (a * b).sum(dim=tuple(range(-sample_dims, 0)), keepdim=True)


def conjugate_gradient(
    matrix: Map,
    right: Tensor,
    start: Tensor | None,
    *,
    sample_dims: int,
    iterations: int = 20,
    tolerance: float = 1e-4,
    precondition: Map | None = None,
    residuals: list[float] | None = None,
) -> Tensor:
    """Solve M z = b for a symmetric positive definite M (Hestenes and Stiefel 1952, preconditioned).

    A sample stops where |r| <= tolerance |b|, or where a step could not be taken without dividing by zero, so a start
    that is already exact and a huge weight stay finite.

    Args:
        matrix: z -> M z.
        right: b, shape (..., *sample).
        start: First z, same shape; None for zero, which saves one M.
        sample_dims: Number of trailing dimensions that make a sample.
        iterations: Most steps; each costs one M.
        tolerance: Relative residual at which a sample stops.
        precondition: r -> approximation of M^-1 r, symmetric positive definite; None for none.
        residuals: Gets the largest relative residual before the first step and after each.

    Returns:
        z, shape of b.
    """
    z, r = (torch.zeros_like(right), right) if start is None else (start, right - matrix(start))
    size = dot(right, right, sample_dims)
    # A sample whose right side is zero is solved by zero; the smallest positive number keeps its quotient finite.
    size = size.clamp_min(torch.finfo(size.dtype).tiny)
    s = r if precondition is None else precondition(r)
    p, rs = s, dot(r, s, sample_dims)
    for step in range(iterations + 1):
        relative = (dot(r, r, sample_dims) / size).sqrt()
        if residuals is not None:
            residuals.append(float(relative.max()))
        busy = relative > tolerance
        if step == iterations or not bool(busy.any()):
            break
        mp = matrix(p)
        curvature = dot(p, mp, sample_dims)
        busy = busy & (curvature > 0) & (rs > 0) & torch.isfinite(curvature)
        alpha = torch.where(busy, rs / torch.where(busy, curvature, 1.0), 0.0)
        z, r = z + alpha * p, r - alpha * mp
        s = r if precondition is None else precondition(r)
        after = dot(r, s, sample_dims)
        p = s + torch.where(busy, after / torch.where(busy, rs, 1.0), 0.0) * p
        rs = after
    return z


def largest_eigenvalue(matrix: Map, start: Tensor, steps: int) -> float:
    """Largest eigenvalue of a symmetric positive semidefinite M, from below, by Lanczos's recurrence.

    The eigenvalues of the tridiagonal matrix that M becomes on the Krylov space of the start close in on the ends of
    its spectrum much sooner than powers of M do, also where its largest eigenvalues lie close together, as those of a
    blur do.

    Args:
        matrix: v -> M v, called ``steps`` times at most.
        start: A vector in general position, any shape.
        steps: Size of the Krylov space.
    """
    v, before, tie = start / start.norm(), torch.zeros_like(start), 0.0
    diagonal: list[float] = []
    ties: list[float] = []
    for _ in range(steps):
        w = matrix(v) - tie * before
        diagonal.append(float((w * v).sum()))
        w = w - diagonal[-1] * v
        tie = float(w.norm())
        if tie <= torch.finfo(w.dtype).eps * max(map(abs, diagonal)):
            break
        ties.append(tie)
        before, v = v, w / tie
    beside = torch.tensor(ties[: len(diagonal) - 1], dtype=torch.float64)
    small = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(beside, 1) + torch.diag(beside, -1)
    return max(0.0, float(torch.linalg.eigvalsh(small)[-1]))


def gmres(matrix: Map, right: Tensor, *, sample_dims: int, steps: int) -> Tensor:
    """Minimise |b - M d| over d in span(b, M b, ..., M^(steps - 1) b); M need not be symmetric.

    Args:
        matrix: d -> M d, called ``steps`` times.
        right: b, shape (..., *sample).
        sample_dims: Number of trailing dimensions that make a sample.
        steps: Size of the Krylov space, at least 1.

    Returns:
        d, shape of b; zero for a sample whose b is zero.
    """
    d = torch.zeros_like(right)
    residual = right
    directions: list[Tensor] = []
    images: list[Tensor] = []
    v = right
    for _ in range(steps):
        w = matrix(v)
        for direction, image in zip(directions, images, strict=True):
            share = dot(image, w, sample_dims)
            w, v = w - share * image, v - share * direction
        length = dot(w, w, sample_dims).sqrt()
        usable = length > torch.finfo(length.dtype).eps * dot(right, right, sample_dims).sqrt()
        scale = torch.where(usable, 1.0 / torch.where(usable, length, 1.0), 0.0)
        # Images are orthonormal, so the best step along each is its share of the residual.
        directions.append(scale * v)
        images.append(scale * w)
        share = dot(images[-1], residual, sample_dims)
        d, residual = d + share * directions[-1], residual - share * images[-1]
        v = residual
    return d
