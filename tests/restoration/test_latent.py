"""Consistency of latent models, on autoencoders whose Gauss-Newton step is known."""

from types import SimpleNamespace

import pytest
import torch

from retrace.restoration import (
    DDSSettings,
    DecodeCorrectEncode,
    DecoderGradient,
    EncoderAdjoint,
    InPixels,
    Measurement,
    PixelConsistency,
    TemporalConsistency,
    autoencoder_noise,
    data_gradient,
    latent_consistency,
)
from retrace.restoration.operators import GaussianBlur, LowResolution, Mask
from retrace.restoration.solvers.temporal import TimeSmoothing, difference, difference_adjoint
from retrace_tests.restoration.problems import matrix_of, unit

LATENT, SHAPE = (3, 2, 2), (1, 6, 6)
BEND = 0.35
METHODS = [EncoderAdjoint, DecodeCorrectEncode, DecoderGradient]


class Autoencoder:
    """dec(z) = S z + bend tanh(B z) + offset with orthonormal S; enc undoes it but for the offset."""

    def __init__(self, bend=0.0, rounding=None, offset=0.0):
        generator = torch.Generator().manual_seed(1)
        self.straight = torch.linalg.qr(torch.randn(36, 12, generator=generator, dtype=torch.float64))[0]
        self.crooked = torch.randn(36, 12, generator=generator, dtype=torch.float64) / 12**0.5
        self.bend, self.rounding, self.offset = bend, rounding, offset
        self.calls = {"decode": 0, "encode": 0}

    def _rounded(self, value):
        return value if self.rounding is None else value.to(self.rounding).to(value.dtype)

    def decode(self, z):
        self.calls["decode"] += 1
        flat = z.flatten(1)
        x = flat @ self.straight.T + self.bend * torch.tanh(flat @ self.crooked.T)
        return self._rounded(x.reshape(-1, *SHAPE)) + self.offset

    def encode(self, x):
        self.calls["encode"] += 1
        flat = x.flatten(1)
        z = flat @ self.straight
        for _ in range(12 if self.bend else 0):
            z = (flat - self.bend * torch.tanh(z @ self.crooked.T)) @ self.straight
        return self._rounded(z.reshape(-1, *LATENT))


def shifted(offset):
    """States are pictures, which come back brighter by an offset."""
    return SimpleNamespace(decode=lambda x: x + offset, encode=lambda x: x)


OPERATORS = {
    "mask": Mask(SHAPE, torch.cat([torch.ones(1, 6, 3), torch.zeros(1, 6, 3)], 2)),
    "small": LowResolution(SHAPE, 2, "box"),
    "blur": GaussianBlur(SHAPE, 0.7),
}


def problem(name="small", sigma=0.1, autoencoder=None):
    autoencoder = Autoencoder() if autoencoder is None else autoencoder
    z = unit(2, *LATENT, seed=2)
    damaged = OPERATORS[name].forward(autoencoder.decode(z))
    autoencoder.calls.update(decode=0, encode=0)
    return Measurement(OPERATORS[name], damaged, sigma), autoencoder, z + 0.3 * unit(2, *LATENT, seed=3)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("trust", [1.0, 0.3])
def test_on_an_orthonormal_autoencoder_it_is_gauss_newton(name, trust):
    measured, autoencoder, prediction = problem(name)
    matrix = matrix_of(measured.operator) / measured.operator.norm @ autoencoder.straight
    weight = trust * measured.weight(0.2)
    system = torch.eye(12, dtype=torch.float64) + weight * matrix.T @ matrix
    right = -weight * measured.residual(autoencoder.decode(prediction)).flatten(1) @ matrix
    wanted = prediction + torch.linalg.solve(system, right.T).T.reshape(prediction.shape)
    exact = EncoderAdjoint(measured, autoencoder, DDSSettings(trust=trust, inner_steps=8), gain=1.0)
    exact._steps = 12
    assert torch.allclose(exact(prediction, 0.2), wanted, atol=1e-6)
    gradient = DecoderGradient(measured, autoencoder, DDSSettings(trust=trust))(prediction, 0.2)
    assert float((gradient - wanted).norm()) < 0.1 * float((prediction - wanted).norm())
    short = EncoderAdjoint(measured, autoencoder, DDSSettings(trust=trust), gain=1.0)(prediction, 0.2)
    assert float((short - wanted).norm()) < 0.7 * float((prediction - wanted).norm())


@pytest.mark.parametrize(
    ("method", "settings", "decodes", "encodes"),
    [
        (EncoderAdjoint, {}, 2, 3),
        (EncoderAdjoint, {"inner_steps": 2}, 3, 4),
        (DecodeCorrectEncode, {"latent_method": "decode, correct, encode"}, 3, 6),
        # A photo this exact takes all iterations.
        (DecoderGradient, {"latent_method": "decoder gradient"}, 6, 0),
    ],
)
def test_it_is_what_its_name_says_and_costs_what_it_says(method, settings, decodes, encodes):
    measured, autoencoder, prediction = problem(sigma=0.02)
    made = latent_consistency(measured, autoencoder, DDSSettings(**settings), joined=True)
    assert type(made) is method and made._joined
    made(prediction, 0.2)
    assert autoencoder.calls == {"decode": decodes, "encode": encodes}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("method", METHODS)
def test_the_residual_falls_on_a_crooked_decoder(name, method):
    measured, autoencoder, prediction = problem(name, autoencoder=Autoencoder(BEND))
    before, after, untrusted = (
        measured.chi2(autoencoder.decode(z))
        for z in (
            prediction,
            method(measured, autoencoder, DDSSettings())(prediction, 1.0),
            method(measured, autoencoder, DDSSettings(trust=0.01))(prediction, 1.0),
        )
    )
    assert bool((after < 0.5 * before).all()) and bool((after < untrusted).all())


@pytest.mark.parametrize("rounding", [torch.bfloat16, torch.float16])
def test_rounded_autoencoders_are_no_worse(rounding):
    measured, exact, prediction = problem(autoencoder=Autoencoder(BEND))

    def corrected(autoencoder, direction):
        return EncoderAdjoint(measured, autoencoder, direction=direction)(prediction, 0.5)

    wanted, rounded = corrected(exact, 1e-4), Autoencoder(BEND, rounding)
    error = {h: float((corrected(rounded, h) - wanted).norm() / (wanted - prediction).norm()) for h in (1e-3, 0.2)}
    assert error[0.2] < 0.15
    if rounding is torch.bfloat16:  # why directions are not small
        assert error[1e-3] > 5 * error[0.2]


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_alone_and_nothing_moves_without_a_residual(method):
    measured, autoencoder, prediction = problem(autoencoder=Autoencoder(BEND))
    alone = Measurement(measured.operator, measured.y[1:] * measured.operator.norm, 0.1)
    single = method(alone, autoencoder, DDSSettings())(prediction[1:], 0.3)
    assert torch.allclose(method(measured, autoencoder, DDSSettings())(prediction, 0.3)[1:], single)
    explained = Measurement(measured.operator, measured.operator.forward(autoencoder.decode(prediction)), 0.1)
    assert torch.allclose(method(explained, autoencoder, DDSSettings())(prediction, 0.3), prediction)


def test_states_that_are_pictures():
    measured, _, _ = problem()
    x, coder = unit(2, *SHAPE, seed=3), shifted(0.5)
    settings = DDSSettings(trust=2.0)
    assert torch.equal(InPixels(measured, coder, settings)(x, 0.2), PixelConsistency(measured, 2.0)(x + 0.5, 0.2))
    smooth = InPixels(measured, coder, DDSSettings(trust=2.0, temporal_smoothing=0.7))(x, 0.2)
    assert torch.equal(smooth, TemporalConsistency(measured, 0.7, 2.0)(x + 0.5, 0.2))


def test_the_data_gradient_is_that_of_the_squared_residual():
    """With an orthonormal S the encoder is its adjoint, so that only the gain differs; in pixels nothing does."""
    measured, autoencoder, mu = problem("blur")

    def gradient_of(decode, mu):
        point = mu.clone().requires_grad_(True)
        (measured.residual(decode(point)).square().sum() / 2 / 36).backward()
        return point.grad

    wanted = 0.25 * 36 / 12 * gradient_of(autoencoder.decode, mu)
    assert torch.allclose(data_gradient(measured, autoencoder, mu), wanted)
    x, coder = unit(2, *SHAPE), shifted(0.1)
    assert torch.allclose(data_gradient(measured, coder, x, pixels=True), gradient_of(coder.decode, x))


def test_what_the_autoencoder_loses_is_noise():
    for name in OPERATORS:
        measured, autoencoder, _ = problem(name)
        guess = measured.initial()

        def lost(coder, joined=False, measured=measured, guess=guess):
            return autoencoder_noise(measured, guess, coder, joined).flatten()

        assert bool((lost(autoencoder) > 0.0).all()) and bool((lost(shifted(0.0)) == 0.0).all())
        # Everything that is measured is off by a quarter, and a hole is not; the noise of 0.1 is no loss.
        wanted = torch.tensor([0.25, 0.02]).double()
        wanted[0] = (0.25**2 - 0.1**2) ** 0.5
        assert torch.allclose(lost(shifted(torch.tensor([0.25, 0.08]).double()[:, None, None, None])), wanted)
        assert torch.allclose(lost(shifted(0.25), joined=True), wanted[:1])
        noisier = measured.with_noise(autoencoder_noise(measured, guess, shifted(0.25)))
        assert torch.allclose(noisier.chi2(guess), measured.chi2(guess) * 0.1**2 / 0.25**2)


def test_a_picture_of_a_batch_has_the_noise_of_its_own_hole():
    """Two holes of different sizes: what the autoencoder loses, and chi2, are those of each picture alone."""
    keep = torch.ones(2, 1, 6, 6)
    keep[0, :, :, 2:] = 0.0
    keep[1, :, 5:, 5:] = 0.0
    autoencoder = Autoencoder(BEND, offset=0.1)
    truth = autoencoder.decode(unit(2, *LATENT, seed=2))

    def figures(rows):
        operator = Mask(SHAPE, keep[rows])
        measured = Measurement(operator, operator.forward(truth[rows]), 0.05)
        lost = autoencoder_noise(measured, truth[rows] + 0.3, autoencoder)
        return torch.stack([lost.flatten(), measured.chi2(truth[rows] + 0.3)])

    both = figures(slice(None))
    assert torch.allclose(both, torch.cat([figures(slice(0, 1)), figures(slice(1, 2))], dim=1))
    assert torch.allclose(both[1], torch.full((2,), (0.3 / 0.05) ** 2).double())


def test_smoothing_over_time_is_solved_together():
    """The preconditioned system has the solution of (I + g K + rho' D^T D) d = g E A^T r + rho' D^T (z - u - D D0)."""
    measured, autoencoder, prediction = problem()
    variance, smoothing = 0.2, 0.25
    consistency = EncoderAdjoint(measured, autoencoder, DDSSettings(temporal_smoothing=smoothing), True, gain=1.0)
    consistency._steps = 24
    found = consistency(prediction, variance)
    matrix = matrix_of(measured.operator) / measured.operator.norm @ autoencoder.straight
    weight, coupling = measured.weight(variance), 6 * smoothing * variance
    residual = measured.residual(autoencoder.decode(found)).flatten(1)
    gradient = (found - prediction).flatten(1) + weight * residual @ matrix
    # z and u start at zero.
    gradient = gradient + coupling * difference_adjoint(difference(found, 0), 0).flatten(1)
    assert float(gradient.norm()) < 1e-6 * float(found.norm()) * weight
    z, u = consistency._smoothing._split
    assert torch.allclose(z + u, difference(found, 0)) and float(u.abs().max()) <= 1 / 6 + 1e-12
    # A strong pull over several steps makes frames one; none leaves them alone.
    settings = DDSSettings(trust=1e-6, inner_steps=4, temporal_smoothing=10.0)
    steady = EncoderAdjoint(measured, autoencoder, settings, joined=True)
    for _ in range(60):
        same = steady(prediction, variance)
    assert float(difference(same, 0).abs().max()) < 1e-3 < float(difference(prediction, 0).abs().max())


def test_smoothing_acts_along_the_time_of_a_clip():
    clip = unit(2, 3, 4, 2, 2)
    solved = TimeSmoothing(1.0, 2).prepare(clip, 0.5).solve(clip)
    assert torch.allclose(solved + 3.0 * difference_adjoint(difference(solved, 2), 2), clip)
    measured, autoencoder, _ = problem()
    assert latent_consistency(measured, autoencoder, DDSSettings(temporal_smoothing=1.0), axis=2)._smoothing._axis == 2
    settings = DDSSettings(temporal_smoothing=1.0, latent_method="decoder gradient")
    with pytest.raises(ValueError, match="latent_method must be 'encoder adjoint'"):
        latent_consistency(measured, autoencoder, settings)
