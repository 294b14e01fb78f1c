"""The model as a solver sees it: a denoiser of a noisy state and the derivative that follows from it.

    dx/dsigma = (x - D(x, sigma)) / sigma

holds for eps, v and flow models alike, because they differ only in how D is made from the network's output. Only the
mixture of clean latent and noise depends on the space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .space import Space, check_space

Denoise = Callable[[Tensor, float], Tensor]

# At sigma 0 the derivative is 0/0, so the network is asked at a floor instead. "ve": sigma_min of the Stable
# Diffusion schedule, sqrt((1 - abar_0) / abar_0), where the official inversion codes place a clean latent.
# "flow": where float32 rounding of the derivative (5e-5) is still below the bias (8e-3).
SIGMA_FLOOR: dict[Space, float] = {"ve": 0.0292, "flow": 1e-3}

# The floor of flow networks that predict the clean latent: their error divided by sigma is all that is left of the
# derivative near 0. Their authors clip the same division there (Li and He 2025, arXiv:2511.13720).
CLEAN_FLOOR = 0.05


class Evaluation(NamedTuple):
    """What one model call gives: dx/dsigma and the predicted clean latent, both of the shape of x."""

    derivative: Tensor
    denoised: Tensor


class Denoiser:
    """D(x, sigma) and dx/dsigma of one model under one conditioning, with its calls counted.

    Args:
        denoise: Maps a state (B, C, [T,] H, W) and a sigma to E[x0 | x] of the same shape, any dtype.
        space: "ve" or "flow".
        sigma_floor: Lowest sigma at which the model is asked, positive; None takes the default of the space.
        rebind: Maps an unconditional embedding to a denoiser that uses it, for methods that replay with one
            embedding per step; None where the backend cannot.
        plain: The same model under the same conditioning without guidance, for methods that climb so; None where
            there is no guidance to leave out.
        noise_scale: Standard deviation of the noise that the model was trained with, which all that is drawn gets.

    Raises:
        ValueError: If the space is unknown or the floor is not positive.
    """

    def __init__(
        self,
        denoise: Denoise,
        space: Space,
        sigma_floor: float | None = None,
        rebind: Callable[[Tensor], Denoise] | None = None,
        plain: Denoise | None = None,
        noise_scale: float = 1.0,
    ) -> None:
        check_space(space)
        floor = SIGMA_FLOOR[space] if sigma_floor is None else float(sigma_floor)
        if not 0.0 < floor < 1.0:
            raise ValueError(f"sigma_floor must lie between 0 and 1, got {floor}; leave it out for the default.")
        self.space: Space = space
        self.sigma_floor = floor
        self.noise_scale = noise_scale
        self.evaluations = 0
        self._denoise = denoise
        self._rebind = rebind
        self._plain = plain
        self._parent: Denoiser | None = None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Predicted clean latent; see evaluate."""
        return self.evaluate(x, sigma).denoised

    def evaluate(self, x: Tensor, sigma: float) -> Evaluation:
        """Derivative and predicted clean latent from one model call, in the shape, dtype and device of x.

        Both are at s = max(sigma, sigma_floor): dx/dsigma = (x - D(x, s)) / s.

        Raises:
            ValueError: If the model answers with another shape.
        """
        self._count()
        asked = max(float(sigma), self.sigma_floor)
        # Convolutions pick another kernel, with other last bits, for another order of strides: the way down must be
        # answered as the way up was, whatever strides a latent came with.
        denoised = self._denoise(x.contiguous(), asked)
        if denoised.shape != x.shape:
            raise ValueError(
                f"denoised must have the shape of the state {tuple(x.shape)}, got {tuple(denoised.shape)}; "
                "use a latent that this model takes."
            )
        denoised = denoised.to(device=x.device, dtype=x.dtype)
        return Evaluation((x - denoised) / asked, denoised)

    def derivative(self, x: Tensor, sigma: float) -> Tensor:
        """dx/dsigma; see evaluate."""
        return self.evaluate(x, sigma).derivative

    def with_embedding(self, embedding: Tensor) -> Denoiser:
        """The same denoiser with another unconditional embedding; its calls count here too.

        Raises:
            TypeError: If the backend cannot exchange the embedding.
        """
        if self._rebind is None:
            raise TypeError(
                "The model must let its unconditional embedding be exchanged, got a model without one; "
                "use a method that keeps no embeddings."
            )
        return self._child(self.answering(self._rebind(embedding), self._rebind, self._plain))

    @property
    def unguided(self) -> Denoiser:
        """The same denoiser without guidance, itself where it has none; its calls count here too."""
        if self._plain is None:
            return self
        return self._child(self.answering(self._plain))

    def answering(
        self, denoise: Denoise, rebind: Callable[[Tensor], Denoise] | None = None, plain: Denoise | None = None
    ) -> Denoiser:
        """A denoiser of the same model whose answers are made in another way; its calls do not count here."""
        return Denoiser(denoise, self.space, self.sigma_floor, rebind, plain, self.noise_scale)

    def _child(self, denoiser: Denoiser) -> Denoiser:
        denoiser._parent = self
        return denoiser

    def _count(self) -> None:
        self.evaluations += 1
        if self._parent is not None:
            self._parent._count()


def work_dtype(device: torch.device | str) -> torch.dtype:
    """The precision of solver states: float64, or float32 on devices that have none."""
    # Metal, DirectML (privateuseone) and some XPU drivers have no float64.
    return torch.float32 if torch.device(device).type in ("mps", "privateuseone", "xpu") else torch.float64
