"""The one loop."""

import pytest
import torch

from retrace.inversion import Euler, Step, walk
from retrace_tests.inversion.problems import Mixture


@pytest.mark.parametrize(("sigmas", "levels"), [((0.0, 0.5, 2.0), [1, 2]), ((2.0, 0.5, 0.25, 0.0), [2, 1, 0])])
@pytest.mark.parametrize("kind", [tuple, torch.tensor])
def test_visits_every_level_once(sigmas, levels, kind):
    visited, seen = [], []

    def stepper(denoiser, x, sigma, sigma_next):
        seen.append((sigma, sigma_next))
        return Step(x + (sigma_next - sigma), x)

    def after_step(x, level):
        visited.append(level)
        return x + 100.0

    end = walk(Mixture("ve").denoiser(), torch.zeros(1, 1, 1, 1), kind(sigmas), stepper, after_step=after_step)
    assert seen == list(zip(sigmas[:-1], sigmas[1:], strict=True)) and visited == levels
    # What after_step returns is what the next step starts from.
    assert float(end) == sigmas[-1] - sigmas[0] + 100.0 * len(levels)


@pytest.mark.parametrize("sigmas", [(), (1.0,), (0.0, 1.0, 1.0), (0.0, 1.0, 0.5), (1.0, 0.5, 0.7), (0.0, float("nan"))])
def test_refuses_what_does_not_rise_or_fall(sigmas):
    denoiser = Mixture("ve").denoiser()
    with pytest.raises(ValueError, match="must be at least two finite numbers that strictly rise or strictly fall"):
        walk(denoiser, torch.zeros(1, 1, 1, 1), sigmas, Euler())
    assert denoiser.evaluations == 0
