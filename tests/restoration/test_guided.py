"""Gradient guidance: the published step in these units, and two identities of its terms."""

from types import SimpleNamespace

import pytest
import torch

from retrace.core.denoiser import Denoiser
from retrace.core.space import weights
from retrace.restoration import Energy, GuidedSettings, Measurement, guided
from retrace.restoration.operators import LowResolution
from retrace.restoration.solvers.guided import curvature
from retrace_tests.restoration.problems import SIGMA, as_flow, pictures_prior, unit, vp_sigmas

SHAPE = (1, 6, 6)
OPEN = GuidedSettings(largest_step=0.0)


def problem():
    prior = pictures_prior(SHAPE)
    operator = LowResolution(SHAPE, 2, "box")
    measured = Measurement(operator, operator.forward(prior.sample(1, seed=3)), SIGMA)
    return prior, Energy(measured, SimpleNamespace(decode=torch.clone, encode=torch.clone))


def run(prior, sigmas, energy, noise, space="ve", weight=1.0, **settings):
    """Guidance from pure noise, by a share of the energy."""
    joined = settings.pop("joined", False)
    start, chosen = weights(sigmas[0], space)[1] * noise, GuidedSettings(**settings)
    return guided(prior.denoiser(space), start, sigmas, lambda d: weight * energy(d), None, chosen, joined)


def test_a_step_is_the_published_one():
    """A VP reference: state x / sqrt(1 + s^2) of unit variance, DDIM, then the gradient with respect to that state."""
    prior, energy = problem()
    sigma, after = 2.0, 1.2
    x = sigma * unit(2, *SHAPE)
    # A hundred steps of which the rest do nothing would be the same: 50 / 1 is the length of a single step.
    found = run(prior, (sigma, after), energy, unit(2, *SHAPE), weight=1 / 50, largest_step=0.0)
    small, kept, kept_after = x / (1 + sigma**2) ** 0.5, 1 / (1 + sigma**2), 1 / (1 + after**2)
    small = small.requires_grad_(True)
    clean = prior.denoise(small * (1 + sigma**2) ** 0.5, sigma)
    (gradient,) = torch.autograd.grad(energy(clean).sum(), small)
    noise = (small - kept**0.5 * clean) / (1 - kept) ** 0.5
    wanted = kept_after**0.5 * clean + (1 - kept_after) ** 0.5 * noise - gradient
    assert torch.allclose(found / (1 + after**2) ** 0.5, wanted.detach(), atol=1e-6)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("inner", [1, 2])
def test_no_step_is_longer_than_a_share_of_the_noise(joined, inner):
    """The length that is bounded is that of the state of unit variance, where eps and flow are one."""
    prior, energy = problem()
    noise, ends = unit(2, *SHAPE), []
    for space, sigmas in (("ve", (2.0, 1.2)), ("flow", as_flow((2.0, 1.2)))):
        units = [sum(w**2 for w in weights(sigma, space)) ** 0.5 for sigma in sigmas]

        def step(weight, sigmas=sigmas, space=space, units=units, **settings):
            settings = {"inner_steps": inner, "joined": joined, **settings}
            return run(prior, sigmas, energy, noise, space, weight, **settings) / units[1]

        def way(weight, step=step, **settings):
            return (step(weight, **settings) - step(0.0)).flatten(0 if joined else 1)

        ends.append(step(100.0))
        if inner > 1:
            continue
        most = 0.1 * sigmas[0] / units[0] * (noise.numel() if joined else noise[0].numel()) ** 0.5
        bounded, tighter, unbounded = (way(100.0, largest_step=bound) for bound in (0.1, 0.02, 0.0))
        assert torch.allclose(bounded.norm(dim=-1), torch.full_like(bounded.norm(dim=-1), most))
        assert torch.allclose(tighter, 0.2 * bounded, atol=1e-9)
        same = torch.cosine_similarity(bounded, unbounded, dim=-1)
        assert torch.allclose(same, torch.ones_like(same)) and bool((unbounded.norm(dim=-1) > 10 * most).all())
        # A weight whose step is shorter is left alone.
        assert torch.equal(step(1e-4), step(1e-4, largest_step=0.0))
    assert torch.allclose(*ends, atol=1e-9)


def test_the_trace_term_has_no_gradient_on_a_gaussian():
    x, direction = unit(2, *SHAPE).requires_grad_(True), unit(2, *SHAPE, seed=1)
    gradient, value = {}, {}
    gaussian = pictures_prior(SHAPE)

    def mixture(x, sigma):
        """Two clusters, of which the nearer counts more."""
        pull = torch.tanh(x.flatten(1).sum(1) / sigma**2)[:, None, None, None]
        return gaussian.denoise(x, sigma) + pull

    for name, denoise in (("gaussian", gaussian.denoise), ("mixture", mixture)):
        for space, sigma in (("ve", 1.0), ("flow", 0.5)):
            own = denoise if space == "ve" else (lambda x, s, d=denoise: d(x / (1 - s), s / (1 - s)))
            denoiser = Denoiser(own, space, 1e-9)
            term = curvature(denoiser, x, denoiser(x, sigma), sigma, direction)
            value[name, space] = term.detach()
            (gradient[name, space],) = torch.autograd.grad(term.sum(), x)
    assert float(gradient["gaussian", "ve"].abs().max()) < 1e-12
    assert float(gradient["gaussian", "flow"].abs().max()) < 1e-12
    assert float(gradient["mixture", "ve"].abs().max()) > 1e-2
    assert torch.allclose(value["gaussian", "ve"], value["gaussian", "flow"], atol=1e-9)


def test_the_trace_term_is_weighed_in():
    """Where there is no energy the state moves against the gradient of the term alone, along the drawn direction."""
    x, direction, sigmas = 2.0 * unit(2, *SHAPE), unit(2, *SHAPE, seed=1), (2.0, 1.2)
    denoiser = Denoiser(lambda x, sigma: torch.tanh(x / sigma) ** 3, "ve", 1e-9)

    def end(weight):
        settings = GuidedSettings(curvature=weight, largest_step=0.0)
        return guided(denoiser, x, sigmas, lambda d: 0.0 * d.flatten(1).sum(1), lambda: direction, settings)

    point = x.clone().requires_grad_(True)
    term = curvature(denoiser, point, denoiser(point, 2.0), 2.0, direction)
    (gradient,) = torch.autograd.grad(term.sum(), point)
    scale = 50 * (1 + 2.0**2) ** 0.5 * (1 + 1.2**2) ** 0.5
    assert torch.allclose(end(0.01) - end(0.0), -0.01 * scale * gradient)


def test_the_gluing_term_on_a_linear_autoencoder():
    """With orthonormal S and A A^T = 1, |z - enc(P dec z)| = w / (1 + w) |S^T A^T (A S z - y)|."""
    straight = torch.linalg.qr(unit(36, 12))[0]
    operator = LowResolution(SHAPE, 2, "box")
    measured = Measurement(operator, unit(1, *operator.out_shape, seed=1), 0.05)
    z = unit(4, 12, seed=2)

    class Linear:
        decode = staticmethod(lambda z: (z @ straight.T).reshape(-1, *SHAPE))
        encode = staticmethod(lambda x: x.flatten(1) @ straight)

    decoded = Linear.decode(z)
    wanted = (measured.adjoint(measured.residual(decoded)).flatten(1) @ straight).norm(dim=1)
    weight = measured.weight(1.0)
    energy = Energy(measured, Linear(), GuidedSettings(measurement_weight=0.0, gluing=1.0))
    assert torch.allclose(energy(z), weight / (1 + weight) * wanted, atol=1e-9)
    both = Energy(measured, Linear(), GuidedSettings(measurement_weight=2.0, gluing=0.5))(z)
    assert torch.allclose(both, 0.5 * energy(z) + 2.0 * measured.residual(decoded).flatten(1).norm(dim=1))
    joined = Energy(measured, Linear(), GuidedSettings(gluing=0.0), joined=True)(z)
    assert torch.allclose(joined, measured.residual(decoded).norm()[None])


def test_guidance_draws_to_the_measurement():
    prior, energy = problem()
    sigmas, noise = vp_sigmas(50), unit(4, *SHAPE)

    def chi2(drawn):
        return float(energy.measurement.chi2(drawn).mean())

    free = chi2(run(prior, sigmas, energy, noise, weight=0.0))
    # The prior is far smaller than a latent's unit variance, and so must the steps be.
    drawn = run(prior, sigmas, energy, noise, weight=0.1)
    assert chi2(drawn) < 0.3 * free and not drawn.requires_grad
    assert chi2(run(prior, sigmas, energy, noise, weight=0.02, inner_steps=5)) < 0.3 * free
    assert torch.allclose(run(prior, sigmas, energy, noise[1:2], weight=0.1), drawn[1:2], atol=1e-8)
    with pytest.raises(ValueError, match="guidance must stay finite, .* lower measurement_weight.$"):
        run(prior, (3.0, 2.0, 0.0), lambda d: (1e9 * d**3).exp().flatten(1).sum(1), noise)
