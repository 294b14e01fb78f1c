"""Restoration as a SAMPLER: the host's scheduler, guider, LoRA, preview and interrupt around the pack's solvers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from ...inversion import Denoiser, mix
from ...restoration.levels import Report, weights
from ...restoration.measurement import Measurement
from ...restoration.solvers.dds import Consistency, PixelConsistency, dds
from ...restoration.solvers.fresh import fresh_noise
from ...restoration.solvers.latent import (
    DIRECTION,
    DecodeCorrectEncode,
    DecoderGradient,
    EncoderAdjoint,
    autoencoder_noise,
)
from ...restoration.solvers.red_diff import red_diff
from ...restoration.solvers.temporal import TemporalConsistency
from ..host.checks import refuse_inpainting, refuse_skipping
from ..host.compat import is_streamed
from ..host.gradients import differentiable
from ..host.misfits import explained
from ..host.parametrisation import coefficients, space_of
from ..host.schedule import without_repeats
from ..host.session import Callback, Session
from .autoencoder import Autoencoder, Pixels
from .damage import Damage
from .damaged_pictures import damaged_pixels, per_sample

# Variance of pictures in [-1, 1] over that of latents, which the formats scale to 1.
PIXEL_VARIANCE = 0.25
# 2^64 over the golden ratio: far from every seed that a user counts up to.
_STREAM = 0x9E3779B97F4A7C15
LEVELS = 127.5  # levels of 255 in a unit of [-1, 1]

ENCODER_ADJOINT, DECODE_CORRECT_ENCODE, DECODER_GRADIENT = (
    "encoder adjoint",
    "decode, correct, encode",
    "decoder gradient",
)
LATENT_METHODS = (ENCODER_ADJOINT, DECODE_CORRECT_ENCODE, DECODER_GRADIENT)


@dataclass(frozen=True)
class Photo:
    """What is known of the picture that is restored.

    Attributes:
        damage: How it was damaged.
        image: The damaged IMAGE.
        noise: Deviation of its noise in levels of 255.
        vae: The VAE, None for models that sample pictures.
    """

    damage: Damage
    image: torch.Tensor
    noise: float
    vae: Any = None


@dataclass(frozen=True)
class DDSSettings:
    """Settings of RestoreDDS, named as its inputs."""

    freshness: float = 0.85
    trust: float = 1.0
    latent_method: str = ENCODER_ADJOINT
    inner_steps: int = 1
    smoothing: float = 0.0
    shared_noise: bool = False


@dataclass(frozen=True)
class REDDiffSettings:
    """Settings of RestoreREDDiff, named as its inputs."""

    prior: float = 0.25
    step: float = 0.1
    weight: str = "linear"
    schedule: str = "constant"
    sigma_max: float = 10.0


class Run:
    """One call of a sampler with everything in place.

    Attributes:
        denoiser: The model.
        levels: Falling noise levels.
        noise: Unit noise of the state's shape, float32, an ordinary tensor.
        latent: The latent that the run starts on, same shape.
        autoencoder: Decoder and encoder of the model's states.
        pictures: Shape of the decoded state, (B, C, H, W) or (B, T, C, H, W).
        measurement: The measurement, with what the autoencoder loses in its noise.
        frame_axis: Axis of frames in the state.
        seed: Seed of the run.
    """

    def __init__(
        self,
        photo: Photo,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        noise: torch.Tensor,
        latent_image: torch.Tensor | None,
        smoothing: float = 0.0,
    ) -> None:
        """Prepare a run; see the attributes.

        Raises:
            ValueError: If something does not fit.
        """
        refuse_skipping(guider.model_patcher)
        refuse_inpainting(guider.inner_model)
        self.levels = _falling(sigmas)
        if noise.ndim not in (4, 5):
            raise ValueError(f"latent must be that of pictures or clips, got shape {tuple(noise.shape)}; use another.")
        if not bool(torch.count_nonzero(noise) > 0):
            raise ValueError("noise must be connected to restore, got DisableNoise; connect RandomNoise.")
        # Copies: what the host made in inference mode cannot take part in gradients.
        self.noise = noise.float().clone()
        self.latent = torch.zeros_like(self.noise) if latent_image is None else latent_image.float().clone()
        self.denoiser: Denoiser = Session(guider, sigmas, extra_args, None, noise).denoiser(dtype=torch.float32)
        self.space = self.denoiser.space
        _refuse_scaled_noise(guider.inner_model.model_sampling, self.space)
        self.seed = int(extra_args.get("seed") or 0)
        self.frame_axis = 2 if noise.ndim == 5 else 0
        if smoothing > 0.0 and noise.shape[self.frame_axis] < 2:
            raise ValueError(
                f"temporal_smoothing must be 0 for a single picture, got {smoothing:g}; "
                "set it to 0, or restore all frames of the clip as one batch."
            )
        self.joined = noise.ndim == 4 and (photo.damage.over_time or smoothing > 0.0)
        latent_format = guider.model_patcher.get_model_object("latent_format")
        self.pixel_model = photo.vae is None
        if self.pixel_model and noise.ndim == 5:
            raise ValueError(
                "vae must be connected to restore the latent of a clip, got none; connect the model's own."
            )
        self.autoencoder = (
            Pixels(latent_format)
            if photo.vae is None
            else Autoencoder(photo.vae, latent_format, guider.model_patcher, tuple(noise.shape))
        )
        # The decoder alone knows the size of the picture, and at the first size it is refused before any step.
        self.pictures = self._decoded(self.latent).shape
        self.measurement = self._measure(photo)

    def _decoded(self, latent: torch.Tensor) -> torch.Tensor:
        try:
            return self.autoencoder.decode(latent)
        except RuntimeError as error:
            # Running out of memory has classes of its own; this is what torch says of a layer of another width.
            if type(error) is not RuntimeError or "channels" not in str(error):
                raise
            raise ValueError(
                f"vae must decode the model's latents of {latent.shape[1]} channels, got one of another model; "
                "connect the VAE of the model's loader."
            ) from error

    def _measure(self, photo: Photo) -> Measurement:
        shape = self.pictures
        frames = shape[0] if len(shape) == 4 else shape[1]
        operator = photo.damage.on(shape[-2], shape[-1], frames, shape[-3])
        pixels = damaged_pixels(photo.image, operator)
        lead = tuple(shape[:1]) if len(shape) == 4 else tuple(shape[:2])
        damaged = per_sample(pixels, operator, lead, photo.damage).to(self.noise.device)
        measurement = Measurement(operator, damaged, photo.noise / LEVELS)
        if self.pixel_model:
            return measurement
        guess = measurement.initial().expand(shape)
        lost = autoencoder_noise(measurement, guess, self.autoencoder.decode, self.autoencoder.encode, self.joined)
        return measurement.with_noise(lost)

    def start(self, shared: bool = False) -> torch.Tensor:
        """The noisy state at the first level; shared gives all frames the noise of the first."""
        noise = self.noise
        if shared:
            noise = noise.narrow(self.frame_axis, 0, 1).expand(noise.shape)
        return mix(self.latent, noise, self.levels[0], self.space)

    def fresh(self, shared: bool = False) -> Callable[[], torch.Tensor]:
        """Source of the noise on the way."""
        return fresh_noise(self.noise, stream_seed(self.seed), shared, self.frame_axis)


class Restorer(comfy.samplers.Sampler):
    """What the samplers of this file share; ``_solve`` is the solver."""

    smoothing = 0.0
    needs_gradients = False

    def __init__(self, photo: Photo) -> None:
        self._photo = photo

    def _solve(self, run: Run, on_step: Callable[[Report], None]) -> torch.Tensor:
        raise NotImplementedError

    def _check(self, levels: tuple[float, ...], space: str) -> None:
        """Refuse levels or a space that the solver cannot take; called before any network is."""

    def _enter(self, stack: contextlib.ExitStack, guider: Any, extra_args: dict[str, Any]) -> dict[str, Any]:
        """Open what the run needs for its duration; returns the arguments of the model's calls."""
        if self.needs_gradients and self._photo.vae is not None:
            refuse_streamed(self._photo.vae.patcher, "vae")
            comfy.model_management.load_models_gpu([guider.model_patcher, self._photo.vae.patcher])
            stack.enter_context(differentiable(self._photo.vae.first_stage_model))
            stack.enter_context(torch.no_grad())
        return extra_args

    def sample(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Restore; called by the host."""
        if denoise_mask is not None:
            raise ValueError(
                "latent must come without a noise_mask to restore, got one; connect the mask to DamageMask instead."
            )

        self._check(_falling(sigmas), space_of(guider.inner_model.model_sampling))

        def on_step(report: Report) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if callback is not None:
                callback(report.number, report.denoised.detach().float(), report.x.detach().float(), report.total)

        with contextlib.ExitStack() as stack:
            arguments = self._enter(stack, guider, extra_args)
            run = Run(self._photo, guider, sigmas, arguments, noise, latent_image, self.smoothing)
            with explained(guider, noise.shape[1]):
                x = self._solve(run, on_step)
        if not bool(torch.isfinite(x).all()):
            raise ValueError("restoration must stay finite, got NaN or infinity; raise noise or lower trust.")
        level = torch.tensor(run.levels[-1], device=x.device)
        return guider.inner_model.model_sampling.inverse_noise_scaling(level, x)


class DDSSampler(Restorer):
    """DDS, on pictures or through a VAE, alone or with total variation over frames."""

    def __init__(self, photo: Photo, settings: DDSSettings) -> None:
        """Set what is restored and how."""
        super().__init__(photo)
        self._settings = settings
        self.smoothing = settings.smoothing
        self.needs_gradients = settings.latent_method == DECODER_GRADIENT

    def _solve(self, run: Run, on_step: Callable[[Report], None]) -> torch.Tensor:
        settings = self._settings
        shared = settings.shared_noise
        return dds(
            run.denoiser,
            run.start(shared),
            run.levels,
            run.space,
            self._consistency(run),
            run.fresh(shared),
            freshness=settings.freshness,
            variance=PIXEL_VARIANCE if run.pixel_model else 1.0,
            on_step=on_step,
        )

    def _consistency(self, run: Run) -> Consistency:
        settings, measurement, coder = self._settings, run.measurement, run.autoencoder
        if run.pixel_model:
            return _InPixels(
                TemporalConsistency(measurement, settings.smoothing, settings.trust)
                if settings.smoothing > 0.0
                else PixelConsistency(measurement, settings.trust),
                coder,
            )
        if settings.latent_method == ENCODER_ADJOINT:
            return EncoderAdjoint(
                measurement,
                coder.decode,
                coder.encode,
                steps=settings.inner_steps,
                trust=settings.trust,
                gain=PIXEL_VARIANCE,
                joined=run.joined,
                smoothing=settings.smoothing,
                axis=run.frame_axis,
            )
        if settings.smoothing > 0.0:
            raise ValueError(
                f"latent_method must be {ENCODER_ADJOINT!r} to smooth over time, got {settings.latent_method!r}; "
                "change it or set temporal_smoothing to 0."
            )
        if settings.latent_method == DECODE_CORRECT_ENCODE:
            return DecodeCorrectEncode(
                measurement, coder.decode, coder.encode, trust=settings.trust, gain=PIXEL_VARIANCE
            )
        return DecoderGradient(measurement, coder.decode, trust=settings.trust, joined=run.joined)


class _InPixels:
    """A consistency of pictures for states that are pictures in a format of their own."""

    def __init__(self, inner: Consistency, coder: Any) -> None:
        self._inner, self._coder = inner, coder

    def __call__(self, denoised: torch.Tensor, variance: float, index: int, total: int) -> torch.Tensor:
        return self._coder.encode(self._inner(self._coder.decode(denoised), variance, index, total))


class REDDiffSampler(Restorer):
    """RED-diff, with the encoder in the place of the decoder's adjoint."""

    def __init__(self, photo: Photo, settings: REDDiffSettings) -> None:
        """Set what is restored and how."""
        super().__init__(photo)
        self._settings = settings

    def _check(self, levels: tuple[float, ...], space: str) -> None:
        if levels[-1] > 0.0:
            raise ValueError(f"sigmas must end at 0 to fit a clean picture, got {levels[-1]:g}; use all of them.")
        self._kept(levels, space)

    def _kept(self, levels: tuple[float, ...], space: str) -> list[float]:
        """The levels that sigma_max leaves, without the last, which is 0."""
        limit = self._settings.sigma_max
        kept = [sigma for sigma in levels if sigma > 0.0 and _ratio(sigma, space) <= limit]
        if not kept:
            raise ValueError(
                f"sigma_max must leave a level of the schedule, got {limit:g}; raise it or use more steps."
            )
        return kept

    def _solve(self, run: Run, on_step: Callable[[Report], None]) -> torch.Tensor:
        settings, measurement, coder = self._settings, run.measurement, run.autoencoder
        levels = self._kept(run.levels, run.space)

        def data_gradient(mu: torch.Tensor) -> torch.Tensor:
            decoded = coder.decode(mu)
            # By the values of the picture and not by those measured: a prior weighs the same however few these are.
            wanted = measurement.adjoint(measurement.residual(decoded)) * (mu.shape[0] / decoded.numel())
            if run.pixel_model:
                return coder.encode(wanted)
            # As in EncoderAdjoint: a difference of that size survives any dtype.
            size = wanted.flatten(1).square().mean(dim=1).sqrt().clamp_min(1e-20) / DIRECTION
            moved = coder.encode(decoded + wanted / _like(size, decoded)) - coder.encode(decoded)
            # The adjoint is J^T = (J^T J) E, and J^T J is about the gain of a latent value in the pixels it makes.
            gain = PIXEL_VARIANCE * decoded.numel() / mu.numel()
            return gain * moved * _like(size, mu)

        guess = coder.encode(measurement.initial().expand(run.pictures).contiguous())
        return red_diff(
            run.denoiser,
            guess,
            (*levels, 0.0),
            run.space,
            data_gradient,
            run.fresh(),
            prior=settings.prior,
            step=settings.step,
            weight=settings.weight,
            schedule=settings.schedule,
            on_step=on_step,
        )


def stream_seed(seed: int) -> int:
    """Seed of the noise on the way, for the seed of a run.

    The stock RandomNoise draws the first state from the seed itself: the same numbers again would add up with it.
    """
    return (seed + _STREAM) % 2**64


def refuse_streamed(patcher: Any, what: str) -> None:
    """Refuse gradients through weights that share buffers, which the next layer overwrites.

    Raises:
        ValueError: If the host streams the weights of this model.
    """
    if is_streamed(patcher):
        raise ValueError(
            f"{what} must hold its weights in place for gradients, got streamed ones; "
            "choose another latent_method, RestoreDDS, or start the host with --disable-dynamic-vram."
        )


def _refuse_scaled_noise(model_sampling: Any, space: str) -> None:
    """Refuse a flow model whose noise is not of unit size: the solvers would put too little in.

    Raises:
        ValueError: If it is one.
    """
    scale = coefficients(model_sampling, 0.5, at_start=False)[1] / 0.5 if space == "flow" else 1.0
    if not math.isclose(scale, 1.0, rel_tol=1e-4):
        raise ValueError(
            f"model must mix noise of unit size to restore, got a noise scale of {scale:g}; use another model."
        )


def _like(rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return rows.reshape(-1, *([1] * (other.ndim - 1)))


def _ratio(sigma: float, space: Any) -> float:
    a, b = weights(sigma, space)
    return b / a if a > 0.0 else math.inf


def _falling(sigmas: torch.Tensor) -> tuple[float, ...]:
    levels = without_repeats([float(value) for value in sigmas.detach().cpu()])
    if len(levels) < 2 or levels[0] < levels[-1]:
        raise ValueError(
            f"sigmas must fall over at least one step to restore, got {len(levels)} levels; "
            "connect the SIGMAS of a scheduler node."
        )
    return tuple(levels)
