"""BDIA: the two-step pair whose ratio is a damping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...core.settings import parameter
from ...core.space import Space
from ..coupled import TwoStep

# Going up, a disturbance grows by 1/gamma a step. At sixtyfold growth, gamma .96 over 100 steps, the noise of an
# inversion is still near its right strength (1.2 times on an exact model); at a hundredfold it may be twice too strong.
LARGEST_GROWTH = 60.0


@dataclass(frozen=True)
class BDIA(TwoStep):
    """Two-step pair with r = gamma * a(s_high) / a(s_low) going down, a(s) = 1/sqrt(1 + s^2) for VE and 1 for flow.

    In the variance-preserving units of the paper the ratio is gamma itself; a(s) is the change of units. gamma 1 is of
    order 2 in both directions. Below 1 the way down is damped and of order 1, and the way up grows like gamma^-k.
    """

    name = "bdia"
    label = "BDIA"
    description = "Comes back exactly at one model call a step. With gamma below 1 edits follow the prompt more calmly."
    reference = (
        "Zhang et al. 2023, Exact Diffusion Inversion via Bi-directional Integration Approximation, arXiv:2307.10829"
    )
    order = 2
    added = (0, 1, 0)
    gamma: float = parameter(
        1.0,
        "1 keeps the noise soundest. 0.96 calms edits, up to about 100 steps; lower values only for fewer steps.",
        minimum=0.1,
        maximum=1.0,
        step=0.01,
    )

    def ratio(self, sigma_high: float, sigma: float, sigma_low: float, space: Space) -> float:
        """See the class."""
        if space == "flow":
            return self.gamma
        return self.gamma * math.sqrt((1.0 + sigma_low**2) / (1.0 + sigma_high**2))

    def check(self, sigmas: Sequence[float], index: int) -> None:
        """Refuse a gamma with which the way up diverges.

        Raises:
            ValueError: If a disturbance would grow beyond sixtyfold on the way up.
        """
        smallest = LARGEST_GROWTH ** (-1.0 / index)
        if self.gamma < smallest:
            # Rounded up to what the number box can hold, so that the value named is one that works.
            enough = min(1.0, math.ceil(smallest * 100.0) / 100.0)
            raise ValueError(
                f"gamma of method bdia must be at least {enough:.2f} to climb {index} steps, got {self.gamma:g}; "
                "raise it, or use fewer steps or a lower strength."
            )
