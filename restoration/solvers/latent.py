"""Consistency of latent models: the measurement is in pixels, the prediction is not."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..krylov import conjugate_gradient, dot, gmres
from ..measurement import Measurement
from .dds import DECODE_CORRECT_ENCODE, DEFAULTS, ENCODER_ADJOINT, Consistency, DDSSettings, PixelConsistency
from .temporal import TemporalConsistency, TimeSmoothing

# Root mean square of a difference's direction. Rounding of bfloat16 breaks 0.01; in fp64 anything to 0.5 is the same.
DIRECTION = 0.2
# Variance of pictures in [-1, 1] over that of latents, which the formats scale to 1.
GAIN = 0.25
# Rounds and over-relaxation of decode, correct, encode.
_ROUNDS, _RELAXATION = 3, 2.0
# Iterations of the Gauss-Newton solve; each takes a decode and a gradient.
_GRADIENT_ITERATIONS = 5
# Share of what an autoencoder changes that counts as its loss at least.
_AT_LEAST = 4.0


class Coder(Protocol):
    """An autoencoder, or what stands in for one where the states are pictures in a format of their own."""

    def decode(self, state: Tensor) -> Tensor:
        """States to pictures in [-1, 1], not clipped."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures to states, the mean of the encoder."""


def autoencoder_noise(measurement: Measurement, guess: Tensor, coder: Coder, joined: bool = False) -> Tensor:
    """What an autoencoder cannot reproduce, as noise: rms of A dec(enc(x)) - A x at a first guess x.

    The guess carries the photo's own noise, which the autoencoder smooths away and which is no loss: its variance is
    taken off, down to a quarter of the deviation.

    Args:
        measurement: What was measured, its noise the same for all.
        guess: First guess of the clean pictures, shape (B, ..., *operator.shape), or of the frames of one clip.
        coder: The autoencoder.
        joined: Whether all rows are one sample.

    Returns:
        The deviation of every row in the units of the damaged picture, shape (B, 1, ...) or (1, 1, ...); one encode
        and one decode.
    """
    operator = measurement.operator
    missed = measurement.forward(coder.decode(coder.encode(guess)) - guess) * operator.norm
    size = dot(missed, missed, missed.ndim if joined else missed.ndim - 1)
    variance = size / measurement.values(missed, joined)
    noise = (measurement.sigma * operator.norm) ** 2
    return torch.maximum(variance - noise, variance / _AT_LEAST**2).sqrt()


def _scale(v: Tensor, dims: int) -> Tensor:
    """Root mean square of every sample, 1 where it is zero, so that a zero direction stays zero."""
    count = v[(0,) * (v.ndim - dims)].numel()
    rms = (dot(v, v, dims) / count).sqrt()
    return torch.where(rms > 0, rms, 1.0)


def _like(size: Tensor, other: Tensor) -> Tensor:
    """Scale factors of rows, broadcastable against a tensor of another number of dimensions."""
    return size.reshape(-1, *([1] * (other.ndim - 1))).to(other)


class _Latent:
    def __init__(
        self, measurement: Measurement, coder: Coder, settings: DDSSettings, joined: bool = False, gain: float = GAIN
    ) -> None:
        self._measurement = measurement
        self._decode, self._encode = coder.decode, coder.encode
        self._trust = settings.trust
        self._joined = joined
        self._gain = gain

    def _dims(self, value: Tensor) -> int:
        return value.ndim if self._joined else value.ndim - 1


class EncoderAdjoint(_Latent):
    """One linearised solve a step, with the encoder in the place of the decoder's adjoint; no gradients.

        J v = (dec(D + h v) - dec(D)) / h,   E u = (enc(dec(D) + h u) - enc(dec(D))) / h
        (I + g E A^T A J) d = g E A^T (y - A dec(D)),   xh = D + d

    by ``inner_steps`` steps of GMRES. As the encoder undoes the decoder, E is the pseudo-inverse and not the adjoint of
    J where the two differ by a scale, so that g is the one of pixels: r^2 counts there, gain times that of latents.
    Only differences of encodings are used, in which what the autoencoder cannot reproduce cancels. Cost of a step:
    1 + inner_steps decodes and 2 + inner_steps encodes.
    """

    def __init__(
        self,
        measurement: Measurement,
        coder: Coder,
        settings: DDSSettings = DEFAULTS,
        joined: bool = False,
        axis: int = 0,
        gain: float = GAIN,
        direction: float = DIRECTION,
    ) -> None:
        """Set up a run.

        Args:
            measurement: What was measured; its noise with that of the autoencoder.
            coder: The autoencoder.
            settings: Of these trust, inner_steps and temporal_smoothing are read here.
            joined: Whether all rows are one sample, as frames that are coupled are.
            axis: Axis of time in the latents: 0 for a batch of frames, 2 for a clip (B, C, T, H, W).
            gain: Variance of pixels over that of latents.
            direction: rms h of a difference's direction.
        """
        super().__init__(measurement, coder, settings, joined, gain)
        self._steps = settings.inner_steps
        self._direction = direction
        smoothing = settings.temporal_smoothing
        self._smoothing = TimeSmoothing(smoothing, axis) if smoothing > 0.0 else None

    def __call__(self, denoised: Tensor, variance: float) -> Tensor:
        """See Consistency."""
        decoded = self._decode(denoised)
        encoded = self._encode(decoded)
        measurement = self._measurement.to(decoded)
        weight = self._trust * measurement.weight(self._gain * variance)

        def decoder(v: Tensor) -> Tensor:
            size = _scale(v, self._dims(v)) / self._direction
            return (self._decode(denoised + v / size) - decoded) * _like(size, decoded)

        def encoder(u: Tensor) -> Tensor:
            size = _scale(u, self._dims(u)) / self._direction
            return (self._encode(decoded + u / size) - encoded) * _like(size, encoded)

        smooth = None if self._smoothing is None else self._smoothing.prepare(denoised, variance)

        def matrix(d: Tensor) -> Tensor:
            data = weight * encoder(measurement.adjoint(measurement.forward(decoder(d)))).to(d)
            return d + (data if smooth is None else smooth.solve(data))

        right = -weight * encoder(measurement.adjoint(measurement.residual(decoded))).to(denoised)
        if smooth is not None:
            right = smooth.solve(right + smooth.pull(denoised))
        corrected = denoised + gmres(matrix, right, sample_dims=self._dims(denoised), steps=self._steps)
        if smooth is not None:
            smooth.advance(corrected)
        return corrected


class DecodeCorrectEncode(_Latent):
    """Decode, correct in pixels, encode the difference; over-relaxed and repeated.

        z <- z + w ( enc(prox(dec(z))) - enc(dec(z)) ),   w = 2, three rounds

    What part of a correction leaves the decoder's range is lost, which the repetition makes up for. Cost of a step:
    3 decodes and 6 encodes.
    """

    def __call__(self, denoised: Tensor, variance: float) -> Tensor:
        """See Consistency."""
        z = denoised
        for _ in range(_ROUNDS):
            decoded = self._decode(z)
            measurement = self._measurement.to(decoded)
            corrected = measurement.correct(decoded, self._trust * measurement.weight(self._gain * variance))
            z = z + _RELAXATION * (self._encode(corrected) - self._encode(decoded)).to(z)
        return z


class DecoderGradient(_Latent):
    """A Gauss-Newton step in latents with the decoder's own adjoint, by autograd.

        (I + g J^T A^T A J) d = g J^T A^T (y - A dec(D)),   g = r^2 / sigma^2 with the r^2 of latents

    by conjugate gradients. J is a difference as in EncoderAdjoint. Cost of a step: 1 + k decodes and 1 + k backward
    passes of the decoder, k <= 5, and the memory of one.
    """

    def __call__(self, denoised: Tensor, variance: float) -> Tensor:
        """See Consistency."""
        with torch.enable_grad():
            point = denoised.detach().requires_grad_(True)
            graph = self._decode(point)
        decoded = graph.detach()
        measurement = self._measurement.to(decoded)
        weight = self._trust * measurement.weight(variance)

        def pull(u: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(graph, point, u, retain_graph=True)
            return gradient

        def push(v: Tensor) -> Tensor:
            size = _scale(v, self._dims(v)) / DIRECTION
            with torch.no_grad():
                return (self._decode(denoised + v / size) - decoded) * _like(size, decoded)

        def matrix(d: Tensor) -> Tensor:
            return d + weight * pull(measurement.adjoint(measurement.forward(push(d))))

        right = -weight * pull(measurement.adjoint(measurement.residual(decoded)))
        return denoised + conjugate_gradient(
            matrix,
            right,
            None,
            sample_dims=self._dims(right),
            iterations=_GRADIENT_ITERATIONS,
            tolerance=1e-2,
        )


class InPixels:
    """A consistency of pictures for states that are pictures in a format of their own."""

    def __init__(self, measurement: Measurement, coder: Coder, settings: DDSSettings = DEFAULTS) -> None:
        """Set up a run; with smoothing the rows are the frames of one clip."""
        smoothing, trust = settings.temporal_smoothing, settings.trust
        self._coder = coder
        self._inner: Consistency = (
            TemporalConsistency(measurement, smoothing, trust)
            if smoothing > 0.0
            else PixelConsistency(measurement, trust)
        )

    def __call__(self, denoised: Tensor, variance: float) -> Tensor:
        """See Consistency."""
        return self._coder.encode(self._inner(self._coder.decode(denoised), variance))


def latent_consistency(
    measurement: Measurement, coder: Coder, settings: DDSSettings, joined: bool = False, axis: int = 0
) -> Consistency:
    """The consistency that the settings name; arguments as in EncoderAdjoint.

    Raises:
        ValueError: If it cannot smooth over time and is asked to.
    """
    method = settings.latent_method
    if method == ENCODER_ADJOINT:
        return EncoderAdjoint(measurement, coder, settings, joined, axis)
    if settings.temporal_smoothing > 0.0:
        raise ValueError(
            f"latent_method must be {ENCODER_ADJOINT!r} to smooth over time, got {method!r}; "
            "change it or set temporal_smoothing to 0."
        )
    cls = DecodeCorrectEncode if method == DECODE_CORRECT_ENCODE else DecoderGradient
    return cls(measurement, coder, settings, joined)


def data_gradient(measurement: Measurement, coder: Coder, mu: Tensor, pixels: bool = False) -> Tensor:
    """Gradient at mu of |A dec(mu) - y|^2 / (2 n), n the values of a picture, with the encoder as in EncoderAdjoint.

    By the values of the picture and not by those measured: a prior weighs the same however few these are.

    Args:
        measurement: What was measured.
        coder: The autoencoder.
        mu: Clean states, shape (B, ...).
        pixels: Whether states are pictures in a format of their own, so that encoding is linear.

    Returns:
        Shape of mu; a decode and two encodes, or one where encoding is linear.
    """
    decoded = coder.decode(mu)
    wanted = measurement.adjoint(measurement.residual(decoded)) * (mu.shape[0] / decoded.numel())
    if pixels:
        return coder.encode(wanted)
    # A difference of that size survives any dtype.
    size = wanted.flatten(1).square().mean(dim=1).sqrt().clamp_min(1e-20) / DIRECTION
    moved = coder.encode(decoded + wanted / _like(size, decoded)) - coder.encode(decoded)
    # The adjoint is J^T = (J^T J) E, and J^T J is about the gain of a latent value in the pixels it makes.
    return GAIN * decoded.numel() / mu.numel() * moved * _like(size, mu)
