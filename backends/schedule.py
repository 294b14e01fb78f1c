"""The noise schedule of a trained model: its table of sigmas, the grid for N steps, the timestep of a sigma."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.space import Space

# A schedule rescaled to zero terminal SNR has alphas_cumprod = 0 at its end, an infinite sigma. This value is
# the one that ComfyUI puts there: sigma 4518.
_SMALLEST_ALPHA = 4.8973451890853435e-08
_FLOW_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """The sigmas that a network was trained at.

    Attributes:
        space: "ve" (x = x0 + sigma n) or "flow" (x = (1 - sigma) x0 + sigma n).
        table: Trained sigmas, rising, without 0. The index is the timestep of a discrete (ve) model.
    """

    space: Space
    table: tuple[float, ...]

    @classmethod
    def discrete(cls, alphas_cumprod: Sequence[float]) -> Schedule:
        """Sigmas of an eps or v model.

            sigma = sqrt((1 - a) / a)          (Karras et al. 2022, arXiv:2206.00364, table 1)

        Args:
            alphas_cumprod: Signal power at each timestep, falling from about 1 to about 0.
        """
        alphas = [max(float(a), _SMALLEST_ALPHA) for a in alphas_cumprod]
        return cls("ve", tuple(math.sqrt((1.0 - a) / a) for a in alphas))

    @classmethod
    def flow(cls, shift: float = 1.0) -> Schedule:
        """Sigmas of a rectified-flow model whose training grid was shifted towards the noise.

            sigma = shift s / (1 + (shift - 1) s),  s = 1/1000 … 1          (Esser et al. 2024, arXiv:2403.03206)

        Args:
            shift: 1 for none, 3 for SD3; Flux uses exp(mu), see `flow_shift`.
        """
        if not shift > 0.0:
            raise ValueError(f"shift must be positive, got {shift}; use 1 for an unshifted grid.")
        uniform = [(i + 1) / _FLOW_STEPS for i in range(_FLOW_STEPS)]
        return cls("flow", tuple(shift * s / (1.0 + (shift - 1.0) * s) for s in uniform))

    @property
    def floor(self) -> float:
        """The smallest trained sigma: below it the network was never asked anything."""
        return self.table[0]

    def grid(self, steps: int) -> tuple[float, ...]:
        """Return steps + 1 rising sigmas, the first 0, the last the largest.

        The sigmas are taken at equal distances in the table, as ComfyUI's scheduler `simple` does, so that the
        same number of steps means the same grid in both.

        Raises:
            ValueError: If steps is not between 2 and the length of the table.
        """
        if not 2 <= steps <= len(self.table):
            raise ValueError(f"steps must be between 2 and {len(self.table)}, got {steps}; choose 20 to start with.")
        stride = len(self.table) / steps
        falling = [self.table[-(1 + int(i * stride))] for i in range(steps)]
        return (0.0, *reversed(falling))

    def timestep(self, sigma: float) -> int:
        """Return the index of the trained sigma nearest to sigma in log sigma; 0 below the first."""
        if sigma <= self.table[0]:
            return 0
        above = bisect.bisect_left(self.table, sigma)
        if above == len(self.table):
            return above - 1
        nearer_below = math.log(sigma / self.table[above - 1]) < math.log(self.table[above] / sigma)
        return above - 1 if nearer_below else above


def flow_shift(
    tokens: int, base_shift: float, max_shift: float, base_tokens: int = 256, max_tokens: int = 4096
) -> float:
    """Return the shift that Flux uses for a picture of so many tokens: exp of a line in the number of tokens.

    Args:
        tokens: Picture tokens the transformer sees (latent height / 2 * latent width / 2).
        base_shift: Exponent mu at base_tokens.
        max_shift: Exponent mu at max_tokens.
        base_tokens: Tokens of a 256 by 256 picture.
        max_tokens: Tokens of a 1024 by 1024 picture.
    """
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + slope * (tokens - base_tokens))
