"""Edit-friendly DDPM inversion: exact at any guidance, the posterior of the process, and the noises it asks for."""

import math
from dataclasses import replace

import pytest
import torch

from retrace.inversion import get_method, invert, relative_error, replay
from retrace.inversion.methods.noise_map import STEPPERS, Prediction, extrapolate, posterior_mean
from retrace_tests.inversion.problems import Mixture, full_grid


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize("stepper", STEPPERS)
@pytest.mark.parametrize(
    # Guidance multiplies the rounding of the model too.
    ("dtype", "cfg", "bound"),
    [(torch.float64, 1.0, 1e-15), (torch.float64, 7.5, 1e-14), (torch.float32, 1.0, 1e-6), (torch.float32, 7.5, 5e-6)],
)
def test_comes_back_at_any_guidance(space, stepper, dtype, cfg, bound):
    mixture = Mixture(space)
    clean, denoiser = mixture.sample(3).to(dtype), mixture.denoiser("source", cfg)
    method = get_method("noise_map", {"stepper": stepper})
    for steps, level in ((50, 50), (50, 30), (4, 1)):
        record = invert(denoiser, clean, full_grid(space, steps), level, method, dtype=dtype)
        # The same prompt as a target is the source, which then is not asked.
        silent = mixture.denoiser()
        for back in (replay(record, denoiser), replay(record, silent, denoiser)):
            assert relative_error(back, clean) <= bound and silent.evaluations == 0


def test_mean_at_both_ends():
    x, clean = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(posterior_mean(x, clean, 1.0, 0.25, "flow"), 0.75 * clean)
    for space in ("ve", "flow"):
        assert torch.equal(posterior_mean(x, clean, 0.5, 0.0, space), clean)


def test_seed_decides_the_noises():
    mixture, grid = Mixture("ve"), full_grid("ve", 8)
    clean, denoiser = mixture.sample(2), mixture.denoiser()
    first, again = (invert(denoiser, clean, grid, 8, "noise_map") for _ in range(2))
    other = invert(denoiser, clean, grid, 8, get_method("noise_map", {"seed": 1}))
    assert torch.equal(first.x, again.x) and (first.seed, other.seed) == (0, 1)
    assert relative_error(other.x, first.x) > 0.5
    # Each level has a noise of its own.
    kept = invert(denoiser, clean, grid, 8, "noise_map", keep_path=True)
    noises = [((x - clean) / s).flatten() for x, s in zip(kept.path[1:], grid[1:], strict=True)]
    for a, b in zip(noises, noises[1:], strict=False):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.4


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_second_order_mean_is_that_of_the_solver(space):
    """D that is linear in the log of the level is taken at the middle of the step; the mean mixes it with the state.

    In the VE space the mean is q u + (1 - q) D~ with q = (T / S)^2.
    """
    generator = torch.Generator().manual_seed(0)
    a, b, x = (torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(3))
    before, sigma, sigma_next = (0.8, 0.7, 0.6)

    def log(level):
        return -math.log(level if space == "ve" else level / (1 - level))

    def prediction(level):
        return Prediction(a + b * log(level), level)

    found = extrapolate(prediction(sigma), prediction(before), sigma_next, space)
    torch.testing.assert_close(found, a + b * 0.5 * (log(sigma) + log(sigma_next)), rtol=1e-12, atol=1e-12)
    q = math.exp(-2 * (log(sigma_next) - log(sigma)))
    u = x if space == "ve" else x / (1 - sigma)
    mean = q * u + (1 - q) * found
    wanted = mean if space == "ve" else (1 - sigma_next) * mean
    torch.testing.assert_close(posterior_mean(x, found, sigma, sigma_next, space), wanted, rtol=1e-12, atol=1e-12)


def test_second_order_needs_a_level_before_and_one_below():
    now, before = Prediction(torch.ones(2), 0.5), Prediction(torch.zeros(2), 0.75)
    for space in ("ve", "flow"):
        assert not torch.equal(extrapolate(now, before, 0.25, space), now.denoised)
        assert torch.equal(extrapolate(now, None, 0.25, space), now.denoised)
        assert torch.equal(extrapolate(now, before, 0.0, space), now.denoised)
    assert torch.equal(extrapolate(now, Prediction(torch.zeros(2), 1.0), 0.25, "flow"), now.denoised)


def test_the_stepper_is_part_of_the_record():
    mixture, grid = Mixture("ve"), full_grid("ve", 10)
    clean, denoiser = mixture.sample(1), mixture.denoiser()
    ledits = get_method("noise_map", {"stepper": "dpmpp_2m_sde"})
    plain, second = invert(denoiser, clean, grid, 10, "noise_map"), invert(denoiser, clean, grid, 10, ledits)
    assert torch.equal(plain.x, second.x) and not torch.equal(plain.residuals[3], second.residuals[3])
    assert torch.equal(plain.residuals[9], second.residuals[9])
    with pytest.raises(ValueError, match="must hold its residuals, got none"):
        replay(replace(plain, residuals=None), denoiser)
