"""Edits that need no inversion: source and target walk down side by side, and only their difference moves the latent.

    z <- x0 + f_tgt(z + x*_i - x0) - f_src(x*_i)

x*_i is the source re-noised to sigma_i, z is the edited latent (it starts as x0 and stands at the clean end
throughout) and f is one step or jump of a solver. Whatever a model gets wrong in the same way under both prompts
cancels, so that with equal prompts and guidance z stays x0.

Further branches may be evaluated beside source and target, and the edited latent blended with the others after every
step: all that is blended stands at the clean end, and with one noise a blend of clean latents is the same blend of the
noisy ones. Unified attention control: Xu et al. 2023, arXiv:2312.04965; local blend: Hertz et al. 2022,
arXiv:2208.01626.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.denoiser import Denoiser, Evaluation
from ..core.grid import check_index, check_sigmas, shorten
from ..core.noise import Noises
from ..core.settings import Settings
from ..core.space import mix
from ..core.walk import OnStep, StepReport
from .inversion import check_axes
from .mask import inside, mask_weights


class Blend(Protocol):
    """Puts the target's latent together after a step."""

    def __call__(self, number: int, total: int, sigma: float, latents: Sequence[Tensor]) -> Tensor:
        """The target's new latent.

        Args:
            number: Step, 0 at the noisiest.
            total: Steps of the whole edit.
            sigma: Sigma that the step left.
            latents: Those of the source, the target and the further branches: clean ones, or, in steps that sample the
                target alone, noisy ones of one sigma.
        """


@dataclass(frozen=True, eq=False)
class EditOptions:
    """What an edit may be given beside its models and its latent.

    Attributes:
        seed: Seed of the noise, at least 0.
        rows: Number of each row for the noise, where the batch is part of a larger one; None counts from 0.
        mask: Weights on the latent grid from 0 (keep) to 1 (edit), broadcastable to the latent; where it is 0 the
            result is x0 bit for bit.
        on_step: Told after every step; ``denoised`` is the predicted end of the edit. Whatever it raises ends it.
        both: Both models in one call, for states stacked along the batch, source first, where the target reads from
            the source; None asks each by itself.
        others: Branches beyond source and target in that call, stacked behind them.
        blend: Told after every step, before the mask; None for no blend.
    """

    seed: int = 0
    rows: Sequence[int] | None = None
    mask: Tensor | None = None
    on_step: OnStep | None = None
    both: Denoiser | None = None
    others: int = 0
    blend: Blend | None = None


class EditStep(NamedTuple):
    """What a step moves the latents of the target and the further branches to, and the predicted end of the edit.

    The end is None where it is the target's latent itself, whatever a blend makes of it.
    """

    latents: list[Tensor]
    end: Tensor | None = None


@dataclass(frozen=True, eq=False)
class EditTask:
    """One edit under way: both models, the source's clean latent, the sigmas from the noisiest down, the options."""

    source: Denoiser
    target: Denoiser
    x0: Tensor
    falling: tuple[float, ...]
    options: EditOptions
    noises: Noises
    weights: Tensor | None

    @property
    def total(self) -> int:
        """Steps of the whole edit."""
        return len(self.falling) - 1

    def ask(self, states: Sequence[Tensor], sigma: float) -> list[Evaluation]:
        """Evaluate the models of source, target and further branches, each in its own state."""
        both = self.options.both
        if both is None:
            return [denoiser.evaluate(x, sigma) for denoiser, x in zip((self.source, self.target), states, strict=True)]
        parts = (part.chunk(len(states)) for part in both.evaluate(torch.cat(list(states)), sigma))
        return [Evaluation(*part) for part in zip(*parts, strict=True)]

    def alone(self, noise: Tensor) -> Denoiser:
        """The target's model for sampling it alone; the source that it may look at stands at x0 with this noise."""
        both = self.options.both
        if both is None:
            return self.target

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return both(torch.cat([mix(self.x0, noise, sigma, both.space), x]), sigma).chunk(2)[1]

        return both.answering(denoise)

    def blended(self, number: int, source: Tensor, latents: Sequence[Tensor]) -> Tensor:
        """The target's latent after a step, blended with the others where the edit has a blend."""
        blend = self.options.blend
        return latents[0] if blend is None else blend(number, self.total, self.falling[number], (source, *latents))

    def masked(self, source: Tensor, latent: Tensor) -> Tensor:
        """The target's latent with the source's outside the mask."""
        return latent if self.weights is None else inside(self.weights, source, latent)

    def tell(self, report: StepReport, before: int = 0) -> None:
        """Pass a report on as part of the whole edit, ``before`` steps into it."""
        if self.options.on_step is not None:
            self.options.on_step(replace(report, index=before + report.index, total=self.total))


class EditRule(Protocol):
    """Moves the latents from one sigma to the next. May hold history, so every edit takes a fresh one."""

    def __call__(self, task: EditTask, latents: Sequence[Tensor], sigma: float, sigma_next: float) -> EditStep:
        """The latents after the step, with those given untouched: the target's and those of further branches."""


def edit_walk(task: EditTask, rule: EditRule, steps: int) -> Tensor:
    """Carry all latents from x0 down the first steps of an edit.

    Args:
        task: The edit.
        rule: How the latents move in each step.
        steps: Steps to take.

    Returns:
        The edited latent, at the clean end.
    """
    latents = [task.x0] * (1 + task.options.others)
    for number, (sigma, sigma_next) in enumerate(pairwise(task.falling[: steps + 1])):
        (_, *others), end = moved = rule(task, latents, sigma, sigma_next)
        blended = task.blended(number, task.x0, moved.latents)
        latents = [task.masked(task.x0, blended), *others]
        task.tell(StepReport(number, task.total, sigma, sigma_next, latents[0], blended if end is None else end))
    return latents[0]


@dataclass(frozen=True)
class InversionFreeEdit(Settings, ABC):
    """An edit by such a rule. Its settings are the dataclass fields, made by `parameter`.

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
        options: EditOptions = EditOptions(),
    ) -> Tensor:
        """Edit a clean latent towards the target conditioning.

        Args:
            source: The model under a conditioning that describes x0.
            target: The model under the conditioning of the edit.
            x0: Clean latent (B, C, [T,] H, W), float32 or float64; left untouched.
            sigmas: Ascending grid from 0.
            index: Index k to start from, 1 .. len(sigmas) - 1: the higher, the freer the edit.
            options: Seed, mask, listener and further branches.

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
        if options.others and options.both is None:
            raise ValueError("both must be given for an edit of several branches, got None; evaluate them in one call.")
        self.check(index, options.others)
        with torch.no_grad():
            clean = x0.detach()
            noises = Noises(options.seed, clean, options.rows, scale=source.noise_scale)
            mask = options.mask
            weights = None if mask is None else mask_weights(mask, clean.shape, clean.dtype, clean.device)
            return self._run(EditTask(source, target, clean, grid[index::-1], options, noises, weights))

    def check(self, index: int, others: int = 0) -> None:
        """Refuse settings that do not fit an index to start from, or a number of further branches.

        Raises:
            ValueError: If they do not.
        """

    @abstractmethod
    def evaluations(self, index: int) -> tuple[int, int]:
        """Calls of the source's and of the target's denoiser in an edit from index k."""

    @abstractmethod
    def _run(self, task: EditTask) -> Tensor:
        """Carry the latent from x0 to the clean end of the edit."""
