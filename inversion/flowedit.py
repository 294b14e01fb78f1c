"""FlowEdit: the difference of the two models' derivatives, integrated from the source to the target.

    x*_i = mix(x0, n, s_i), n fresh      z_i = x*_i + z - x0
    z   <- z + (s_{i-1} - s_i) mean_n [d_tgt(z_i, s_i) - d_src(x*_i, s_i)]

with d = dx/dsigma of either model. Written for flows; the rule holds as it stands for eps and v models too.
Kulikov et al. 2024, arXiv:2412.08629. The pull of FlowAlign adds pull * mean_n [D_src - D_tgt] to each step, which
keeps the edit from drifting away from the source: Kim et al. 2025, arXiv:2505.23145.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.space import mix
from ..core.steps import Euler
from ..core.walk import AfterStep, walk
from .inversion_free import EditRule, EditStep, EditTask, InversionFreeEdit, edit_walk


@dataclass(frozen=True)
class FlowEdit(InversionFreeEdit):
    """FlowEdit's edit; n_avg calls of each denoiser a level, one of the target's at each of the last n_min.

    Attributes:
        n_avg: Noises over which each step is averaged.
        n_min: Last levels that are walked by plain sampling under the target, for free restyling near the end.
        pull: FlowAlign's weight of the pull towards the source; 0 is plain FlowEdit, 0.01 is FlowAlign's choice.

    Raises:
        ValueError: If a setting is out of range.
    """

    name = "FlowEdit"
    reference = "Kulikov et al. 2024, arXiv:2412.08629"
    n_avg: int = 1
    n_min: int = 0
    pull: float = 0.0

    def __post_init__(self) -> None:
        if self.n_avg < 1:
            raise ValueError(f"n_avg must be at least 1, got {self.n_avg}; 1 is the paper's choice.")
        if self.n_min < 0:
            raise ValueError(f"n_min must not be negative, got {self.n_min}; 0 is the paper's choice.")
        if not 0.0 <= self.pull <= 1.0:
            raise ValueError(f"pull must lie between 0 and 1, got {self.pull:g}; 0.01 is FlowAlign's choice.")

    def check(self, index: int) -> None:
        """Refuse an n_min that leaves no level to the edit."""
        if self.n_min >= index:
            raise ValueError(f"n_min must be below n_max {index}, got {self.n_min}; 0 edits down to the clean end.")

    def evaluations(self, index: int) -> tuple[int, int]:
        """n_avg of each denoiser above n_min, then one of the target's a level."""
        paired = self.n_avg * (index - self.n_min)
        return paired, paired + self.n_min

    def _run(self, task: EditTask, falling: Sequence[float]) -> Tensor:
        split = len(falling) - self.n_min
        z = edit_walk(task, falling[:split], self._rule())
        return z if self.n_min == 0 else self._finish(task, z, falling[split - 1 :])

    def _rule(self) -> EditRule:
        """What moves the edited latent at each level; fresh for every edit."""
        return self._step

    def _after(self, task: EditTask, source_at: Callable[[int], Tensor], falling: Sequence[float]) -> AfterStep | None:
        """What follows each step of the last levels; source_at gives the source's state at each of them."""
        return task.keep(source_at)

    def _step(self, task: EditTask, z: Tensor, sigma: float, sigma_next: float) -> EditStep:
        moves, jumps = torch.zeros_like(z), torch.zeros_like(z)
        for _ in range(self.n_avg):
            source_state = mix(task.x0, task.noises.draw(), sigma, task.source.space)
            # Added in this order, the two states are the same bits where z is x0.
            asked = task.ask(source_state, source_state + (z - task.x0), sigma)
            moves = moves + (asked.target_derivative - asked.source_derivative)
            jumps = jumps + (asked.target_denoised - asked.source_denoised)
        edited = z + (sigma_next - sigma) / self.n_avg * moves - self.pull / self.n_avg * jumps
        return EditStep(edited, task.x0 + jumps / self.n_avg)

    def _finish(self, task: EditTask, z: Tensor, falling: Sequence[float]) -> Tensor:
        """Sample the last levels under the target alone, from the edit re-noised."""
        noise, space, x0 = task.noises.draw(), task.source.space, task.x0

        def source_at(index: int) -> Tensor:
            return mix(x0, noise, falling[-1 - index], space)

        start = source_at(len(falling) - 1) + (z - x0)
        before = task.total - (len(falling) - 1)
        after = self._after(task, source_at, falling)
        return walk(task.alone(noise), start, falling, Euler(), lambda report: task.tell(report, before), after)
