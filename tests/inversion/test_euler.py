"""Euler in the sigma form is the DDIM step in the alpha-bar form of the paper."""

import math

import torch

from retrace.inversion import Euler
from retrace_tests.inversion.problems import Mixture


def test_is_the_ddim_step():
    mixture = Mixture("ve")
    denoiser = mixture.denoiser(cfg=3.0)
    sigma, sigma_next = 3.0, 2.0
    x = mixture.sample(2) + sigma * mixture.noise(2)

    def alpha(level):
        return 1.0 / math.sqrt(1.0 + level**2)

    latent = alpha(sigma) * x  # what the paper calls x_t, of unit variance
    eps = (x - denoiser(x, sigma)) / sigma
    denoised = (latent - math.sqrt(1.0 - alpha(sigma) ** 2) * eps) / alpha(sigma)
    paper = alpha(sigma_next) * denoised + math.sqrt(1.0 - alpha(sigma_next) ** 2) * eps
    ours = alpha(sigma_next) * Euler()(denoiser, x, sigma, sigma_next).x
    torch.testing.assert_close(ours, paper, rtol=1e-13, atol=1e-13)
