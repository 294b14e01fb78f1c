"""InfEdit with further edits beside the target: the walk of unified attention control.

    x*_i = mix(x0, n, s_i)      z_i^b = mix(z^b, n, s_i)                              for every branch b
    z^b <- x0 + D_b(z_i^b, s_i) - D_src(x*_i, s_i)
    z^target <- blend(x0, z^target, z^others)

All branches share the noise, so that a blend of clean latents is the same blend of the noisy ones. Xu et al. 2023,
arXiv:2312.04965.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core.space import mix
from .infedit import Consistent, InfEdit
from .inversion_free import Branches, EditStep, EditTask, edit_walk


class Blend(Protocol):
    """Puts the target's latent together after a level."""

    def __call__(self, index: int, total: int, sigma: float, states: Sequence[Tensor]) -> Tensor:
        """The target's new latent.

        Args:
            index: Number of the level, 0 at the noisiest.
            total: Number of levels.
            sigma: The level.
            states: Clean latents of the source, the target and the others.
        """


@dataclass(frozen=True)
class BranchedInfEdit(InfEdit):
    """InfEdit of several branches that are evaluated together. One joint call a level.

    Attributes:
        others: Branches beyond source and target.
        blend: Told after every level, or None.

    Raises:
        ValueError: If eta lies outside 0 .. 1 or the number of branches is negative.
    """

    others: int = 0
    blend: Blend | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.others < 0:
            raise ValueError(f"others must be at least 0, got {self.others}; 0 is the plain edit.")

    def _run(self, task: EditTask, falling: Sequence[float]) -> Tensor:
        if task.both is None:
            raise ValueError("both must be given for an edit of several branches, got None; evaluate them in one call.")
        return edit_walk(task, falling, _Branched(self))


class _Branched(Consistent):
    """The rule at every level; holds the latents of the other branches."""

    def __init__(self, edit: BranchedInfEdit) -> None:
        super().__init__(edit.eta)
        self._edit = edit
        self._others: list[Tensor] | None = None
        self._index = 0

    def __call__(self, task: EditTask, z: Tensor, sigma: float, sigma_next: float) -> EditStep:
        assert task.both is not None
        x0, space = task.x0, task.both.space
        others = [x0] * self._edit.others if self._others is None else self._others
        states = [x0, z, *others]
        noise = self._noise(task)
        found = task.both.evaluate(torch.cat([mix(state, noise, sigma, space) for state in states]), sigma)
        denoised, derivative = found.denoised.chunk(len(states)), found.derivative.chunk(len(states))
        self._carry(Branches(*derivative[:2], *denoised[:2]), task, noise, z, sigma)
        edited, *self._others = [x0 + (each - denoised[0]) for each in denoised[1:]]
        if self._edit.blend is not None:
            edited = self._edit.blend(self._index, task.total, sigma, (x0, edited, *self._others))
        self._index += 1
        return EditStep(edited, edited)
