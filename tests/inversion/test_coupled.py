"""The two-step family: one formula, its own inverse, and what all pair methods refuse."""

import math

import pytest
import torch

from retrace.inversion import (
    Coupled,
    MisfitError,
    adopt,
    get_method,
    invert,
    load,
    relative_error,
    replay,
    save,
    two_step,
)
from retrace_tests.inversion.problems import Mixture, full_grid

PAIRS = ("edict", "bdia", "belm")

# Round trip at N = 50 in float32, as seen on another mixture: VE at cfg 1 and 7.5, flow at cfg 1 and 7.5.
SINGLE = [
    ("edict", {"p": 0.93}, (3e-7, 3e-6, 2e-7, 9e-6)),
    ("edict", {"p": 0.97}, (5e-6, 2e-5, 2e-7, 4e-6)),
    # The p that 50 steps get is 0.97.
    ("edict", {}, (5e-6, 2e-5, 2e-7, 4e-6)),
    ("bdia", {}, (1e-6, 1e-4, 4e-7, 2e-5)),
    ("bdia", {"gamma": 0.96}, (4e-7, 2e-5, 3e-7, 1e-5)),
    ("belm", {}, (8e-6, 2e-4, 4e-5, 6e-4)),
]


def states(count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_ratio_zero_is_euler():
    x_prev, x, d = states()
    torch.testing.assert_close(two_step(x_prev, x, d, 3.0, 2.0, 1.5, 0.0), x - 0.5 * d, rtol=0, atol=1e-15)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 1.7])
def test_the_step_is_its_own_inverse(ratio):
    x_prev, x, d = states()
    x_next = two_step(x_prev, x, d, 3.0, 2.0, 1.5, ratio)
    back = two_step(x_next, x, d, 1.5, 2.0, 3.0, 1.0 / ratio)
    torch.testing.assert_close(back, x_prev, rtol=0, atol=1e-14)
    assert relative_error(two_step(x_next, x, d, 1.5, 2.0, 3.0, ratio), x_prev) > 0.1 or ratio == 1.0


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 1.7])
def test_a_straight_line_is_followed(ratio):
    _, x, d = states()
    out = two_step(x + d, x, d, 3.0, 2.0, 1.5, ratio)
    torch.testing.assert_close(out, x - 0.5 * d, rtol=0, atol=1e-14)


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("cfg", [1.0, 7.5])
@pytest.mark.parametrize("level", [35, 50])
def test_exact_at_any_guidance(name, space, cfg, level):
    mixture = Mixture(space)
    clean, denoiser = mixture.sample(4), mixture.denoiser(cfg=cfg)
    record = invert(denoiser, clean, full_grid(space, 50), level, name)
    # Guidance stretches the denoiser, and rounding with it: 6e-12 was seen at 7.5.
    assert relative_error(replay(record, denoiser), clean) <= (1e-12 if cfg == 1.0 else 1e-10)


@pytest.mark.parametrize(("name", "settings", "figures"), SINGLE)
def test_round_trip_in_single_precision(name, settings, figures):
    """Within ten times what another mixture showed: rounding depends on the latent, and on how a sum is grouped."""
    for figure, (space, cfg) in zip(figures, [(s, w) for s in ("ve", "flow") for w in (1.0, 7.5)], strict=True):
        mixture = Mixture(space)
        clean, denoiser = mixture.sample(4).float(), mixture.denoiser(cfg=cfg)
        record = invert(denoiser, clean, full_grid(space, 50), 50, get_method(name, settings), dtype=torch.float32)
        error = relative_error(replay(record, denoiser), clean)
        assert 1e-9 < error <= 10 * figure, (space, cfg)


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize("name", PAIRS)
def test_one_state_alone_does_not_come_back(name, space):
    from dataclasses import replace

    mixture = Mixture(space)
    clean, grid, denoiser = mixture.sample(4), full_grid(space, 50), mixture.denoiser(cfg=3.0)
    record = invert(denoiser, clean, grid, 50, name)
    method = get_method(name)
    assert isinstance(method, Coupled)
    alone = replace(record, mate=method.mate(denoiser, record.x, grid, 50))
    assert relative_error(replay(alone, denoiser), clean) > 1e-3
    with pytest.raises(ValueError, match=f"An inversion of method {name} must hold two states, got one; invert again"):
        replay(replace(record, mate=None), denoiser)


@pytest.mark.parametrize("name", PAIRS)
def test_the_pair_survives_a_file(name, tmp_path):
    mixture = Mixture("ve")
    clean, denoiser = mixture.sample(2), mixture.denoiser()
    record = invert(denoiser, clean, full_grid("ve", 20), 13, name)
    save(record, tmp_path / "record.safetensors")
    again = load(tmp_path / "record.safetensors")
    assert torch.equal(record.mate, again.mate) and relative_error(replay(again, denoiser), clean) <= 1e-12


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_no_single_state(name):
    mixture = Mixture("flow")
    record = invert(mixture.denoiser(), mixture.sample(1), full_grid("flow", 4), 4, name)
    with pytest.raises(MisfitError, match="must be between methods that keep one state, got"):
        adopt(record, "euler")


@pytest.mark.parametrize("name", PAIRS)
def test_the_model_is_never_asked_below_what_is_needed(name):
    # EDICT asks at the noisier level of each step, so the floor at 0 plays no part; the others ask once at 0, going up.
    asked = []
    mixture = Mixture("flow")
    denoiser = mixture.denoiser(sigma_floor=1e-6)
    inner = denoiser._denoise

    def denoise(x, sigma):
        asked.append(sigma)
        return inner(x, sigma)

    denoiser._denoise = denoise
    grid = full_grid("flow", 10)
    record = invert(denoiser, mixture.sample(1), grid, 10, name)
    up = list(asked)
    replay(record, denoiser)
    down = asked[len(up) :]
    if name == "edict":
        assert min(asked) == grid[1] and up == sorted(up) and down == up[::-1]
    else:
        assert up == [1e-6, *grid[1:10]] and down == grid[9:0:-1]


@pytest.mark.parametrize("name", PAIRS)
def test_every_level_below_the_start_is_offered_to_the_mask(name):
    mixture, offered = Mixture("ve"), []
    record = invert(mixture.denoiser(), mixture.sample(1), full_grid("ve", 8), 6, name)

    def tap(x, level):
        offered.append(level)
        return x

    replay(record, mixture.denoiser(), after_step=tap)
    assert sorted(set(offered), reverse=True) == [5, 4, 3, 2, 1, 0] and offered == sorted(offered, reverse=True)


def test_finite_where_steps_differ_wildly():
    mixture = Mixture("ve")
    grid = [0.0, 0.03, 0.04, 0.5, 0.6, 6.0, 14.6]
    for name in PAIRS:
        record = invert(mixture.denoiser(), mixture.sample(1), grid, 6, name)
        assert math.isfinite(float(record.x.abs().max()))
        assert relative_error(replay(record, mixture.denoiser()), record.x0) < 1e-9
