"""Draw a restored picture or clip onto what was measured, in pixels."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .error_variance import error_variance
from .following import follow
from .measurement import Measurement
from .solvers.temporal import TemporalConsistency

# What total variation over time needs to settle; each is a few solves in pixels, without a model.
_ROUNDS = 40


def snap(
    measurement: Measurement,
    x: Tensor,
    smoothing: float = 0.0,
    follow_motion: bool = False,
    tick: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Move pictures towards what was measured, and frames towards each other.

        argmin_z 1/2 sum (z - x)^2 / v + 1/2 |A z - y|^2 / sigma^2

    What a picture misses beyond the noise is its own error, whose variance v (error_variance) the measurement is
    weighed against: a picture that explains y within its noise as good as stays. A JPEG has no noise but cells: x
    goes to the nearest picture in them, or towards them with g = max(1, chi2) where other damages came before. For
    clips the minimum is that of

        1/2 |z - x|^2 + g/2 |A z - y|^2 + smoothing s |D z|_1,   g = max(1, chi2 of x)

    D is the difference between frames and s the deviation of the noise: small differences between frames are taken for
    noise and held still, and an edge that moves loses little, as total variation takes the same from large ones.

    Args:
        measurement: What was measured, with one noise for all, and without what an autoencoder loses.
        x: Pictures in [-1, 1], shape (..., *operator.shape); with smoothing the frames of one clip.
        smoothing: Weight of the differences between frames in deviations of the noise; 0 leaves each by itself, 1 to
            2 are usual.
        follow_motion: Whether D goes along the motion between frames in place of staying at a pixel; see ``follow``,
            which it is then. Without smoothing it does nothing.
        tick: Told the rounds done and all rounds of smoothing; what it raises ends the work.

    Returns:
        Shape of x, not clipped.

    Raises:
        ValueError: If the smoothing is negative, or if there are too few frames to be smoothed.
    """
    measurement = measurement.to(x)
    if follow_motion and smoothing > 0.0:
        return follow(measurement, x, smoothing, tick)
    if smoothing == 0.0 and measurement.operator.linear:
        return measurement.correct(x, measurement.weight(error_variance(measurement, x)))
    chi2 = measurement.chi2(x).clamp_min(1.0)
    if smoothing == 0.0:
        # A JPEG alone takes no weight; one behind other damages is a soft step towards its cells.
        return measurement.correct(x, chi2.reshape(*chi2.shape, *([1] * len(measurement.operator.shape))))
    sigma = float(measurement.sigma)
    variance = float(chi2.mean()) * sigma**2
    noise = sigma * measurement.operator.norm
    return TemporalConsistency(measurement, smoothing * noise / variance, rounds=_ROUNDS, tick=tick)(x, variance)
