"""What an inversion method is: its facts, its parameters, and the two ways that it can be walked."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.settings import Scalar, Settings, Version
from ..core.steps import Stepper
from ..core.walk import AfterStep, OnStep, walk
from .embeddings import EmbeddingPerStep
from .inversion import Inversion, keep


@dataclass(frozen=True)
class MethodState:
    """What an inversion leaves: x_k, and what else its method needs to come back. Shapes as in Inversion.

    `remarks` are figures for people, which the inversion keeps in its meta.
    """

    x: Tensor
    mate: Tensor | None = None
    path: tuple[Tensor, ...] | None = None
    residuals: tuple[Tensor, ...] | None = None
    embeddings: tuple[Tensor, ...] | None = None
    seed: int | None = None
    remarks: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Method(Settings, ABC):
    """A way into the noise and back. Settings are the dataclass fields, made by `parameter`.

    Attributes:
        name: Name in files and workflows, equal to the name of the method's file.
        label: Name for people.
        description: When to take it, one or two sentences.
        reference: Paper and arXiv id.
        order: Order of convergence in the step size, None for a method that follows no ODE.
        added: Version of the pack in which it appeared; decides where its settings stand among a node's inputs.
        reversible: Whether replay undoes invert up to rounding.
        revision: Raised when the same settings give other numbers, so that older inversions are refused.
        min_index: Lowest index that it can invert to.
        needs_gradients: Whether invert differentiates the model, so that its denoiser must let gradients through.
        stops_early: Whether invert may make fewer calls than `evaluations` says.
        corrects_guidance: Whether its residuals undo the guidance that they were recorded under, so that an edit
            should have the same.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    description: ClassVar[str]
    reference: ClassVar[str]
    order: ClassVar[int | None]
    added: ClassVar[Version]
    reversible: ClassVar[bool] = False
    revision: ClassVar[int] = 1
    min_index: ClassVar[int] = 1
    needs_gradients: ClassVar[bool] = False
    stops_early: ClassVar[bool] = False
    corrects_guidance: ClassVar[bool] = False

    @classmethod
    def _called(cls, name: str) -> str:
        return f"{name} of method {cls.name}"

    @abstractmethod
    def invert(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        sigmas: Sequence[float],
        index: int,
        keep_path: bool = False,
        on_step: OnStep | None = None,
    ) -> MethodState:
        """Take x0 to sigmas[index].

        Args:
            denoiser: The model under the source conditioning.
            x0: Clean latent (B, C, [T,] H, W) at sigmas[0]; left untouched.
            sigmas: Ascending grid.
            index: Index k to stop at, min_index .. len(sigmas) - 1.
            keep_path: Whether to keep every state on the way.
            on_step: Told after every step.

        Returns:
            The state at index k and whatever the way back needs.
        """

    @abstractmethod
    def replay(
        self,
        inversion: Inversion,
        source: Denoiser,
        target: Denoiser | None = None,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Come back from the state of an inversion to sigmas[0].

        Args:
            inversion: One that this method made.
            source: The model under the source conditioning.
            target: The model under the target conditioning; None reconstructs.
            after_step: Maps each new state and its index in the grid to the one to go on from.
            on_step: Told after every step.
            device: Where to compute.

        Returns:
            Latent at sigmas[0], shape and dtype of the inversion's, on the device.
        """

    @abstractmethod
    def evaluations(self, index: int, rising: bool = True) -> int:
        """Calls of one denoiser in a walk from the clean end to index k or back; the most, if it stops early."""


class Path:
    """Taps a climb: keeps x0 and every state after it, where they are to be kept."""

    def __init__(self, x0: Tensor, kept: bool = True) -> None:
        self._states = [keep(x0)] if kept else None

    def __call__(self, x: Tensor, _: int) -> Tensor:
        """Keep a state; see AfterStep."""
        if self._states is not None:
            self._states.append(keep(x))
        return x

    @property
    def states(self) -> tuple[Tensor, ...] | None:
        """The states in their order, None where they are not kept."""
        return None if self._states is None else tuple(self._states)


@dataclass(frozen=True)
class SingleState(Method):
    """A method whose whole state is x_k: a stepper going up and a stepper coming down."""

    @abstractmethod
    def up(self) -> Stepper:
        """A fresh stepper for rising sigmas."""

    @abstractmethod
    def down(self) -> Stepper:
        """A fresh stepper for falling sigmas."""

    def remarks(self, stepper: Stepper) -> dict[str, Scalar]:
        """Figures for the inversion's meta, from the stepper that has just climbed; none by default."""
        return {}

    def invert(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        sigmas: Sequence[float],
        index: int,
        keep_path: bool = False,
        on_step: OnStep | None = None,
    ) -> MethodState:
        """Walk up; see Method.invert."""
        stepper, path = self.up(), Path(x0, keep_path)
        x = walk(denoiser, x0, sigmas[: index + 1], stepper, on_step, path)
        return MethodState(x, path=path.states, remarks=self.remarks(stepper))

    def replay(
        self,
        inversion: Inversion,
        source: Denoiser,
        target: Denoiser | None = None,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Walk down, with the inversion's embeddings where it has any; see Method.replay."""
        denoiser = source if target is None else target
        stepper: Stepper = self.down()
        if inversion.embeddings:
            stepper = EmbeddingPerStep(stepper, inversion.embeddings, device)
        return walk(denoiser, inversion.x.to(device), inversion.falling, stepper, on_step, after_step)
