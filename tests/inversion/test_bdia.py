"""BDIA: the paper's update in its own units, its damping, and where its way up diverges."""

import math

import pytest
import torch

from retrace.inversion import get_method, invert, noise_std, relative_error, replay, two_step
from retrace_tests.inversion.problems import Mixture, full_grid


def alpha(sigma):
    return 1.0 / math.sqrt(1.0 + sigma**2)


@pytest.mark.parametrize("gamma", [1.0, 0.96, 0.5])
def test_is_the_paper_in_its_own_units(gamma):
    """z_{i-1} = gamma z_{i+1} + DDIM(z_i to i-1) - gamma DDIM(z_i to i+1), in the variance-preserving units z = a x."""
    mixture = Mixture("ve")
    denoiser = mixture.denoiser()
    high, here, low = 3.0, 2.2, 1.7
    x = mixture.sample(2) + here * mixture.noise(2)
    above = mixture.sample(2) + high * mixture.noise(2, seed=5)
    eps = denoiser.derivative(x, here)

    def ddim(sigma):
        clean = alpha(here) * x / alpha(here) - here * eps
        return alpha(sigma) * clean + alpha(sigma) * sigma * eps

    paper = gamma * alpha(high) * above + ddim(low) - gamma * ddim(high)
    ratio = get_method("bdia", {"gamma": gamma}).ratio(high, here, low, "ve")
    ours = alpha(low) * two_step(above, x, eps, high, here, low, ratio)
    torch.testing.assert_close(ours, paper, rtol=1e-13, atol=1e-13)
    assert get_method("bdia", {"gamma": gamma}).ratio(high, here, low, "flow") == gamma


@pytest.mark.parametrize(("gamma", "index", "enough"), [(0.5, 50, "0.93"), (0.92, 50, "0.93"), (0.96, 200, "0.98")])
def test_what_diverges_is_refused(gamma, index, enough):
    mixture = Mixture("flow")
    denoiser, clean, grid = mixture.denoiser(), mixture.sample(1), full_grid("flow", index)
    sentence = f"gamma of method bdia must be at least {enough} to climb {index} steps, got {gamma}; raise it, or"
    with pytest.raises(ValueError, match=sentence):
        invert(denoiser, clean, grid, index, get_method("bdia", {"gamma": gamma}))
    assert denoiser.evaluations == 0
    invert(denoiser, clean, grid, index, get_method("bdia", {"gamma": float(enough)}))


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize(("gamma", "index"), [(0.96, 100), (0.93, 50), (0.82, 20), (1.0, 200)])
def test_what_is_allowed_keeps_the_noise_sound(space, gamma, index):
    mixture = Mixture(space)
    clean, denoiser = mixture.sample(8), mixture.denoiser()
    record = invert(denoiser, clean, full_grid(space, index), index, get_method("bdia", {"gamma": gamma}))
    assert noise_std(record.x, record.x0, record.sigma, space) < 2.0
    assert relative_error(replay(record, denoiser), clean) <= 1e-12
