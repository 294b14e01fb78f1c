"""Restoration as a script of a run: the host's scheduler, guider, LoRA, preview and interrupt around the solvers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch

from ...core.grid import shorten
from ...core.noise import Noises
from ...core.space import mix
from ...core.walk import OnStep
from ...restoration import GREY_LEVELS, Measurement
from ...restoration.operators import Damage
from ...restoration.solvers.latent import autoencoder_noise
from ..host.checks import refuse_inpainting, refuse_skipping
from ..host.compat import is_streamed
from ..host.gradients import differentiable, differentiable_run, normal_weights
from ..host.schedule import without_repeats
from ..host.session import Session
from .autoencoder import Autoencoder, Pixels
from .damaged_pictures import damaged_pixels, per_sample

# 2^64 over the golden ratio: far from every seed that a user counts up to.
_STREAM = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Photo:
    """What is known of the picture that is restored.

    Attributes:
        damage: How it was damaged.
        image: The damaged IMAGE.
        noise: Deviation of its noise in grey levels of 255.
        vae: The VAE, None for models that sample pictures.
    """

    damage: Damage
    image: torch.Tensor
    noise: float
    vae: Any = None


class Run:
    """A session with everything in place that a solver needs.

    Attributes:
        denoiser: The model.
        sigmas: Falling noise levels.
        noise: Unit noise of the state's shape, float32, an ordinary tensor.
        latent: The latent that the run starts on, same shape.
        coder: Decoder and encoder of the model's states.
        in_pixels: Whether the states are pictures, in a format of their own.
        pictures: Shape of the decoded state, (B, C, H, W) or (B, T, C, H, W).
        measurement: The measurement, with what the autoencoder loses in its noise.
        frame_axis: Axis of frames in the state.
        joined: Whether all rows are one sample, as frames that are coupled are.
        seed: Seed of the run.
    """

    def __init__(self, photo: Photo, session: Session, smoothing: float = 0.0) -> None:
        """Prepare a run; see the attributes.

        Raises:
            ValueError: If something does not fit.
        """
        guider, noise, latent = session.guider, session.noise, session.latent_image
        refuse_skipping(guider.model_patcher)
        refuse_inpainting(guider.inner_model)
        self.sigmas = falling(session.sigmas)
        if noise.ndim not in (4, 5):
            raise ValueError(f"latent must be that of pictures or clips, got shape {tuple(noise.shape)}; use another.")
        if not bool(torch.count_nonzero(noise) > 0):
            raise ValueError("noise must be connected to restore, got DisableNoise; connect RandomNoise.")
        # Copies: what the host made in inference mode cannot take part in gradients.
        self.noise = noise.float().clone()
        self.latent = torch.zeros_like(self.noise) if latent is None else latent.float().clone()
        self.denoiser = session.denoiser(dtype=torch.float32)
        _refuse_scaled_noise(self.denoiser.noise_scale)
        self.seed = int(session.extra_args.get("seed") or 0)
        self.frame_axis = 2 if noise.ndim == 5 else 0
        if smoothing > 0.0 and noise.shape[self.frame_axis] < 2:
            raise ValueError(
                f"temporal_smoothing must be 0 for a single picture, got {smoothing:g}; "
                "set it to 0, or restore all frames of the clip as one batch."
            )
        self.joined = noise.ndim == 4 and (photo.damage.over_time or smoothing > 0.0)
        latent_format = guider.model_patcher.get_model_object("latent_format")
        self.in_pixels = photo.vae is None
        if self.in_pixels and noise.ndim == 5:
            raise ValueError(
                "vae must be connected to restore the latent of a clip, got none; connect the model's own."
            )
        self.coder = (
            Pixels(latent_format)
            if photo.vae is None
            else Autoencoder(photo.vae, latent_format, guider.model_patcher, tuple(noise.shape))
        )
        # The decoder alone knows the size of the picture, and at the first size it is refused before any step.
        self.pictures = self._decoded(self.latent).shape
        self.measurement = self._measure(photo)

    def _decoded(self, latent: torch.Tensor) -> torch.Tensor:
        try:
            return self.coder.decode(latent)
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
        measurement = Measurement(operator, damaged, photo.noise / GREY_LEVELS)
        if self.in_pixels:
            return measurement
        guess = measurement.initial().expand(shape)
        return measurement.with_noise(autoencoder_noise(measurement, guess, self.coder, self.joined))

    def start(self, shared: bool = False) -> torch.Tensor:
        """The noisy state at the first sigma; shared gives all frames the noise of the first."""
        noise = self.noise
        if shared:
            noise = noise.narrow(self.frame_axis, 0, 1).expand(noise.shape)
        return mix(self.latent, noise, self.sigmas[0], self.denoiser.space)

    def guess(self) -> torch.Tensor:
        """The state of the measurement's first guess."""
        return self.coder.encode(self.measurement.initial().expand(self.pictures).contiguous())

    def fresh(self, shared: bool = False) -> Callable[[], torch.Tensor]:
        """Source of the noise on the way."""
        frames = self.frame_axis if shared else None
        return Noises(stream_seed(self.seed), self.noise, shared=frames, precision=torch.float32).draw


@dataclass(frozen=True)
class Solver:
    """A solver of the pack under its settings.

    Attributes:
        solve: Carries out a run, and tells after every step.
        smoothing: Weight of the differences between frames, which are then one sample.
        gradients: What is differentiated: "vae", "model" (with the VAE), or nothing.
    """

    solve: Callable[[Run, OnStep], torch.Tensor]
    smoothing: float = 0.0
    gradients: str = ""


def restore(photo: Photo, solver: Solver, session: Session) -> torch.Tensor:
    """Restore; the script of a sampler once photo and solver are given.

    Raises:
        ValueError: If something does not fit, or the result is not finite.
    """
    if session.denoise_mask is not None:
        raise ValueError(
            "latent must come without a noise_mask to restore, got one; connect the mask to DamageMask instead."
        )
    with _gradients_through(solver.gradients, photo.vae, session) as session:
        run = Run(photo, session, solver.smoothing)
        x = solver.solve(run, session.tell)
    if not bool(torch.isfinite(x).all()):
        raise ValueError("restoration must stay finite, got NaN or infinity; raise noise or lower trust.")
    last = torch.tensor(run.sigmas[-1], device=x.device)
    restored: torch.Tensor = session.model_sampling.inverse_noise_scaling(last, x)
    return restored


@contextlib.contextmanager
def _gradients_through(what: str, vae: Any, session: Session) -> Iterator[Session]:
    """Let gradients through the VAE, or through model and VAE; yields the session to ask the model with."""
    guider = session.guider
    if what == "model":
        refuse_streamed(guider.model_patcher, "model")
    if what and vae is not None:
        refuse_streamed(vae.patcher, "vae")
        # Both before their weights are exchanged: nothing may load after that.
        comfy.model_management.load_models_gpu([guider.model_patcher, vae.patcher])
    with contextlib.ExitStack() as stack:
        if what == "model":
            extra_args = stack.enter_context(differentiable_run(guider, session.extra_args))
            session = replace(session, extra_args=extra_args)
        if what and vae is not None:
            open_vae = normal_weights if what == "model" else differentiable
            stack.enter_context(open_vae(vae.first_stage_model))
        if what:
            stack.enter_context(torch.no_grad())
        yield session


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


def _refuse_scaled_noise(scale: float) -> None:
    """Refuse a flow model whose noise is not of unit size: the solvers would put too little in.

    Raises:
        ValueError: If it is one.
    """
    if not math.isclose(scale, 1.0, rel_tol=1e-4):
        raise ValueError(
            f"model must mix noise of unit size to restore, got a noise scale of {scale:g}; use another model."
        )


def falling(sigmas: torch.Tensor) -> tuple[float, ...]:
    """SIGMAS that fall, as floats, each that a scheduler gives twice in a row once.

    Raises:
        ValueError: If they do not fall over a step.
    """
    grid = without_repeats([float(value) for value in sigmas.detach().cpu()])
    if len(grid) < 2 or grid[0] < grid[-1]:
        raise ValueError(
            f"sigmas must fall over at least one step to restore, got {shorten(grid)}; "
            "connect the SIGMAS of a scheduler node."
        )
    return tuple(grid)
