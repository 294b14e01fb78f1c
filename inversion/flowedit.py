"""FlowEdit: the difference of the two models' derivatives, integrated from the source to the target.

    x*_i = mix(x0, n, s_i), n fresh      z_i = x*_i + z - x0
    z   <- z + (s_{i-1} - s_i) mean_n [d_tgt(z_i, s_i) - d_src(x*_i, s_i)]

with d = dx/dsigma of either model. Written for flows; the rule holds as it stands for eps and v models too.
Kulikov et al. 2024, arXiv:2412.08629. The pull of FlowAlign adds pull * mean_n [D_src - D_tgt] to each step, which
keeps the edit from drifting away from the source: Kim et al. 2025, arXiv:2505.23145.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.settings import parameter
from ..core.space import mix
from ..core.steps import Euler
from ..core.walk import walk
from .inversion_free import EditStep, EditTask, InversionFreeEdit, edit_walk


@dataclass(frozen=True)
class FlowEdit(InversionFreeEdit):
    """FlowEdit's edit; n_avg calls of each denoiser a step, one of the target's in each of the last n_min.

    pull is FlowAlign's weight of the pull towards the source; 0 is plain FlowEdit.
    """

    name = "FlowEdit"
    reference = "Kulikov et al. 2024, arXiv:2412.08629"
    n_avg: int = parameter(
        1,
        "Noises over which each step is averaged. More make the edit depend less on the seed and cost that many times "
        "the model calls.",
        minimum=1,
        maximum=64,
        step=1,
    )
    n_min: int = parameter(
        0,
        "Last steps that are sampled under the target alone, for a change of style. Below n_max. Above 0 equal prompts "
        "no longer give the source back.",
        minimum=0,
        maximum=999,
        step=1,
    )
    pull: float = parameter(
        0.0,
        "Pull of each step towards the source, against drift. FlowAlign uses 0.01, with the source prompt as negative "
        "and source_cfg 1.",
        minimum=0.0,
        maximum=1.0,
        step=0.001,
        round=0.0001,
        advanced=True,
    )

    def check(self, index: int, others: int = 0) -> None:
        """Refuse an n_min that leaves no step to the edit, and further branches."""
        if self.n_min >= index:
            raise ValueError(f"n_min must be below n_max {index}, got {self.n_min}; 0 edits down to the clean end.")
        if others:
            raise ValueError(f"FlowEdit must have no branches but source and target, got {others} more; use InfEdit.")

    def evaluations(self, index: int) -> tuple[int, int]:
        """n_avg of each denoiser above n_min, then one of the target's a step."""
        together = self.n_avg * (index - self.n_min)
        return together, together + self.n_min

    def _run(self, task: EditTask) -> Tensor:
        z = edit_walk(task, self._step, task.total - self.n_min)
        return z if self.n_min == 0 else self._finish(task, z)

    def _step(self, task: EditTask, latents: Sequence[Tensor], sigma: float, sigma_next: float) -> EditStep:
        (z,) = latents
        moves, jumps = torch.zeros_like(z), torch.zeros_like(z)
        for _ in range(self.n_avg):
            source_state = mix(task.x0, task.noises.draw(), sigma, task.source.space)
            # Added in this order, the two states are the same bits where z is x0.
            source, target = task.ask((source_state, source_state + (z - task.x0)), sigma)
            moves = moves + (target.derivative - source.derivative)
            jumps = jumps + (target.denoised - source.denoised)
        edited = z + (sigma_next - sigma) / self.n_avg * moves - self.pull / self.n_avg * jumps
        return EditStep([edited], task.x0 + jumps / self.n_avg)

    def _finish(self, task: EditTask, z: Tensor) -> Tensor:
        """Sample the last steps under the target alone, from the edit re-noised."""
        noise, x0, falling = task.noises.draw(), task.x0, task.falling
        before = task.total - self.n_min

        def source_at(number: int) -> Tensor:
            return mix(x0, noise, falling[number], task.source.space)

        def settle(x: Tensor, index: int) -> Tensor:
            number = task.total - 1 - index
            source = source_at(number + 1)
            return task.masked(source, task.blended(number, source, (x,)))

        start = source_at(before) + (z - x0)
        denoiser = task.alone(noise)
        return walk(denoiser, start, falling[before:], Euler(), lambda report: task.tell(report, before), settle)
