"""RF-Inversion: the limits of its controllers, the same answer in both spaces, and its window."""

import pytest
import torch

from retrace.inversion import Denoiser, Euler, get_method, invert, mix, relative_error, replay, walk
from retrace.inversion.methods.rf_inversion import DownController, UpController
from retrace_tests.inversion.problems import SHAPE, Mixture, full_grid


def drawn(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rf(**settings):
    return get_method("rf_inversion", settings)


@pytest.mark.parametrize("index", [20, 13])
@pytest.mark.parametrize("space", ["ve", "flow"])
def test_all_of_the_upward_pull_ends_at_the_drawn_noise(space, index):
    mixture, grid = Mixture(space), full_grid(space, 20)
    clean = mixture.sample(3)
    record = invert(mixture.denoiser(), clean, grid, index, rf(gamma=1.0, seed=5))
    assert record.seed == 5
    wanted = mix(clean, drawn(5).expand_as(clean), grid[index], space)
    assert relative_error(record.x, wanted) <= 1e-15
    if space == "flow" and index == 20:
        assert relative_error(record.x, drawn(5).expand_as(clean)) <= 1e-15


@pytest.mark.parametrize("index", [20, 13])
@pytest.mark.parametrize("space", ["ve", "flow"])
def test_all_of_the_downward_pull_to_the_end_is_the_source(space, index):
    mixture, grid = Mixture(space), full_grid(space, 20)
    clean = mixture.sample(3)
    for start in (0.0, 0.5):
        record = invert(mixture.denoiser(), clean, grid, index, rf(eta=1.0, start=start, stop=1.0))
        for target in (None, mixture.denoiser("target", 7.5)):
            assert relative_error(replay(record, mixture.denoiser(), target), clean) <= 1e-15


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_without_pulls_it_is_euler_bit_for_bit(space):
    mixture, grid = Mixture(space), full_grid(space, 20)
    clean, denoiser, target = mixture.sample(3), mixture.denoiser(), mixture.denoiser("target", 3.0)
    plain = invert(denoiser, clean, grid, 16, "euler", keep_path=True)
    record = invert(denoiser, clean, grid, 16, rf(gamma=0.0, eta=0.0, stop=1.0), keep_path=True)
    assert all(torch.equal(a, b) for a, b in zip(record.path, plain.path, strict=True))
    for to in (None, target):
        assert torch.equal(replay(record, denoiser, to), replay(plain, denoiser, to))


@pytest.mark.parametrize(("gamma", "eta"), [(0.5, 0.9), (0.3, 0.0), (0.0, 0.6)])
def test_both_spaces_give_one_answer(gamma, eta):
    """A latent of the flow space is x / (1 - s) at s / (1 - s) in the VE space, under one and the same D."""
    mixture = Mixture("flow")
    clean, noise = mixture.sample(2), mixture.noise(2)
    flow = Denoiser(mixture.denoiser()._denoise, "flow", 1e-9)
    ve = Denoiser(lambda u, index: flow._denoise(u / (1 + index), index / (1 + index)), "ve", 1e-9)
    # Level 0 itself would ask two floors.
    grid = [0.05 + 0.045 * i for i in range(20)]
    levels = [s / (1 - s) for s in grid]
    start = mix(clean, noise, grid[0], "flow")
    up = walk(flow, start, grid, UpController(gamma, noise))
    same = walk(ve, start / (1 - grid[0]), levels, UpController(gamma, noise))
    torch.testing.assert_close(same * (1 - grid[-1]), up, rtol=1e-10, atol=1e-10)
    down = walk(flow, up, grid[::-1], DownController(eta, clean, grid[-1], grid[-13]))
    back = walk(ve, same, levels[::-1], DownController(eta, clean, levels[-1], levels[-13]))
    torch.testing.assert_close(back * (1 - grid[0]), down, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_the_window_is_counted_in_steps(space):
    """Outside it each step is Euler's, inside it none is."""
    mixture, grid, denoiser = Mixture(space), full_grid(space, 20), Mixture(space).denoiser()
    record = invert(denoiser, mixture.sample(1), grid, 10, rf(start=0.2, stop=0.5))
    states = [record.x]
    replay(record, denoiser, on_step=lambda report: states.append(report.x))
    for i, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        plain = walk(denoiser, before, record.falling[i : i + 2], Euler())
        assert torch.equal(after, plain) != (2 <= i < 5), i


def test_a_window_that_ends_before_it_begins_is_refused():
    with pytest.raises(ValueError, match=r"start of method rf_inversion must not lie above stop, got 0.5 and 0.25;"):
        rf(start=0.5)
    assert rf(start=0.5, stop=0.5).eta > 0.0
