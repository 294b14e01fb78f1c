"""Playing an inversion back with an unconditional embedding of its own in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.settings import Scalar
from ..core.steps import Step, Stepper
from .inversion import AnyInversion, keep


class EmbeddingPerStep:
    """Runs a stepper with the embeddings of an inversion, in walking order: noisy end first.

    Steps beyond the embeddings that there are, in a fit that was stopped, use the last of them, from which the fit
    itself would have gone on.
    """

    def __init__(self, stepper: Stepper, embeddings: Sequence[Tensor], device: torch.device | str) -> None:
        """Set the walk up.

        Args:
            stepper: A fresh stepper.
            embeddings: One unconditional embedding a step, at least one.
            device: Where the states are.
        """
        self._stepper = stepper
        self._embeddings = embeddings
        self._device = device
        self._walked = 0

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Step:
        """One step; see Stepper."""
        embedding = self._embeddings[min(self._walked, len(self._embeddings) - 1)]
        self._walked += 1
        return self._stepper(denoiser.with_embedding(embedding.to(self._device)), x, sigma, sigma_next)


def with_embeddings(
    inversion: AnyInversion, embeddings: Sequence[Tensor], cfg: float, remarks: dict[str, Scalar] | None = None
) -> AnyInversion:
    """The inversion with embeddings to be replayed at a guidance scale.

    Args:
        inversion: One whose way down takes one model call a step.
        embeddings: Unconditional embeddings from the noisy end on, at most one for each step down.
        cfg: Guidance scale that they belong to; it becomes the inversion's "cfg", and the guidance of the climb goes to
            "climb_cfg".
        remarks: Further entries for its meta.

    Raises:
        ValueError: If there are none, or more than steps.
    """
    if not 1 <= len(embeddings) <= inversion.index:
        raise ValueError(
            f"embeddings must be at least one and at most one for each of the {inversion.index} steps, "
            f"got {len(embeddings)}; fit them on this one."
        )
    climb: dict[str, Scalar] = {"climb_cfg": inversion.meta["cfg"]} if "cfg" in inversion.meta else {}
    if inversion.embeddings:
        climb = {key: inversion.meta[key] for key in ("climb_cfg",) if key in inversion.meta}
    meta = {**inversion.meta, **climb, **(remarks or {}), "cfg": float(cfg)}
    return replace(inversion, embeddings=tuple(keep(embedding) for embedding in embeddings), meta=meta)
