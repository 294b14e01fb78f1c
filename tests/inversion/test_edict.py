"""EDICT: the published steps in their own units, the choice of p, and where its way up diverges."""

import math

import pytest
import torch

from retrace.inversion import Inversion, get_method, invert, noise_std, relative_error, replay
from retrace_tests.inversion.problems import Mixture, full_grid


def alpha(sigma):
    return 1.0 / math.sqrt(1.0 + sigma**2)


def test_is_the_paper_in_its_own_units():
    """Steps z' = a z + b eps(z_other, timestep of s) and the mixing, on variance-preserving latents z = alpha x."""
    mixture = Mixture("ve")
    denoiser, p, grid = mixture.denoiser(), 0.93, [1.0, 1.7, 2.2]
    x = mixture.sample(2) + grid[2] * mixture.noise(2)
    y = x + 0.05 * mixture.noise(2, seed=9)

    def eps(latent, sigma):
        state = latent / alpha(sigma)  # the state whose network tensor this latent is, at the level of the timestep
        return (state - denoiser(state, sigma)) / sigma

    zx, zy = alpha(grid[2]) * x, alpha(grid[2]) * y
    for count, (s, t) in enumerate(((grid[2], grid[1]), (grid[1], grid[0]))):
        a = alpha(t) / alpha(s)
        b = alpha(t) * t - alpha(t) * s
        if count % 2:
            zx, zy = zy, zx
        zx = a * zx + b * eps(zy, s)
        zy = a * zy + b * eps(zx, s)
        if count % 2:
            zx, zy = zy, zx
        zx = p * zx + (1 - p) * zy
        zy = p * zy + (1 - p) * zx
    record = Inversion("ve", grid, 2, x, x, y, method="edict", params={"p": p})
    ours = alpha(grid[0]) * replay(record, denoiser)
    torch.testing.assert_close(ours, zx, rtol=1e-13, atol=1e-13)


def test_p_follows_the_steps():
    method = get_method("edict")
    assert method.mixing(10) == method.mixing(20) == 0.93
    assert method.mixing(50) == pytest.approx(math.exp(-0.03)) and method.mixing(1000) < 1.0
    assert get_method("edict", {"p": 0.93}).mixing(50) == 0.93
    # The whole grid counts, not the level reached: the record keeps both, so a replay finds the same p.
    mixture = Mixture("flow")
    clean, grid = mixture.sample(1), full_grid("flow", 60)
    chosen = invert(mixture.denoiser(), clean, grid, 30, "edict")
    by_hand = invert(mixture.denoiser(), clean, grid, 30, get_method("edict", {"p": method.mixing(60)}))
    assert torch.equal(chosen.x, by_hand.x) and torch.equal(chosen.mate, by_hand.mate)


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize("steps", [20, 50, 100, 200])
def test_the_chosen_p_keeps_the_noise_sound(space, steps):
    mixture = Mixture(space)
    clean, denoiser = mixture.sample(8), mixture.denoiser()
    record = invert(denoiser, clean, full_grid(space, steps), steps, "edict")
    assert noise_std(record.x, record.x0, record.sigma, space) == pytest.approx(1.0, abs=0.25)
    assert relative_error(replay(record, denoiser), clean) <= 1e-12
    if steps == 50 and space == "flow":
        # Why p follows the steps: exact is not sound.
        official = get_method("edict", {"p": 0.93})
        record = invert(mixture.denoiser(cfg=7.5), clean, full_grid(space, steps), steps, official)
        assert noise_std(record.x, record.x0, record.sigma, "flow") > 5.0


def test_what_diverges_is_refused():
    mixture = Mixture("flow")
    denoiser, clean, grid = mixture.denoiser(), mixture.sample(1), full_grid("flow", 200)
    sentence = "p of method edict must be 0 or at least 0.97 to climb 200 steps, got 0.93; set it to 0"
    with pytest.raises(ValueError, match=sentence):
        invert(denoiser, clean, grid, 200, get_method("edict", {"p": 0.93}))
    assert denoiser.evaluations == 0
    invert(denoiser, clean, grid, 200, get_method("edict", {"p": 0.97}))
    with pytest.raises(ValueError, match="p of method edict must be 0 or at least 0.5, got 0.3; 0 chooses it"):
        get_method("edict", {"p": 0.3})
