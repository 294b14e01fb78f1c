"""The levels at which a method asks."""

import pytest
import torch

from retrace.inversion import Denoiser, SingleState, get_method, invert, replay, sigmas_asked
from retrace.inversion.registry import METHODS

GRID = (0.0, 0.2, 0.5, 0.8, 1.0)


def test_second_order_methods_ask_in_the_middle():
    up, down = sigmas_asked(get_method("midpoint"), GRID, 2, "flow", 1e-3)
    assert up == pytest.approx((1e-3, 0.1, 0.2, 0.35)) and down == pytest.approx((0.5, 0.35, 0.2, 0.1))
    up, down = sigmas_asked(get_method("fireflow"), GRID, 2, "flow", 1e-3)
    assert up == pytest.approx((1e-3, 0.1, 0.35)) and down == pytest.approx((0.5, 0.35, 0.1))
    up, down = sigmas_asked(get_method("euler"), GRID, 4, "flow", 1e-3)
    assert up == pytest.approx((1e-3, 0.2, 0.5, 0.8)) and down == pytest.approx((1.0, 0.8, 0.5, 0.2))


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, method in METHODS.items()
        if issubclass(method, SingleState) and not (method.stops_early or method.needs_gradients)
    ],
)
def test_they_are_those_of_a_real_walk(name, space):
    method, seen = get_method(name), []

    def model(x, sigma):
        seen.append(sigma)
        return 0.5 * x.tanh()

    x0 = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(model, space)
    record = invert(denoiser, x0, GRID, 3, method)
    climbed = tuple(seen)
    seen.clear()
    replay(record, denoiser, denoiser)
    assert sigmas_asked(method, GRID, 3, space) == (climbed, tuple(seen))
