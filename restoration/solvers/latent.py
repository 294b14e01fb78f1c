"""Consistency of latent models: the measurement is in pixels, the prediction is not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..krylov import conjugate_gradient, dot, gmres
from ..measurement import Measurement
from .temporal import TimeSmoothing

Map = Callable[[Tensor], Tensor]

# Root mean square of a difference's direction. Rounding of bfloat16 breaks 0.01; in fp64 anything to 0.5 is the same.
DIRECTION = 0.2
# Rounds and over-relaxation of decode, correct, encode.
_ROUNDS, _RELAXATION = 3, 2.0
# Iterations of the Gauss-Newton solve; each takes a decode and a gradient.
_GRADIENT_ITERATIONS = 5
# Share of what an autoencoder changes that counts as its loss at least.
_AT_LEAST = 4.0


def autoencoder_noise(
    measurement: Measurement, guess: Tensor, decode: Map, encode: Map, joined: bool = False
) -> Tensor:
    """What an autoencoder cannot reproduce, as noise: rms of A dec(enc(x)) - A x at a first guess x.

    The guess carries the photo's own noise, which the autoencoder smooths away and which is no loss: its variance is
    taken off, down to a quarter of the deviation.

    Args:
        measurement: What was measured, its noise the same for all.
        guess: First guess of the clean pictures, shape (B, ..., *operator.shape), or of the frames of one clip.
        decode: Latents to pictures in [-1, 1], not clipped.
        encode: Pictures to latents, the mean of the encoder.
        joined: Whether all rows are one sample.

    Returns:
        The deviation of every row in the units of the damaged picture, shape (B, 1, ...) or (1, 1, ...); one encode
        and one decode.
    """
    operator = measurement.operator
    missed = measurement.forward(decode(encode(guess)) - guess) * operator.norm
    size = dot(missed, missed, missed.ndim if joined else missed.ndim - 1)
    variance = size / measurement.values(missed, joined)
    noise = (measurement.sigma * operator.norm) ** 2
    return torch.maximum(variance - noise, variance / _AT_LEAST**2).sqrt()


def _scale(v: Tensor, dims: int) -> Tensor:
    """Root mean square of every sample, 1 where it is zero, so that a zero direction stays zero."""
    count = v[(0,) * (v.ndim - dims)].numel()
    rms = (dot(v, v, dims) / count).sqrt()
    return torch.where(rms > 0, rms, 1.0)


class _Latent:
    def __init__(self, measurement: Measurement, decode: Map, trust: float, gain: float, joined: bool) -> None:
        self._measurement = measurement
        self._decode = decode
        self._trust = trust
        self._gain = gain
        self._joined = joined

    def _dims(self, value: Tensor) -> int:
        return value.ndim if self._joined else value.ndim - 1


class EncoderAdjoint(_Latent):
    """One linearised solve a step, with the encoder in the place of the decoder's adjoint; no gradients.

        J v = (dec(D + h v) - dec(D)) / h,   E u = (enc(dec(D) + h u) - enc(dec(D))) / h
        (I + g E A^T A J) d = g E A^T (y - A dec(D)),   xh = D + d

    by ``steps`` steps of GMRES. As the encoder undoes the decoder, E is the pseudo-inverse and not the adjoint of J
    where the two differ by a scale, so that g is the one of pixels: r^2 counts there, gain times that of latents.
    Only differences of encodings are used, in which what the autoencoder cannot reproduce cancels. Cost of a step:
    1 + steps decodes and 2 + steps encodes.
    """

    def __init__(
        self,
        measurement: Measurement,
        decode: Map,
        encode: Map,
        *,
        steps: int = 1,
        trust: float = 1.0,
        gain: float = 0.25,
        direction: float = DIRECTION,
        joined: bool = False,
        smoothing: float = 0.0,
        axis: int = 0,
    ) -> None:
        """Set up.

        Args:
            measurement: What was measured; its noise with that of the autoencoder.
            decode: Latents to pictures in [-1, 1], not clipped.
            encode: Pictures to latents, the mean of the encoder.
            steps: GMRES steps, 1 or 2.
            trust: Multiplies g.
            gain: Variance of pixels over that of latents, 0.25 for pictures in [-1, 1] and unit latents.
            direction: rms h of a difference's direction.
            joined: Whether all rows are one sample, as frames that are coupled are.
            smoothing: Weight of total variation over time on the latents, 0 for none. The object then holds the state
                of one run.
            axis: Axis of time in the latents: 0 for a batch of frames, 2 for a clip (B, C, T, H, W).

        Raises:
            ValueError: If steps is below 1 or the smoothing negative.
        """
        if steps < 1:
            raise ValueError(f"inner steps must be at least 1, got {steps}; 1 is usual.")
        super().__init__(measurement, decode, trust, gain, joined)
        self._encode = encode
        self._steps = steps
        self._direction = direction
        self._smoothing = TimeSmoothing(smoothing, axis) if smoothing != 0.0 else None

    def __call__(self, denoised: Tensor, variance: float, index: int = 0, total: int = 1) -> Tensor:
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
        found = denoised + gmres(matrix, right, sample_dims=self._dims(denoised), steps=self._steps)
        if smooth is not None:
            smooth.advance(found)
        return found


def _like(size: Tensor, other: Tensor) -> Tensor:
    """Scale factors of rows, broadcastable against a tensor of another number of dimensions."""
    return size.reshape(-1, *([1] * (other.ndim - 1))).to(other)


class DecodeCorrectEncode(_Latent):
    """Decode, correct in pixels, encode the difference; over-relaxed and repeated.

        z <- z + w ( enc(prox(dec(z))) - enc(dec(z)) ),   w = 2, three rounds

    What part of a correction leaves the decoder's range is lost, which the repetition makes up for. Cost of a step:
    3 decodes and 6 encodes.
    """

    def __init__(
        self, measurement: Measurement, decode: Map, encode: Map, *, trust: float = 1.0, gain: float = 0.25
    ) -> None:
        """Set up; arguments as in EncoderAdjoint."""
        super().__init__(measurement, decode, trust, gain, False)
        self._encode = encode

    def __call__(self, denoised: Tensor, variance: float, index: int = 0, total: int = 1) -> Tensor:
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

    def __init__(
        self,
        measurement: Measurement,
        decode: Map,
        *,
        trust: float = 1.0,
        direction: float = DIRECTION,
        joined: bool = False,
    ) -> None:
        """Set up; arguments as in EncoderAdjoint, and decode must be differentiable."""
        super().__init__(measurement, decode, trust, 1.0, joined)
        self._direction = direction

    def __call__(self, denoised: Tensor, variance: float, index: int = 0, total: int = 1) -> Tensor:
        """See Consistency."""
        with torch.enable_grad():
            point = denoised.detach().requires_grad_(True)
            graph = self._decode(point)
        decoded = graph.detach()
        measurement = self._measurement.to(decoded)
        weight = self._trust * measurement.weight(variance)

        def pull(u: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(graph, point, u, retain_graph=True)
            return found

        def push(v: Tensor) -> Tensor:
            size = _scale(v, self._dims(v)) / self._direction
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
