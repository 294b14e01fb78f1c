"""Noise optimisation: move an inverted noise so that what it comes down to meets a wish, and stay near where it was.

    x_k(u) = x_k + w u                      w: weight of the noise at sigma_k, so that u is in units of unit noise
    E(u)   = loss(D(x_k(u))) + pull * mean u^2

D is the whole way down under the conditioning of the replay. E is brought down by Adam on u, from u = 0, with the
gradient of the whole walk (`gradient.walk_gradient`).

Optimising the starting noise through the sampler: Wallace et al. 2023, Direct Optimization of Diffusion Latents
(DOODL), arXiv:2303.13703; Ben-Hamu et al. 2024, D-Flow, arXiv:2402.14017.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.adam import Adam
from ..core.denoiser import Denoiser
from ..core.fitting import Attempt, Best, fit
from ..core.settings import Scalar, Settings, parameter
from ..core.space import mix
from ..core.walk import StepReport
from .api import MisfitError, check_fit, own_method
from .gradient import walk_gradient
from .inversion import MOVED, AnyInversion, Inversion, keep
from .method import SingleState

NORMS = ("L2", "L1")

RowLoss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NoiseDescent(Settings):
    """Settings of an optimisation."""

    iterations: int = parameter(
        20,
        "Updates of the noise. Each plays the inversion back and differentiates that.",
        minimum=0,
        maximum=1000,
        step=1,
    )
    learning_rate: float = parameter(
        0.03,
        "How far an update may move a number of the noise, in its standard deviations.",
        minimum=0.0,
        maximum=1.0,
        step=0.001,
        round=0.000001,
    )
    pull: float = parameter(
        0.1,
        "Weight of the squared distance from the inverted noise. 0 lets it go anywhere.",
        minimum=0.0,
        maximum=1000.0,
        step=0.01,
        round=0.000001,
    )


@dataclass(frozen=True, eq=False)
class NoiseReport(StepReport):
    """What an evaluated noise tells its listener: x is that noise's state, denoised the latent it comes down to.

    Attributes:
        loss: Loss of each row.
        distance: Root mean square of u of each row, in standard deviations of the noise.
        best_loss: Loss of the noise that each row would keep if this were the end.
        best: That noise's state, shape of x: what an interrupted optimisation should keep.
    """

    loss: tuple[float, ...]
    distance: tuple[float, ...]
    best_loss: tuple[float, ...]
    best: Tensor


OnNoise = Callable[[NoiseReport], None]


def meet(reference: Tensor, mask: Tensor | None = None, norm: str = "L2") -> RowLoss:
    """The loss of not meeting a reference, as the mean over what the mask marks.

        L2: sum m (x - ref)^2 / sum m        L1: sum m |x - ref| / sum m

    Args:
        reference: Latent to meet, (1 or B, C, [T,] H, W).
        mask: Weights from 0 (do not care) to 1, broadcastable to the latent; None for everywhere.
        norm: "L2" or "L1".

    Returns:
        Maps a latent (B, C, [T,] H, W) to one loss a row, shape (B,); raises a ValueError if reference or mask do not
        fit it.

    Raises:
        ValueError: If the norm is unknown, or the mask lies outside 0 .. 1 or marks nothing in a row.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}; L2 is smoother, L1 is sharper.")
    if mask is not None:
        if not bool(((mask >= 0.0) & (mask <= 1.0)).all()):
            raise ValueError("mask must lie between 0 and 1, got values outside; clamp it.")
        if not bool(mask.flatten(1).any(1).all()):
            raise ValueError("mask must mark some of every picture, got one that marks nothing; paint it white there.")

    # Copies outside of inference mode: others could not take part in a gradient.
    with torch.inference_mode(False):
        wanted = reference.detach().clone()
        share = torch.ones(()) if mask is None else mask.detach().clone()

    def loss(x: Tensor) -> Tensor:
        _check_fits("reference", wanted, x)
        _check_fits("mask", share, x)
        missed = x - wanted.to(x)
        size = missed.square() if norm == "L2" else missed.abs()
        weights = share.to(x).expand_as(size)
        return (weights * size).flatten(1).sum(1) / weights.flatten(1).sum(1)

    return loss


def noise_optimize(
    inversion: AnyInversion,
    denoiser: Denoiser,
    loss: RowLoss,
    settings: NoiseDescent = NoiseDescent(),
    on_iteration: OnNoise | None = None,
    device: torch.device | str = "cpu",
) -> AnyInversion:
    """Optimise the noise of an inversion for what it is replayed to.

    Rows of a batch are each optimised for themselves, as far as their losses are. Of all noises that a row has tried
    it keeps the one with the least E; so none ends worse than the inversion was.

    Args:
        inversion: One of a method whose whole state is one latent; left untouched.
        denoiser: The model under the conditioning and guidance of the replay; gradients must pass through it.
        loss: Maps the latent at the clean end, (B, C, [T,] H, W), to one number a row, (B,). `meet` is one.
        settings: How many updates, how far, and how near to the inverted noise.
        on_iteration: Told of every noise, iterations + 1 times; whatever it raises ends the work.
        device: Where to compute.

    Returns:
        The inversion with the noise that was found as its x. Everything else is the inversion's: x0 and the path are
        those of its source.

    Raises:
        ValueError: If a setting is out of range, the loss does not give one finite number a row, or the model lets no
            gradient through.
        MisfitError: If the inversion's method keeps more than one latent, or the model is of another space.
    """
    method = own_method(inversion)
    if not isinstance(method, SingleState):
        raise MisfitError(
            f"inversion must come from a method that keeps one latent, got {method.name}; "
            "invert with midpoint, fireflow, ddim or another of that kind."
        )
    check_fit(inversion, denoiser, denoiser)
    started, called = time.perf_counter(), denoiser.evaluations
    with torch.inference_mode(False), torch.no_grad():
        way = _WayDown(inversion, method, denoiser, loss, device)

    def attempt(u: Tensor, number: int, wanted: bool) -> _Played:
        x, end, rows, gradient = way.differentiate(u) if wanted else way.reach(u)
        distance = u.square().flatten(1).mean(1)
        if gradient is not None:
            gradient = gradient + 2.0 * settings.pull / u[0].numel() * u
        return _Played(rows + settings.pull * distance, (x, rows), gradient, end, distance)

    def tell(number: int, played: _Played, best: Best) -> None:
        if on_iteration is None:
            return
        (x, rows), (best_x, best_rows) = played.parts, best.parts
        on_iteration(
            NoiseReport(
                number,
                settings.iterations + 1,
                inversion.sigma,
                inversion.sigmas[0],
                x,
                played.end,
                tuple(rows.tolist()),
                tuple(played.distance.sqrt().tolist()),
                tuple(best_rows.tolist()),
                best_x,
            )
        )

    start = torch.zeros_like(way.origin)
    fitted = fit(start, attempt, Adam(settings.learning_rate).step, settings.iterations, tell=tell)
    x, rows = fitted.parts
    remarks: dict[str, Scalar] = {
        "noise_optimize_first_loss": float(fitted.first.mean()),
        "noise_optimize_loss": float(rows.mean()),
        "noise_optimize_evaluations": denoiser.evaluations - called,
        "noise_optimize_seconds": time.perf_counter() - started,
    }
    return with_noise(inversion, x, remarks)


def with_noise(inversion: AnyInversion, x: Tensor, remarks: dict[str, Scalar] | None = None) -> AnyInversion:
    """The inversion with another state at its sigma; x0, path and everything else stay those of its source.

    Its meta says that it was moved, so that nobody takes it for a state of the source (`Inversion.reached`).

    Args:
        inversion: One of a method whose whole state is one latent.
        x: State at its index, shape of the latent.
        remarks: Further entries for its meta.
    """
    return replace(inversion, x=keep(x, inversion.dtype), meta={**inversion.meta, MOVED: True, **(remarks or {})})


@dataclass(frozen=True, eq=False)
class _Played(Attempt):
    """A noise that was played: what it comes down to, and its mean squared distance of each row."""

    end: Tensor
    distance: Tensor


class _WayDown:
    """The way down from x_k + w u, and its loss: state, latent, loss of each row, and gradient at u if wanted."""

    def __init__(
        self,
        inversion: Inversion,
        method: SingleState,
        denoiser: Denoiser,
        loss: RowLoss,
        device: torch.device | str,
    ) -> None:
        self._inversion, self._method, self._denoiser, self._loss = inversion, method, denoiser, loss
        self.origin = inversion.x.to(device)
        one = torch.full((1,), denoiser.noise_scale, dtype=torch.float64)
        self._weight = float(mix(0.0 * one, one, inversion.sigma, inversion.space, inversion.sigmas[0]))
        self._embeddings = [each.to(device) for each in inversion.embeddings or ()]

    def differentiate(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Play u and find the gradient of the losses at it."""
        losses: list[Tensor] = []

        def total(end: Tensor) -> Tensor:
            rows = self._rows(end)
            losses.append(rows.detach())
            return rows.sum()

        x = self.origin + self._weight * u
        gradient = walk_gradient(
            self._denoiser, x, self._inversion.falling, self._method.down, total, embeddings=self._embeddings
        )
        return x, gradient.end, losses[-1], self._weight * gradient.start

    def reach(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Play u, without a gradient."""
        x = self.origin + self._weight * u
        end = self._method.replay(replace(self._inversion, x=keep(x)), self._denoiser, device=x.device)
        return x, end, self._rows(end), None

    def _rows(self, end: Tensor) -> Tensor:
        rows = self._loss(end)
        if rows.shape != (len(end),) or not bool(torch.isfinite(rows).all()):
            raise ValueError(
                f"The loss must be one finite number for each of the {len(end)} rows, got {rows.detach().tolist()}; "
                "take its mean over all axes but the first."
            )
        return rows


def _check_fits(name: str, tensor: Tensor, x: Tensor) -> None:
    spare = x.ndim - tensor.ndim
    if spare < 0 or any(have not in (1, want) for have, want in zip(tensor.shape, x.shape[spare:], strict=True)):
        raise ValueError(
            f"{name} must fit the latent {tuple(x.shape)}, got {tuple(tensor.shape)}; "
            "give it the latent's size, with 1 for whatever is the same everywhere."
        )
