"""RF-Solver as its paper writes it, and what it buys at equal cost."""

import pytest
import torch

from retrace.inversion import Midpoint, invert, relative_error, replay
from retrace_tests.inversion.problems import Mixture, full_grid


@pytest.mark.parametrize(("sigma", "sigma_next"), [(0.7, 0.5), (0.5, 0.7), (1.0, 0.9)])
@pytest.mark.parametrize("space", ["ve", "flow"])
def test_is_the_taylor_step_of_the_paper(space, sigma, sigma_next):
    mixture = Mixture(space)
    denoiser, x, h = mixture.denoiser(), mixture.sample(2), sigma_next - sigma
    v = denoiser.derivative(x, sigma)
    # The paper's derivative of v: a finite difference over half a step along the path.
    slope = (denoiser.derivative(x + 0.5 * h * v, sigma + 0.5 * h) - v) / (0.5 * h)
    torch.testing.assert_close(Midpoint()(denoiser, x, sigma, sigma_next).x, x + h * v + 0.5 * h**2 * slope)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_beats_euler_at_equal_evaluations(space):
    mixture = Mixture(space)
    clean, denoiser, errors = mixture.sample(4), mixture.denoiser(), {}
    for name, steps in (("euler", 40), ("midpoint", 20)):
        record = invert(denoiser, clean, full_grid(space, steps), steps, name)
        assert record.meta["evaluations"] == 40
        errors[name] = relative_error(replay(record, denoiser), clean)
    assert errors["midpoint"] < errors["euler"] / 5
