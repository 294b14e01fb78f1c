"""FireFlow keeps the midpoint derivative for one step and starts anew in each walk."""

import pytest
import torch

from retrace.inversion import FireFlow, Midpoint, invert, relative_error, replay, walk
from retrace_tests.inversion.problems import Mixture, full_grid


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_steps_as_written(space):
    mixture = Mixture(space)
    denoiser, stepper = mixture.denoiser(), FireFlow()
    x, sigmas = mixture.sample(2), (0.2, 0.3, 0.45)
    first = stepper(denoiser, x, sigmas[0], sigmas[1]).x
    # With no history the first step is the midpoint rule.
    torch.testing.assert_close(first, Midpoint()(denoiser, x, sigmas[0], sigmas[1]).x, rtol=0, atol=0)
    kept = (first - x) / (sigmas[1] - sigmas[0])
    h = sigmas[2] - sigmas[1]
    by_hand = first + h * denoiser.derivative(first + 0.5 * h * kept, sigmas[1] + 0.5 * h)
    torch.testing.assert_close(stepper(denoiser, first, sigmas[1], sigmas[2]).x, by_hand)


def test_a_used_stepper_gives_another_walk():
    # The reason why every walk takes a fresh one.
    mixture = Mixture("flow")
    x, grid, stepper = mixture.sample(1), full_grid("flow", 6), FireFlow()
    once = walk(mixture.denoiser(), x, grid, stepper)
    assert not torch.equal(once, walk(mixture.denoiser(), x, grid, stepper))


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_second_order_for_one_call_a_step(space):
    mixture = Mixture(space)
    clean, denoiser, errors = mixture.sample(4), mixture.denoiser(), {}
    for name in ("euler", "fireflow"):
        record = invert(denoiser, clean, full_grid(space, 50), 50, name)
        errors[name] = relative_error(replay(record, denoiser), clean)
    assert errors["fireflow"] < errors["euler"] / 20
