"""How a model mixes noise and latent, measured on the host's own function.

A method sees only ``denoised``; the one thing it must know beyond that is how a state is mixed from a clean latent
and noise:

    ve    x = x0 + sigma n                      (eps, v and EDM models)
    flow  x = (1 - sigma) x0 + s sigma n        (rectified flow; s = 1, or the noise_scale of newer hosts)

The host mixes linearly in both arguments, so two probes tell the space without naming a single class. Two more tell
what the network is shown of a state: nothing else than the host shows it, or (CogVideoX) x / sqrt(1 + sigma^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ...core.denoiser import CLEAN_FLOOR
from ...core.space import Space

_PROBES = (0.25, 0.75)  # two inner sigmas: at one alone a ve and a flow mix can agree by chance
_TOLERANCE = 1e-5  # the host mixes in float32
# Clean end of a flow with float64 states: rounding of (x - D) / sigma is 5e-8 at any floor above 1e-9.
_FLOW_FLOOR = 1e-6
# Flow networks that predict the clean latent, and that the host marks with no buffer named __x0__.
_PREDICT_CLEAN = ("HiDreamO1Transformer", "NextDiTPixelSpace")
# No velocity is as large on average, latents and noise being of size 1 or a few.
_LARGEST_VELOCITY = 100.0

# Above this sigma a flow latent weighs less than float32 rounding in the state, and cannot be read back from it.
PURE_NOISE = 1.0 - 1e-6


def model_sampling_of(model: Any) -> Any:
    """Return the model_sampling object that a run of this MODEL will use, with the user's patches."""
    return model.get_model_object("model_sampling")


def coefficients(model_sampling: Any, sigma: float, at_start: bool = True) -> tuple[float, float]:
    """Return how the host's noise_scaling weighs latent and noise.

        noise_scaling(sigma, n, z) = a z + b n

    Args:
        model_sampling: The model_sampling object of the model that samples.
        sigma: Sigma, positive.
        at_start: Whether this is the first sigma of a run, where the host scales noise at the largest by
            sqrt(1 + sigma^2) instead of sigma.

    Returns:
        The pair (a, b).
    """
    top = float(model_sampling.sigma_max)
    # The host's own rule for "this run starts from pure noise" (Sampler.max_denoise).
    from_pure_noise = at_start and (math.isclose(top, sigma, rel_tol=1e-5) or sigma > top)
    at = torch.tensor(float(sigma), dtype=torch.float64)

    def mix(noise: float, latent: float) -> float:
        one = torch.ones(1, dtype=torch.float64)
        return float(model_sampling.noise_scaling(at, noise * one, latent * one, from_pure_noise))

    return mix(0.0, 1.0), mix(1.0, 0.0)


def space_of(model_sampling: Any) -> Space:
    """Name the space in which a model samples.

    Args:
        model_sampling: The model_sampling object of the model, with the user's patches.

    Returns:
        "ve" or "flow".

    Raises:
        ValueError: If the host mixes latent and noise in another way, as image-to-image regression models do.
    """
    mixes = [(sigma, *coefficients(model_sampling, sigma, at_start=False)) for sigma in _PROBES]

    def near(value: float, wanted: float) -> bool:
        return math.isclose(value, wanted, rel_tol=_TOLERANCE)

    # A regression of pictures is shown a state as it is, and its answer does not depend on how noisy that was.
    regresses = _shows_raw(model_sampling) and _answer_to_nothing(model_sampling) == 0.0
    if all(near(latent, 1.0) and near(noise, sigma) for sigma, latent, noise in mixes) and not regresses:
        return "ve"
    if all(near(latent, 1.0 - sigma) and noise > 0.0 for sigma, latent, noise in mixes):
        return "flow"
    raise ValueError(
        "model must mix noise as a diffusion or rectified flow model does, "
        f"got {type(model_sampling).__name__}; inversion is not defined for this kind of model."
    )


def noise_scale(model_sampling: Any) -> float:
    """Return the standard deviation of the noise that a model was trained with: s for flow, 1 for ve."""
    sigma = _PROBES[0]
    return coefficients(model_sampling, sigma, at_start=False)[1] / sigma if space_of(model_sampling) == "flow" else 1.0


def showing(model_sampling: Any) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """Return what makes of a state that which the host is to be asked at: the state, or x / sqrt(1 + sigma^2)."""
    preserved = reads_preserved(model_sampling)
    return lambda x, sigma: x / math.hypot(1.0, sigma) if preserved else x


def reads_preserved(model_sampling: Any) -> bool:
    """Whether a ve model reads variance-preserving states, which the host does not make for it.

    The host mixes noise for it as for any other, and leaves the scale to samplers of such models.
    """
    return _shows_raw(model_sampling) and space_of(model_sampling) == "ve"


def _shows_raw(model_sampling: Any) -> bool:
    one = torch.ones(1, 1, dtype=torch.float64)
    return float(model_sampling.calculate_input(_PROBES[1] * one[0], one)) == 1.0


def _answer_to_nothing(model_sampling: Any) -> float:
    """The denoised for a network that answers 0 to a state of 1."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return float(model_sampling.calculate_denoised(_PROBES[1] * one[0], 0.0 * one, one))


def refuse_clean_prediction(x: torch.Tensor, denoised: torch.Tensor, sigma: float) -> None:
    """Refuse the answer of a flow network near sigma 0 whose error, divided by sigma, would be the whole derivative.

    Raises:
        ValueError: If the derivative is larger than any velocity.
    """
    velocity = float((x - denoised).detach().abs().mean()) / sigma
    if velocity > _LARGEST_VELOCITY:
        raise ValueError(
            f"model must predict a velocity to be asked at sigma {sigma:.3g}, got an answer that stands for one of "
            f"{velocity:.3g}; choose the method direct, ddim or edict, which ask at the sigmas of the schedule alone."
        )


def sigma_floor(model: Any, space: Space, dtype: torch.dtype) -> float | None:
    """Return the lowest sigma at which a model is asked for its derivative.

    A ve model is asked at the lowest sigma that it was trained on: below it eps models see the same timestep anyway
    and EDM models one that they never saw. A flow model is asked as near to 0 as the precision of the states allows,
    unless its network is known to predict the clean latent; `refuse_clean_prediction` tells of one that is not.

    Args:
        model: The MODEL, or the model_patcher of a guider.
        space: Its space.
        dtype: Precision of the states.

    Returns:
        The sigma; None where the default of the space is right.
    """
    if space == "ve":
        lowest = float(model_sampling_of(model).sigma_min)
        return lowest if 0.0 < lowest < 1.0 else None
    network = model.model.diffusion_model
    if hasattr(network, "__x0__") or type(network).__name__ in _PREDICT_CLEAN:
        return CLEAN_FLOOR
    return _FLOW_FLOOR if dtype == torch.float64 else None
