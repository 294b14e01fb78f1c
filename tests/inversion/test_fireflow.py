"""FireFlow keeps the midpoint derivative for one step and starts anew in each walk."""

import pytest
import torch

from retrace.inversion import FireFlow, Midpoint, invert, relative_error, replay, walk
from retrace_tests.inversion.problems import Mixture, full_grid


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_steps_as_written(space):
    mixture = Mixture(space)
    field, stepper = mixture.field(), FireFlow()
    x, sigmas = mixture.sample(2), (0.2, 0.3, 0.45)
    first = stepper(field, x, sigmas[0], sigmas[1]).x
    # With no history the first step is the midpoint rule.
    torch.testing.assert_close(first, Midpoint()(field, x, sigmas[0], sigmas[1]).x, rtol=0, atol=0)
    kept = (first - x) / (sigmas[1] - sigmas[0])
    h = sigmas[2] - sigmas[1]
    by_hand = first + h * field.derivative(first + 0.5 * h * kept, sigmas[1] + 0.5 * h)
    torch.testing.assert_close(stepper(field, first, sigmas[1], sigmas[2]).x, by_hand)


def test_a_used_stepper_gives_another_walk():
    # The reason why every walk takes a fresh one.
    mixture = Mixture("flow")
    x, grid, stepper = mixture.sample(1), full_grid("flow", 6), FireFlow()
    once = walk(mixture.field(), x, grid, stepper)
    assert not torch.equal(once, walk(mixture.field(), x, grid, stepper))


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_second_order_for_one_call_a_step(space):
    mixture = Mixture(space)
    clean, field, errors = mixture.sample(4), mixture.field(), {}
    for name in ("euler", "fireflow"):
        record = invert(field, clean, full_grid(space, 50), 50, name)
        errors[name] = relative_error(replay(record, field), clean)
    assert errors["fireflow"] < errors["euler"] / 20
