"""Consistency of latent models, on autoencoders whose Gauss-Newton step is known."""

import pytest
import torch

from retrace.restoration.measurement import Measurement
from retrace.restoration.operators import GaussianBlur, LowResolution, Mask
from retrace.restoration.solvers.latent import (
    DecodeCorrectEncode,
    DecoderGradient,
    EncoderAdjoint,
    autoencoder_noise,
)
from retrace.restoration.solvers.temporal import TimeSmoothing, difference, difference_adjoint
from retrace_tests.restoration.cases import matrix_of

LATENT, SHAPE = (3, 2, 2), (1, 6, 6)
BEND = 0.35


class Autoencoder:
    """dec(z) = S z + bend tanh(B z) with orthonormal S; enc undoes it."""

    def __init__(self, bend=0.0, rounding=None):
        generator = torch.Generator().manual_seed(1)
        self.straight = torch.linalg.qr(torch.randn(36, 12, generator=generator, dtype=torch.float64))[0]
        self.crooked = torch.randn(36, 12, generator=generator, dtype=torch.float64) / 12**0.5
        self.bend, self.rounding = bend, rounding
        self.calls = {"decode": 0, "encode": 0}

    def _rounded(self, value):
        return value if self.rounding is None else value.to(self.rounding).to(value.dtype)

    def decode(self, z):
        self.calls["decode"] += 1
        flat = z.flatten(1)
        x = flat @ self.straight.T + self.bend * torch.tanh(flat @ self.crooked.T)
        return self._rounded(x.reshape(-1, *SHAPE))

    def encode(self, x):
        self.calls["encode"] += 1
        flat = x.flatten(1)
        z = flat @ self.straight
        for _ in range(12 if self.bend else 0):
            z = (flat - self.bend * torch.tanh(z @ self.crooked.T)) @ self.straight
        return self._rounded(z.reshape(-1, *LATENT))


OPERATORS = {
    "mask": lambda: Mask(SHAPE, torch.cat([torch.ones(1, 6, 3), torch.zeros(1, 6, 3)], 2)),
    "small": lambda: LowResolution(SHAPE, 2, "box"),
    "blur": lambda: GaussianBlur(SHAPE, 0.7),
}


def problem(name="small", sigma=0.1, autoencoder=None):
    autoencoder = Autoencoder() if autoencoder is None else autoencoder
    operator = OPERATORS[name]()
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(2, *LATENT, generator=generator, dtype=torch.float64)
    damaged = operator.forward(autoencoder.decode(z))
    prediction = z + 0.3 * torch.randn(2, *LATENT, generator=generator, dtype=torch.float64)
    autoencoder.calls.update(decode=0, encode=0)
    return Measurement(operator, damaged, sigma), autoencoder, prediction


def gauss_newton(measured, jacobian, autoencoder, prediction, variance):
    matrix = matrix_of(measured.operator) / measured.operator.norm @ jacobian
    weight = measured.weight(variance)
    system = torch.eye(12, dtype=torch.float64) + weight * matrix.T @ matrix
    right = -weight * measured.residual(autoencoder.decode(prediction)).flatten(1) @ matrix
    return prediction + torch.linalg.solve(system, right.T).T.reshape(prediction.shape)


@pytest.mark.parametrize("name", OPERATORS)
def test_on_an_orthonormal_autoencoder_it_is_gauss_newton(name):
    measured, autoencoder, prediction = problem(name)
    wanted = gauss_newton(measured, autoencoder.straight, autoencoder, prediction, 0.2)
    exact = EncoderAdjoint(measured, autoencoder.decode, autoencoder.encode, steps=12, gain=1.0)
    assert torch.allclose(exact(prediction, 0.2), wanted, atol=1e-6)
    gradient = DecoderGradient(measured, autoencoder.decode)(prediction, 0.2)
    assert float((gradient - wanted).norm()) < 0.1 * float((prediction - wanted).norm())
    short = EncoderAdjoint(measured, autoencoder.decode, autoencoder.encode, gain=1.0)(prediction, 0.2)
    assert float((short - wanted).norm()) < 0.7 * float((prediction - wanted).norm())


@pytest.mark.parametrize("steps", [1, 2])
def test_it_costs_what_it_says(steps):
    measured, autoencoder, prediction = problem()
    EncoderAdjoint(measured, autoencoder.decode, autoencoder.encode, steps=steps)(prediction, 0.2)
    assert autoencoder.calls == {"decode": 1 + steps, "encode": 2 + steps}
    autoencoder.calls.update(decode=0, encode=0)
    DecodeCorrectEncode(measured, autoencoder.decode, autoencoder.encode)(prediction, 0.2)
    assert autoencoder.calls == {"decode": 3, "encode": 6}
    # A photo this exact takes all iterations.
    measured, autoencoder, prediction = problem(sigma=0.02)
    DecoderGradient(measured, autoencoder.decode)(prediction, 0.2)
    assert autoencoder.calls == {"decode": 6, "encode": 0}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("method", [EncoderAdjoint, DecodeCorrectEncode, DecoderGradient])
def test_the_residual_falls_on_a_crooked_decoder(name, method):
    measured, autoencoder, prediction = problem(name, autoencoder=Autoencoder(BEND))
    arguments = (autoencoder.decode,) if method is DecoderGradient else (autoencoder.decode, autoencoder.encode)
    corrected = method(measured, *arguments)(prediction, 1.0)
    before, after = (measured.chi2(autoencoder.decode(z)) for z in (prediction, corrected))
    assert bool((after < 0.5 * before).all())


@pytest.mark.parametrize("rounding", [torch.bfloat16, torch.float16])
def test_rounded_autoencoders_are_no_worse(rounding):
    measured, exact, prediction = problem(autoencoder=Autoencoder(BEND))
    rounded = Autoencoder(BEND, rounding)

    def corrected(autoencoder, direction):
        return EncoderAdjoint(measured, autoencoder.decode, autoencoder.encode, direction=direction)(prediction, 0.5)

    wanted = corrected(exact, 1e-4)
    error = {h: float((corrected(rounded, h) - wanted).norm() / (wanted - prediction).norm()) for h in (1e-3, 0.2)}
    assert error[0.2] < 0.15
    if rounding is torch.bfloat16:  # why directions are not small
        assert error[1e-3] > 5 * error[0.2]


def test_rows_are_alone_and_nothing_moves_without_a_residual():
    measured, autoencoder, prediction = problem(autoencoder=Autoencoder(BEND))
    consistency = EncoderAdjoint(measured, autoencoder.decode, autoencoder.encode)
    alone = Measurement(measured.operator, measured.y[1:] * measured.operator.norm, 0.1)
    single = EncoderAdjoint(alone, autoencoder.decode, autoencoder.encode)(prediction[1:], 0.3)
    assert torch.allclose(consistency(prediction, 0.3)[1:], single)
    explained = Measurement(measured.operator, measured.operator.forward(autoencoder.decode(prediction)), 0.1)
    still = EncoderAdjoint(explained, autoencoder.decode, autoencoder.encode)(prediction, 0.3)
    assert torch.allclose(still, prediction)


def test_what_the_autoencoder_loses_is_noise():
    for name in OPERATORS:
        measured, autoencoder, _ = problem(name)
        guess = measured.initial()

        def lost(decode, encode=lambda x: x, joined=False, measured=measured, guess=guess):
            return autoencoder_noise(measured, guess, decode, encode, joined).flatten()

        assert bool((lost(autoencoder.decode, autoencoder.encode) > 0.0).all())
        assert bool((lost(lambda z: z) == 0.0).all())
        # Everything that is measured is off by a quarter, and a hole is not; the noise of 0.1 is no loss.
        wanted = torch.tensor([0.25, 0.02]).double()
        wanted[0] = (0.25**2 - 0.1**2) ** 0.5
        offset = torch.tensor([0.25, 0.08]).double()[:, None, None, None]
        assert torch.allclose(lost(lambda z, offset=offset: z + offset), wanted)
        assert lost(autoencoder.decode, autoencoder.encode, joined=True).shape == (1,)
        noisier = measured.with_noise(autoencoder_noise(measured, guess, lambda z: z + 0.25, lambda x: x))
        assert torch.allclose(noisier.chi2(guess), measured.chi2(guess) * 0.1**2 / 0.25**2)


def test_a_picture_of_a_batch_has_the_noise_of_its_own_hole():
    """Two holes of different sizes: what the autoencoder loses, and chi2, are those of each picture alone."""
    autoencoder = Autoencoder(BEND)
    keep = torch.ones(2, 1, 6, 6)
    keep[0, :, :, 2:] = 0.0
    keep[1, :, 5:, 5:] = 0.0
    truth = autoencoder.decode(torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(2)).double())
    other = truth + 0.3

    def figures(rows):
        operator = Mask(SHAPE, keep[rows])
        measured = Measurement(operator, operator.forward(truth[rows]), 0.05)
        lost = autoencoder_noise(measured, other[rows], autoencoder.decode, lambda x: autoencoder.encode(x) + 0.4)
        return torch.stack([lost.flatten(), measured.chi2(other[rows])])

    both = figures(slice(None))
    alone = torch.cat([figures(slice(0, 1)), figures(slice(1, 2))], dim=1)
    assert torch.allclose(both, alone)
    assert torch.allclose(both[1], torch.full((2,), (0.3 / 0.05) ** 2).double())


def test_refusal():
    measured, autoencoder, _ = problem()
    with pytest.raises(ValueError, match="inner steps must be at least 1") as caught:
        EncoderAdjoint(measured, autoencoder.decode, autoencoder.encode, steps=0)
    assert str(caught.value).endswith(".")


def test_smoothing_over_time_is_solved_together():
    """The preconditioned system has the solution of (I + g K + rho' D^T D) d = g E A^T r + rho' D^T (z - u - D D0)."""
    measured, autoencoder, prediction = problem()
    variance, smoothing = 0.2, 0.7
    consistency = EncoderAdjoint(
        measured, autoencoder.decode, autoencoder.encode, steps=24, gain=1.0, joined=True, smoothing=smoothing
    )
    found = consistency(prediction, variance)
    matrix = matrix_of(measured.operator) / measured.operator.norm @ autoencoder.straight
    weight, coupling = measured.weight(variance), 6 * smoothing * variance
    gradient = (found - prediction).flatten(1) + weight * measured.residual(autoencoder.decode(found)).flatten(
        1
    ) @ matrix
    # z and u start at zero.
    gradient = gradient + coupling * difference_adjoint(difference(found, 0), 0).flatten(1)
    assert float(gradient.norm()) < 1e-6 * float(found.norm()) * weight
    z, u = consistency._smoothing._split
    assert torch.allclose(z + u, difference(found, 0)) and float(u.abs().max()) <= 1 / 6 + 1e-12
    # A strong pull over several steps makes frames one; none leaves them alone.
    steady = EncoderAdjoint(
        measured, autoencoder.decode, autoencoder.encode, steps=4, joined=True, smoothing=50.0, trust=1e-6
    )
    for _ in range(30):
        same = steady(prediction, variance)
    assert float(difference(same, 0).abs().max()) < 1e-3 < float(difference(prediction, 0).abs().max())


def test_smoothing_acts_along_the_time_of_a_clip():
    clip = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = TimeSmoothing(1.0, 2).prepare(clip, 0.5)
    solved = smooth.solve(clip)
    back = solved + 3.0 * difference_adjoint(difference(solved, 2), 2)
    assert torch.allclose(back, clip)
