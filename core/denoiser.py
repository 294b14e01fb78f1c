"""The model as a solver sees it: a denoiser of a noisy state and the derivative that follows from it.

    dx/dsigma = (x - D(x, sigma)) / sigma

holds for eps, v and flow models alike, because they differ only in how D is made from the network's output.
Only the mixture of clean latent and noise depends on the space:

    "ve"    x = x0 + sigma * noise                  (eps and v models, k-diffusion convention)
    "flow"  x = (1 - sigma) * x0 + sigma * noise    (rectified flow)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Space = Literal["ve", "flow"]
Denoise = Callable[[Tensor, float], Tensor]

SPACES: tuple[Space, ...] = ("ve", "flow")

# At sigma 0 the derivative is 0/0, so the network is asked at a floor instead. "ve": sigma_min of the Stable
# Diffusion schedule, sqrt((1 - abar_0) / abar_0), the level at which the official inversion codes place a clean
# latent. "flow": the level where float32 rounding of the derivative (5e-5) is still below the bias (8e-3).
SIGMA_FLOOR: dict[Space, float] = {"ve": 0.0292, "flow": 1e-3}


class Evaluation(NamedTuple):
    """What one model call gives: dx/dsigma and the predicted clean latent, both of the shape of x."""

    derivative: Tensor
    denoised: Tensor


class Denoiser:
    """D(x, sigma) and dx/dsigma of one model under one conditioning, with its calls counted.

    Args:
        denoise: Maps a state (B, C, [T,] H, W) and a noise level to E[x0 | x] of the same shape, any dtype.
        space: "ve" or "flow".
        sigma_floor: Lowest level at which the model is asked, positive; None takes the default of the space.
        rebind: Maps an unconditional embedding to a denoiser that uses it, for methods that replay with one
            embedding per step; None where the backend cannot.
        plain: The same model under the same conditioning without guidance, for methods that climb so; None where
            there is no guidance to leave out.

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
    ) -> None:
        check_space(space)
        floor = SIGMA_FLOOR[space] if sigma_floor is None else float(sigma_floor)
        if not 0.0 < floor < 1.0:
            raise ValueError(f"sigma_floor must lie between 0 and 1, got {floor}; leave it out for the default.")
        self.space: Space = space
        self.sigma_floor = floor
        self.evaluations = 0
        self._denoise = denoise
        self._rebind = rebind
        self._plain = plain
        self._parent: Denoiser | None = None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Predicted clean latent at max(sigma, sigma_floor), in the shape, dtype and device of x.

        Raises:
            ValueError: If the model answers with another shape.
        """
        self._count()
        # Convolutions pick another kernel, with other last bits, for another order of strides: the way down must be
        # answered as the way up was, whatever strides a latent came with.
        denoised = self._denoise(x.contiguous(), max(float(sigma), self.sigma_floor))
        if denoised.shape != x.shape:
            raise ValueError(
                f"denoised must have the shape of the state {tuple(x.shape)}, got {tuple(denoised.shape)}; "
                "use a latent that this model takes."
            )
        return denoised.to(device=x.device, dtype=x.dtype)

    def evaluate(self, x: Tensor, sigma: float) -> Evaluation:
        """Derivative and denoised from one model call; s = max(sigma, sigma_floor) in both."""
        denoised = self(x, sigma)
        return Evaluation((x - denoised) / max(float(sigma), self.sigma_floor), denoised)

    def derivative(self, x: Tensor, sigma: float) -> Tensor:
        """dx/dsigma = (x - D(x, s)) / s with s = max(sigma, sigma_floor)."""
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
        return self._child(Denoiser(self._rebind(embedding), self.space, self.sigma_floor, self._rebind, self._plain))

    @property
    def unguided(self) -> Denoiser:
        """The same denoiser without guidance, itself where it has none; its calls count here too."""
        if self._plain is None:
            return self
        return self._child(Denoiser(self._plain, self.space, self.sigma_floor))

    def _child(self, denoiser: Denoiser) -> Denoiser:
        denoiser._parent = self
        return denoiser

    def _count(self) -> None:
        self.evaluations += 1
        if self._parent is not None:
            self._parent._count()


def check_space(space: str) -> None:
    """Refuse anything that is not a known space.

    Raises:
        ValueError: If the space is unknown.
    """
    if space not in SPACES:
        raise ValueError(f"space must be 've' or 'flow', got {space!r}; flow models are 'flow', all others 've'.")


def work_dtype(device: torch.device | str) -> torch.dtype:
    """The precision of solver states: float64, or float32 on devices that have none."""
    # Metal, DirectML (privateuseone) and some XPU drivers have no float64.
    return torch.float32 if torch.device(device).type in ("mps", "privateuseone", "xpu") else torch.float64


def _weights(sigma: float, space: Space, start: float) -> tuple[float, float]:
    """Weights of x0 and noise at sigma, for an x0 that itself stands at the level start."""
    check_space(space)
    if space == "ve":
        return 1.0, sigma - start
    if start >= 1.0:
        raise ValueError(f"The clean latent must stand below sigma 1, got {start}; start the sigmas at 0.")
    # Both weights follow from a straight line that is x0 at start and noise at 1.
    return (1.0 - sigma) / (1.0 - start), (sigma - start) / (1.0 - start)


def mix(x0: Tensor, noise: Tensor, sigma: float, space: Space, start: float = 0.0) -> Tensor:
    """State at sigma of clean latent and unit noise: x0 + sigma*noise, or (1-sigma)*x0 + sigma*noise for flow.

    Args:
        x0: Clean latent (B, C, [T,] H, W).
        noise: Unit Gaussian noise of the same shape.
        sigma: Noise level.
        space: "ve" or "flow".
        start: Level at which x0 itself stands, first entry of the grid; the result at start is x0.

    Returns:
        State of the shape of x0.

    Raises:
        ValueError: If the space is unknown, or start is 1 in the flow space.
    """
    clean, noisy = _weights(sigma, space, start)
    return clean * x0 + noisy * noise


def implied_noise(x: Tensor, x0: Tensor, sigma: float, space: Space, start: float = 0.0) -> Tensor:
    """The noise for which mix(x0, noise, sigma, space, start) is x; arguments and errors as in mix.

    Raises:
        ValueError: If sigma does not lie above start.
    """
    clean, noisy = _weights(sigma, space, start)
    if noisy <= 0.0:
        raise ValueError(f"sigma must lie above the clean level {start}, got {sigma}; ask at a noisier level.")
    return (x - clean * x0) / noisy


def noise_std(x: Tensor, x0: Tensor, sigma: float, space: Space, start: float = 0.0) -> float:
    """Standard deviation of the noise that a state implies over the expected one, which is 1.

    Arguments as in implied_noise. Well above 1 means that an inversion has blown up, well below that it fell short.
    """
    return float(implied_noise(x, x0, sigma, space, start).double().std())
