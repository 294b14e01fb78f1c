"""Each step is that of its paper, in the paper's own units."""

import math

import pytest
import torch

from retrace.core import DDIMPredictor, Euler, FireFlow, Midpoint, walk
from retrace_tests.inversion.problems import Mixture, full_grid


def alpha(sigma):
    return 1.0 / math.sqrt(1.0 + sigma**2)


def ddim(latent, eps, sigma, sigma_next):
    """The DDIM step of a latent of unit variance, x_t = alpha x, as the paper writes it."""
    denoised = (latent - math.sqrt(1.0 - alpha(sigma) ** 2) * eps) / alpha(sigma)
    return alpha(sigma_next) * denoised + math.sqrt(1.0 - alpha(sigma_next) ** 2) * eps


def test_euler_is_the_ddim_step():
    mixture, sigma, sigma_next = Mixture("ve"), 3.0, 2.0
    denoiser, x = mixture.denoiser(cfg=3.0), mixture.sample(2) + sigma * mixture.noise(2)
    paper = ddim(alpha(sigma) * x, (x - denoiser(x, sigma)) / sigma, sigma, sigma_next)
    ours = alpha(sigma_next) * Euler()(denoiser, x, sigma, sigma_next).x
    torch.testing.assert_close(ours, paper, rtol=1e-13, atol=1e-13)


def test_the_predictor_is_the_official_inversion():
    """The lower latent, unchanged, under the higher timestep; in the flow space the state itself."""
    mixture, sigma, sigma_next = Mixture("ve"), 2.0, 3.0
    denoiser, x = mixture.denoiser(), mixture.sample(2) + sigma * mixture.noise(2)
    latent = alpha(sigma) * x
    seen = latent / alpha(sigma_next)  # the state for which the network is shown this latent at sigma_next
    official = ddim(latent, (seen - denoiser(seen, sigma_next)) / sigma_next, sigma, sigma_next)
    ours = alpha(sigma_next) * DDIMPredictor()(denoiser, x, sigma, sigma_next).x
    torch.testing.assert_close(ours, official, rtol=1e-13, atol=1e-13)
    flow = Mixture("flow")
    denoiser, x = flow.denoiser(), flow.sample(2)
    by_hand = x + 0.2 * denoiser.derivative(x, 0.6)
    torch.testing.assert_close(DDIMPredictor()(denoiser, x, 0.4, 0.6).x, by_hand, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("sigma", "sigma_next"), [(0.7, 0.5), (0.5, 0.7), (1.0, 0.9)])
@pytest.mark.parametrize("space", ["ve", "flow"])
def test_midpoint_is_the_taylor_step_of_rf_solver(space, sigma, sigma_next):
    mixture = Mixture(space)
    denoiser, x, h = mixture.denoiser(), mixture.sample(2), sigma_next - sigma
    v = denoiser.derivative(x, sigma)
    # The paper's derivative of v: a finite difference over half a step along the path.
    slope = (denoiser.derivative(x + 0.5 * h * v, sigma + 0.5 * h) - v) / (0.5 * h)
    torch.testing.assert_close(Midpoint()(denoiser, x, sigma, sigma_next).x, x + h * v + 0.5 * h**2 * slope)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_fireflow_keeps_the_midpoint_derivative_for_one_step(space):
    mixture = Mixture(space)
    denoiser, stepper, x, sigmas = mixture.denoiser(), FireFlow(), mixture.sample(2), (0.2, 0.3, 0.45)
    first = stepper(denoiser, x, *sigmas[:2]).x
    # With no history the first step is the midpoint rule.
    assert torch.equal(first, Midpoint()(denoiser, x, *sigmas[:2]).x)
    carried, h = (first - x) / (sigmas[1] - sigmas[0]), sigmas[2] - sigmas[1]
    by_hand = first + h * denoiser.derivative(first + 0.5 * h * carried, sigmas[1] + 0.5 * h)
    torch.testing.assert_close(stepper(denoiser, first, *sigmas[1:]).x, by_hand)
    # The reason why every walk takes a fresh one.
    grid, used = full_grid(space, 6), FireFlow()
    assert not torch.equal(*(walk(denoiser, x, grid, used) for _ in range(2)))
