"""Edits that need no inversion: source and target walk down side by side, and only their difference moves the latent.

    z <- x0 + f_tgt(z + x*_i - x0) - f_src(x*_i)

x*_i is the source re-noised to level i, z is the edited latent (it starts as x0 and stands at the clean end
throughout) and f is one step or jump of a solver. Whatever a model gets wrong in the same way under both prompts
cancels, so that with equal prompts and guidance z stays x0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.grid import check_index, check_sigmas, shorten
from ..core.noise import Noises
from ..core.space import mix
from ..core.walk import AfterStep, OnStep, StepReport
from .inversion import check_axes
from .mask import keep_source


class Branches(NamedTuple):
    """Source and target model at one level: derivatives and clean predictions, each of the latent's shape."""

    source_derivative: Tensor
    target_derivative: Tensor
    source_denoised: Tensor
    target_denoised: Tensor


class EditStep(NamedTuple):
    """The edited latent after a level, and the clean latent at which a jump from this level would end the edit."""

    z: Tensor
    denoised: Tensor


@dataclass(frozen=True, eq=False)
class EditTask:
    """One edit under way.

    Attributes:
        source: The model under the source conditioning.
        target: The model under the target conditioning.
        x0: The source's clean latent (B, C, [T,] H, W).
        noises: Where noise is drawn from.
        mask: Weights from 0 (keep) to 1 (edit), or None.
        on_step: Told after every level, or None.
        total: Levels of the whole edit.
        both: Both models in one call, for states stacked along the batch, source first; None asks each by itself.
    """

    source: Denoiser
    target: Denoiser
    x0: Tensor
    noises: Noises
    mask: Tensor | None
    on_step: OnStep | None
    total: int
    both: Denoiser | None = None

    def ask(self, source_state: Tensor, target_state: Tensor, sigma: float) -> Branches:
        """Evaluate both models, each in its own state at one level; one call each, or one of both."""
        if self.both is not None:
            found = self.both.evaluate(torch.cat([source_state, target_state]), sigma)
            return Branches(*found.derivative.chunk(2), *found.denoised.chunk(2))
        source = self.source.evaluate(source_state, sigma)
        target = self.target.evaluate(target_state, sigma)
        return Branches(source.derivative, target.derivative, source.denoised, target.denoised)

    def alone(self, noise: Tensor) -> Denoiser:
        """The target's model for sampling it alone; the source that it may look at stands at x0 with this noise."""
        both = self.both
        if both is None:
            return self.target

        def denoise(x: Tensor, sigma: float) -> Tensor:
            source_state = mix(self.x0, noise, sigma, both.space)
            return both(torch.cat([source_state, x]), sigma).chunk(2)[1]

        return Denoiser(denoise, both.space, both.sigma_floor)

    def keep(self, state_of: Callable[[int], Tensor]) -> AfterStep | None:
        """The hook that holds the source's own states outside the mask; None without a mask."""
        if self.mask is None:
            return None
        return keep_source(self.mask, self.x0.shape, self.x0.dtype, state_of, self.x0.device)

    def tell(self, report: StepReport, before: int = 0) -> None:
        """Pass a report on as part of the whole edit, ``before`` levels into it."""
        if self.on_step is not None:
            self.on_step(replace(report, index=before + report.index, total=self.total))


class EditRule(Protocol):
    """Moves the edited latent from one level to the next. May hold history, so every edit takes a fresh one."""

    def __call__(self, task: EditTask, z: Tensor, sigma: float, sigma_next: float) -> EditStep:
        """The edited latent after the level sigma, with z untouched."""


def edit_walk(task: EditTask, falling: Sequence[float], rule: EditRule) -> Tensor:
    """Carry z = x0 down the levels.

    Args:
        task: The edit.
        falling: Levels in walking order.
        rule: How z moves at each level.

    Returns:
        The edited latent, at the clean end.
    """
    z = task.x0
    keep = task.keep(lambda index: task.x0)
    for index, (sigma, sigma_next) in enumerate(pairwise(falling)):
        z, denoised = rule(task, z, sigma, sigma_next)
        if keep is not None:
            z = keep(z, 0)
        task.tell(StepReport(index, task.total, sigma, sigma_next, z, denoised))
    return z


@dataclass(frozen=True)
class InversionFreeEdit(ABC):
    """An edit by the paired rule. Its settings are the dataclass fields.

    Attributes:
        name: Name for messages.
        reference: Paper and arXiv id.
    """

    name: ClassVar[str]
    reference: ClassVar[str]

    def edit(
        self,
        source: Denoiser,
        target: Denoiser,
        x0: Tensor,
        sigmas: Sequence[float],
        index: int,
        seed: int = 0,
        mask: Tensor | None = None,
        rows: Sequence[int] | None = None,
        on_step: OnStep | None = None,
        both: Denoiser | None = None,
    ) -> Tensor:
        """Edit a clean latent towards the target conditioning.

        Args:
            source: The model under a conditioning that describes x0.
            target: The model under the conditioning of the edit.
            x0: Clean latent (B, C, [T,] H, W), float32 or float64; left untouched.
            sigmas: Ascending noise levels from 0.
            index: Index k to start from, 1 .. len(sigmas) - 1: the higher, the freer the edit.
            seed: Seed of the noise, at least 0.
            mask: Weights on the latent grid from 0 (keep) to 1 (edit), broadcastable to the latent; where it is 0
                the result is x0 bit for bit.
            rows: Number of each row for the noise, where the batch is part of a larger one; None counts from 0.
            on_step: Told after every level; ``denoised`` is the predicted end of the edit. Whatever it raises ends
                the edit.
            both: Both models in one call, for states stacked along the batch, source first, where the target reads
                from the source; None asks each by itself.

        Returns:
            The edited latent, shape, dtype and device of x0.

        Raises:
            ValueError: If an argument is out of range, or the two models differ in space.
            TypeError: If the index is no whole number.
        """
        if source.space != target.space:
            raise ValueError(
                f"source and target must be of one space, got {source.space!r} and {target.space!r}; use one model."
            )
        grid = check_sigmas(sigmas, source.space)
        if grid[0] != 0.0:
            raise ValueError(f"sigmas must start at 0, got {shorten(grid)}; use the whole schedule.")
        check_index(index, grid)
        check_axes(x0)
        self.check(index)
        with torch.no_grad():
            clean = x0.detach()
            noises = Noises(seed, clean, rows)
            task = EditTask(source, target, clean, noises, mask, on_step, index, both)
            return self._run(task, grid[index::-1])

    def check(self, index: int) -> None:  # noqa: B027 - most edits fit every level
        """Refuse settings that do not fit an index.

        Raises:
            ValueError: If they do not.
        """

    @abstractmethod
    def evaluations(self, index: int) -> tuple[int, int]:
        """Calls of the source's and of the target's denoiser in an edit from index k."""

    @abstractmethod
    def _run(self, task: EditTask, falling: Sequence[float]) -> Tensor:
        """Carry z = x0 down the levels."""
