"""Gradient guidance: the published step in these units, and two identities of its terms."""

import math
from functools import partial

import pytest
import torch

from retrace.restoration.levels import weights
from retrace.restoration.measurement import Measurement
from retrace.restoration.operators import LowResolution
from retrace.restoration.solvers.fresh import fresh_noise
from retrace.restoration.solvers.guided import Energy, curvature, guided, unit_start
from retrace_tests.restoration.problems import SIGMA, Gaussian, as_flow, pictures_prior, vp_sigmas

SHAPE = (1, 6, 6)


def problem(gamma=0.1, omega=1.0):
    prior = pictures_prior(SHAPE)
    operator = LowResolution(SHAPE, 2, "box")
    truth = prior.sample(1, seed=3)
    measured = Measurement(operator, operator.forward(truth), SIGMA)
    return prior, Energy(measured, lambda z: z, lambda x: x, omega, gamma), truth


def standard(rows):
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_step_is_the_published_one():
    """A VP reference: state x / sqrt(1 + s^2) of unit variance, DDIM, then the gradient with respect to that state."""
    prior, energy, _ = problem()
    sigma, after = 2.0, 1.2
    x = sigma * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # A hundred steps of which the rest do nothing would be the same: 50 / 1 is the length of a single step.
    found = guided(
        prior.denoise, x, (sigma, after), "ve", lambda d: energy(d) / 50, fresh_noise(x, 0), largest=math.inf
    )
    small, kept, kept_after = x / (1 + sigma**2) ** 0.5, 1 / (1 + sigma**2), 1 / (1 + after**2)
    small = small.requires_grad_(True)
    clean = prior.denoise(small * (1 + sigma**2) ** 0.5, sigma)
    (gradient,) = torch.autograd.grad(energy(clean).sum(), small)
    noise = (small - kept**0.5 * clean) / (1 - kept) ** 0.5
    wanted = kept_after**0.5 * clean + (1 - kept_after) ** 0.5 * noise - gradient
    assert torch.allclose(found / (1 + after**2) ** 0.5, wanted.detach(), atol=1e-6)


def test_flow_and_ve_take_the_same_steps():
    prior, energy, _ = problem()
    sigmas = vp_sigmas(20, top=20.0)
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ve = guided(prior.denoise, sigmas[0] * noise, sigmas, "ve", energy, fresh_noise(noise, 0), inner=2)
    levels = as_flow(sigmas)

    def flow(x, s):
        return prior.denoise(x, s, "flow")

    # Only the unit of the state differs, and with it the length of a step: that of unit variance is common to both.
    x = levels[0] * noise
    first = guided(flow, x, levels[:2], "flow", energy, fresh_noise(noise, 0))
    again = guided(prior.denoise, sigmas[0] * noise, sigmas[:2], "ve", energy, fresh_noise(noise, 0))
    scale = [sum(w**2 for w in weights(s, space)) ** 0.5 for s, space in ((levels[1], "flow"), (sigmas[1], "ve"))]
    assert torch.allclose(first / scale[0], again / scale[1], atol=1e-9)
    assert bool(torch.isfinite(ve).all())


@pytest.mark.parametrize("joined", [False, True])
def test_no_step_is_longer_than_a_share_of_the_noise(joined):
    """The length that is bounded is that of the state of unit variance, where eps and flow are one."""
    prior, energy, _ = problem()
    noise, ends = standard(2), []
    for space, levels in (("ve", (2.0, 1.2)), ("flow", as_flow((2.0, 1.2)))):
        unit = [sum(w**2 for w in weights(level, space)) ** 0.5 for level in levels]

        def step(weight, levels=levels, space=space, unit=unit, **settings):
            start, denoiser = levels[0] * noise, partial(prior.denoise, space=space)
            end = guided(denoiser, start, levels, space, lambda d: weight * energy(d), None, joined=joined, **settings)
            return end / unit[1]

        def way(weight, step=step, **settings):
            return (step(weight, **settings) - step(0.0)).flatten(0 if joined else 1)

        def moved(weight, way=way, **settings):
            return way(weight, **settings).norm(dim=-1)

        most = 0.1 * levels[0] / unit[0] * (noise.numel() if joined else noise[0].numel()) ** 0.5
        assert torch.allclose(moved(100.0), torch.full_like(moved(0.0), most))
        assert torch.allclose(moved(100.0, largest=0.02), torch.full_like(moved(0.0), 0.2 * most))
        same = torch.cosine_similarity(way(100.0), way(100.0, largest=math.inf), dim=-1)
        assert torch.allclose(same, torch.ones_like(same))
        # A weight whose step is shorter is left alone, and so is every other without a bound.
        assert torch.equal(step(1e-4), step(1e-4, largest=math.inf))
        assert bool((moved(100.0, largest=math.inf) > 10 * most).all())
        ends.append(step(100.0))
    assert torch.allclose(*ends, atol=1e-9)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_few_steps_do_not_overshoot(space):
    """In ten steps the published form ends far behind the measurement at a weight that suits a bounded one."""
    prior, energy, _ = problem()
    sigmas = vp_sigmas(10) if space == "ve" else as_flow(vp_sigmas(10))

    def chi2(**settings):
        denoiser = partial(prior.denoise, space=space)
        drawn = guided(denoiser, sigmas[0] * standard(4), sigmas, space, energy, None, **settings)
        return float(energy.measurement.chi2(drawn).mean())

    assert chi2() < 0.2 * chi2(largest=math.inf)


def test_the_trace_term_has_no_gradient_on_a_gaussian():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64).requires_grad_(True)
    direction = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    gradient, value = {}, {}
    gaussian = pictures_prior(SHAPE)

    def mixture(x, sigma):
        """Two clusters, of which the nearer counts more."""
        pull = torch.tanh(x.flatten(1).sum(1) / sigma**2)[:, None, None, None]
        return gaussian.denoise(x, sigma) + pull

    for name, denoise in (("gaussian", gaussian.denoise), ("mixture", mixture)):
        for space in ("ve", "flow"):
            sigma = 1.0 if space == "ve" else 0.5
            level = denoise if space == "ve" else (lambda x, s, d=denoise: d(x / (1 - s), s / (1 - s)))
            term = curvature(level, x, level(x, sigma), sigma, space, direction)
            value[name, space] = term.detach()
            (gradient[name, space],) = torch.autograd.grad(term.sum(), x)
    assert float(gradient["gaussian", "ve"].abs().max()) < 1e-12
    assert float(gradient["gaussian", "flow"].abs().max()) < 1e-12
    assert float(gradient["mixture", "ve"].abs().max()) > 1e-2
    assert torch.allclose(value["gaussian", "ve"] * 1.0, value["gaussian", "flow"], atol=1e-9)


def test_the_gluing_term_on_a_linear_autoencoder():
    """With orthonormal S and A A^T = 1, |z - enc(P dec z)| = w / (1 + w) |S^T A^T (A S z - y)|."""
    generator = torch.Generator().manual_seed(0)
    straight = torch.linalg.qr(torch.randn(36, 12, generator=generator, dtype=torch.float64))[0]
    operator = LowResolution(SHAPE, 2, "box")
    y = torch.randn(1, *operator.out_shape, generator=generator, dtype=torch.float64)
    measured = Measurement(operator, y, 0.05)
    z = torch.randn(4, 12, generator=generator, dtype=torch.float64)

    def decode(z):
        return (z @ straight.T).reshape(-1, *SHAPE)

    energy = Energy(measured, decode, lambda x: x.flatten(1) @ straight, omega=0.0, gamma=1.0)
    wanted = (measured.adjoint(measured.residual(decode(z))).flatten(1) @ straight).norm(dim=1)
    weight = measured.weight(1.0)
    assert torch.allclose(energy(z), weight / (1 + weight) * wanted, atol=1e-9)


def test_guidance_draws_to_the_measurement():
    prior, energy, _ = problem()
    sigmas = vp_sigmas(50)
    noise = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    free = guided(prior.denoise, sigmas[0] * noise, sigmas, "ve", lambda d: 0.0 * d.flatten(1).sum(1), None)
    # The prior is far smaller than a latent's unit variance, and so must the steps be.
    drawn = guided(prior.denoise, sigmas[0] * noise, sigmas, "ve", lambda d: 0.1 * energy(d), None)
    assert float(energy.measurement.chi2(drawn).mean()) < 0.3 * float(energy.measurement.chi2(free).mean())
    more = guided(prior.denoise, sigmas[0] * noise, sigmas, "ve", lambda d: 0.02 * energy(d), None, inner=5)
    assert float(energy.measurement.chi2(more).mean()) < 0.3 * float(energy.measurement.chi2(free).mean())
    single = guided(prior.denoise, sigmas[0] * noise[1:2], sigmas, "ve", lambda d: 0.1 * energy(d), None)
    assert torch.allclose(single, drawn[1:2], atol=1e-8)
    assert not drawn.requires_grad


def test_the_start_from_the_photo():
    noise, guess = torch.ones(1, *SHAPE), 3 * torch.ones(1, *SHAPE)
    assert torch.equal(unit_start(noise, None, 5.0, "ve"), 5 * noise)
    assert torch.equal(unit_start(noise, guess, 5.0, "ve"), 8 * noise)
    assert torch.equal(unit_start(noise, guess, 0.5, "flow"), 2 * noise)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inner": 0}, "inner steps must be at least 1"),
        ({"largest": 0.0}, "largest step must be above 0"),
        ({"energy": 1e9}, "must stay finite"),
    ],
)
def test_refusals_are_one_sentence(settings, words):
    prior = Gaussian(torch.eye(36, dtype=torch.float64), SHAPE)
    x = torch.ones(1, *SHAPE, dtype=torch.float64)
    factor = settings.pop("energy", 0.0)
    with pytest.raises(ValueError, match=words) as caught:
        guided(
            lambda x, s: prior.denoise(x, s),
            x,
            (3.0, 2.0, 1.0, 0.0),
            "ve",
            lambda d: (factor * d**3).exp().flatten(1).sum(1),
            None,
            **settings,
        )
    assert str(caught.value).endswith(".")
