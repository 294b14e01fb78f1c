"""The two-step formula, its own inverse, and what all pairs have in common."""

from dataclasses import replace

import pytest
import torch

from retrace.inversion import METHODS, Coupled, MisfitError, adopt, get_method, invert, relative_error, replay, two_step
from retrace_tests.inversion.problems import Mixture, full_grid

PAIRS = sorted(name for name, method in METHODS.items() if issubclass(method, Coupled))

# Round trip at N = 50 in float32, as seen on another mixture: VE at cfg 1 and 7.5, flow at cfg 1 and 7.5.
SINGLE = [
    ("edict", {"p": 0.93}, (3e-7, 3e-6, 2e-7, 9e-6)),
    # The p that 50 steps get is 0.97.
    ("edict", {}, (5e-6, 2e-5, 2e-7, 4e-6)),
    ("bdia", {}, (1e-6, 1e-4, 4e-7, 2e-5)),
    ("bdia", {"gamma": 0.96}, (4e-7, 2e-5, 3e-7, 1e-5)),
    ("belm", {}, (8e-6, 2e-4, 4e-5, 6e-4)),
]


def states(count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 1.7])
def test_the_step_is_its_own_inverse_and_follows_a_straight_line(ratio):
    x_prev, x, d = states()
    line = two_step(x + d, x, d, 3.0, 2.0, 1.5, ratio)
    torch.testing.assert_close(line, x - 0.5 * d, rtol=0, atol=1e-14)
    x_next = two_step(x_prev, x, d, 3.0, 2.0, 1.5, ratio)
    if ratio == 0.0:
        torch.testing.assert_close(x_next, x - 0.5 * d, rtol=0, atol=1e-15)  # Euler
        return
    back = two_step(x_next, x, d, 1.5, 2.0, 3.0, 1.0 / ratio)
    torch.testing.assert_close(back, x_prev, rtol=0, atol=1e-14)
    assert relative_error(two_step(x_next, x, d, 1.5, 2.0, 3.0, ratio), x_prev) > 0.1 or ratio == 1.0


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize("name", PAIRS)
def test_exact_at_any_guidance_and_only_with_both_states(name, space):
    mixture, grid, method = Mixture(space), full_grid(space, 50), get_method(name)
    clean, denoiser = mixture.sample(4), mixture.denoiser(cfg=7.5)
    for index in (method.min_index, 35, 50):
        inversion = invert(denoiser, clean, grid, index, method)
        # Guidance stretches the denoiser, and rounding with it: 6e-12 was seen.
        assert relative_error(replay(inversion, denoiser), clean) <= 1e-10
    alone = replace(inversion, mate=method.mate(denoiser, inversion.x, grid, 50))
    assert relative_error(replay(alone, denoiser), clean) > 1e-3
    with pytest.raises(ValueError, match=f"An inversion of method {name} must hold two states, got one; invert again"):
        replay(replace(inversion, mate=None), denoiser)
    with pytest.raises(MisfitError, match="must be between methods that keep one state, got"):
        adopt(inversion, "euler")


@pytest.mark.parametrize(("name", "settings", "figures"), SINGLE)
def test_round_trip_in_single_precision(name, settings, figures):
    """Within ten times what another mixture showed: rounding depends on the latent, and on how a sum is grouped."""
    for figure, (space, cfg) in zip(figures, [(s, w) for s in ("ve", "flow") for w in (1.0, 7.5)], strict=True):
        mixture = Mixture(space)
        clean, denoiser = mixture.sample(4).float(), mixture.denoiser(cfg=cfg)
        inversion = invert(denoiser, clean, full_grid(space, 50), 50, get_method(name, settings), dtype=torch.float32)
        assert 1e-9 < relative_error(replay(inversion, denoiser), clean) <= 10 * figure, (space, cfg)
