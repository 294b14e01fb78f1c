"""Several references for one edit in passes: which one a pass looks at, and how far a pass moves the target.

Feature gradual sampling is one sentence in Li et al. 2024 (VisCtrl, arXiv:2406.06258), without code: in each update
take the features of a reference drawn at random, and weight the update. What follows is our own reading of it:

    r_j ~ uniform over the references, for each picture or view, in each pass j
    x_j <- alpha x_j + (1 - alpha) x_(j-1)

with x_j the inverted latent from which pass j starts. alpha 1 is plain VisCtrl.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.noise import generator
from .inversion import Inversion


def drawn(count: int, passes: int, seed: int, rows: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Draw a reference for every picture in every pass.

    Args:
        count: Number of references.
        passes: Number of passes.
        seed: Seed, at least 0; the picture of number r draws from seed + r, so that it does not depend on its batch.
        rows: Number of each picture.

    Returns:
        For every pass, the number of the reference of every picture.
    """
    columns = []
    for row in rows:
        numbers = torch.randint(count, (passes,), generator=generator(seed + int(row)))
        columns.append([int(number) for number in numbers])
    return tuple(zip(*columns, strict=True))


def moved(inversion: Inversion, before: Tensor | None, alpha: float) -> Inversion:
    """The inversion of a pass whose start is weighted with that of the pass before.

    Args:
        inversion: The inverted target of this pass.
        before: State from which the pass before started, or None in the first.
        alpha: Share of this pass, 0 .. 1.

    Raises:
        ValueError: If alpha lies outside 0 .. 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha:g}; 1 follows each pass fully.")
    if before is None or alpha == 1.0:
        return inversion
    return replace(inversion, x=torch.lerp(before.to(inversion.x), inversion.x, alpha), path=None)
