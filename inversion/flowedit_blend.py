"""FlowEdit whose latent is blended with the source after every level.

    z <- blend(x0, z)        while z stands at the clean end; at the last n_min levels the states at their level

FlowEdit's latent is x0 plus the edit so far, so that its source is x0 at every level, and a blend of clean latents is
the same blend of the noisy states x*_i and z_i. Blend: Hertz et al. 2022, arXiv:2208.01626.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core.walk import AfterStep
from .flowedit import FlowEdit
from .infedit_branches import Blend
from .inversion_free import EditRule, EditStep, EditTask


@dataclass(frozen=True)
class BlendedFlowEdit(FlowEdit):
    """FlowEdit with a blend of source and target.

    Attributes:
        blend: Puts the target's latent together after every level, from the source's and its own; None for neither.

    Raises:
        ValueError: If a setting is out of range.
    """

    blend: Blend | None = None

    def _rule(self) -> EditRule:
        return self._step if self.blend is None else _Blended(self._step, self.blend)

    def _after(self, task: EditTask, source_at: Callable[[int], Tensor], falling: Sequence[float]) -> AfterStep | None:
        blend, keep = self.blend, task.keep(source_at)
        if blend is None:
            return keep
        before, steps = task.total - (len(falling) - 1), len(falling) - 1

        def hook(x: Tensor, index: int) -> Tensor:
            done = steps - 1 - index
            x = blend(before + done, task.total, falling[done], (source_at(index), x))
            return x if keep is None else keep(x, index)

        return hook


class _Blended:
    """A rule, and the blend behind it; counts the levels of one edit."""

    def __init__(self, rule: EditRule, blend: Blend) -> None:
        self._rule = rule
        self._blend = blend
        self._index = 0

    def __call__(self, task: EditTask, z: Tensor, sigma: float, sigma_next: float) -> EditStep:
        found = self._rule(task, z, sigma, sigma_next)
        z = self._blend(self._index, task.total, sigma, (task.x0, found.z))
        self._index += 1
        return EditStep(z, found.denoised)
