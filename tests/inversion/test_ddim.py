"""The official DDIM inversion: the lower latent, unchanged, under the higher timestep."""

import math

import pytest
import torch

from retrace.inversion import DDIMPredictor, invert, relative_error, replay
from retrace_tests.inversion.problems import Mixture, full_grid


def test_is_the_official_form():
    mixture = Mixture("ve")
    denoiser = mixture.denoiser()
    sigma, sigma_next = 2.0, 3.0
    x = mixture.sample(2) + sigma * mixture.noise(2)

    def alpha(level):
        return 1.0 / math.sqrt(1.0 + level**2)

    def beta(level):
        return math.sqrt(1.0 - alpha(level) ** 2)

    latent = alpha(sigma) * x
    seen = latent / alpha(sigma_next)  # the state for which the network is shown this latent at the higher level
    eps = (seen - denoiser(seen, sigma_next)) / sigma_next
    denoised = (latent - beta(sigma) * eps) / alpha(sigma)
    official = alpha(sigma_next) * denoised + beta(sigma_next) * eps
    ours = alpha(sigma_next) * DDIMPredictor()(denoiser, x, sigma, sigma_next).x
    torch.testing.assert_close(ours, official, rtol=1e-13, atol=1e-13)


def test_flow_evaluates_the_state_itself():
    mixture = Mixture("flow")
    denoiser, x = mixture.denoiser(), mixture.sample(2)
    by_hand = x + 0.2 * denoiser.derivative(x, 0.6)
    torch.testing.assert_close(DDIMPredictor()(denoiser, x, 0.4, 0.6).x, by_hand, rtol=0, atol=1e-15)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_is_nearer_than_euler_as_a_rule(space):
    mixture = Mixture(space)
    clean, denoiser, errors = mixture.sample(16), mixture.denoiser(), {}
    for name in ("euler", "ddim"):
        record = invert(denoiser, clean, full_grid(space, 50), 50, name)
        missed = (replay(record, denoiser) - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)
        # The median, because single latents near a border between two modes come back in the other one.
        errors[name] = float(missed.median())
    assert errors["ddim"] < 0.8 * errors["euler"]


def test_guidance_on_the_way_down_destroys_the_reconstruction():
    # Why replay under the source without guidance is the default, and what null-text sets out to repair.
    mixture = Mixture("ve")
    clean = mixture.sample(4)
    record = invert(mixture.denoiser(), clean, full_grid("ve", 50), 50, "ddim")
    plain, guided = replay(record, mixture.denoiser()), replay(record, mixture.denoiser(cfg=7.5))
    assert relative_error(guided, clean) > 2 * relative_error(plain, clean)
