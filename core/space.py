"""How a noisy state is mixed from a clean latent and noise, and what follows from the two weights alone.

x = a x0 + b n        "ve":   a = 1,          b = sigma     (eps and v models, k-diffusion convention)
"flow": a = 1 - sigma,  b = sigma     (rectified flow)
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

Space = Literal["ve", "flow"]
SPACES: tuple[Space, ...] = ("ve", "flow")


def check_space(space: str) -> None:
    """Refuse anything that is not a known space.

    Raises:
        ValueError: If the space is unknown.
    """
    if space not in SPACES:
        raise ValueError(f"space must be 've' or 'flow', got {space!r}; flow models are 'flow', all others 've'.")


def weights(sigma: float, space: Space, start: float = 0.0) -> tuple[float, float]:
    """The weights a and b of clean latent and unit noise.

    Args:
        sigma: Noise level.
        space: "ve" or "flow".
        start: Sigma at which the clean latent itself stands: a and b are 1 and 0 there.

    Raises:
        ValueError: If the space is unknown, a sigma lies outside it, or start is 1 in the flow space.
    """
    check_space(space)
    for value in (sigma, start):
        if not value >= 0.0 or (space == "flow" and value > 1.0):
            raise ValueError(
                f"sigma must be 0 or more, and at most 1 for flow, got {value}; use the model's own sigmas."
            )
    if space == "ve":
        return 1.0, sigma - start
    if start == 1.0:
        raise ValueError(f"The clean latent must stand below sigma 1, got {start}; start the sigmas at 0.")
    # Both weights follow from a straight line that is x0 at start and noise at 1.
    return (1.0 - sigma) / (1.0 - start), (sigma - start) / (1.0 - start)


def mix(x0: Tensor, noise: Tensor, sigma: float, space: Space, start: float = 0.0) -> Tensor:
    """State a x0 + b noise at sigma.

    Args:
        x0: Clean latent (B, C, [T,] H, W).
        noise: Unit Gaussian noise of the same shape.
        sigma: Noise level.
        space: "ve" or "flow".
        start: Sigma at which x0 itself stands, first entry of the grid; the result at start is x0.

    Returns:
        State of the shape of x0.

    Raises:
        ValueError: As in weights.
    """
    clean, noisy = weights(sigma, space, start)
    return clean * x0 + noisy * noise


def implied_noise(x: Tensor, x0: Tensor, sigma: float, space: Space, start: float = 0.0) -> Tensor:
    """The noise for which mix(x0, noise, sigma, space, start) is x; arguments and errors as in mix.

    Raises:
        ValueError: If sigma does not lie above start.
    """
    clean, noisy = weights(sigma, space, start)
    if noisy <= 0.0:
        raise ValueError(f"sigma must lie above the clean end {start}, got {sigma}; ask at a noisier one.")
    return (x - clean * x0) / noisy


def noise_std(x: Tensor, x0: Tensor, sigma: float, space: Space, start: float = 0.0) -> float:
    """Standard deviation of the noise that a state implies over the expected one, which is 1.

    Arguments as in implied_noise. Well above 1 means that an inversion has blown up, well below that it fell short.
    """
    return float(implied_noise(x, x0, sigma, space, start).double().std())


def clean_variance(sigma: float, space: Space, variance: float = 1.0) -> float:
    """Variance r^2 = v b^2 / (v a^2 + b^2) of the clean latent given the state, for data of variance v.

    It is exact for white data and finite at flow sigma 1.
    """
    a, b = weights(sigma, space)
    return variance * b**2 / (variance * a**2 + b**2) if b > 0.0 else 0.0


def vp_scale(sigma: float, space: Space) -> float:
    """sqrt(a^2 + b^2): what a state is divided by to have the unit variance of a DDPM's."""
    return math.hypot(*weights(sigma, space))
