"""O-BELM: the paper's form, its local order, and a new pair for a new prompt."""

import pytest
import torch

from retrace.core.steps import Midpoint
from retrace.inversion import get_method, invert, relative_error, replay, two_step, walk
from retrace_tests.inversion.problems import Mixture, full_grid


def test_is_the_papers_form():
    generator = torch.Generator().manual_seed(0)
    above, x, d = (torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    high, here, low = 3.0, 2.2, 1.7
    rho = (here - low) / (high - here)
    paper = rho**2 * above + (1 - rho**2) * x - (here - low) * (1 + rho) * d
    for space in ("ve", "flow"):
        ratio = get_method("belm").ratio(high, here, low, space)
        torch.testing.assert_close(two_step(above, x, d, high, here, low, ratio), paper, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_a_new_pair_calms_an_edit(space):
    mixture = Mixture(space)
    clean, grid = mixture.sample(8), full_grid(space, 50)
    source, target = mixture.denoiser(), mixture.denoiser("target", 3.0)
    errors = {}
    for reseed in (True, False):
        record = invert(source, clean, grid, 40, get_method("belm", {"reseed": reseed}))
        # What the edit should be: a fine walk of the target from the same state.
        finer = [grid[0]]
        for low, high in zip(grid[:40], grid[1:41]):
            finer += [low + (high - low) * part / 8 for part in range(1, 9)]
        truth = walk(target, record.x, finer[::-1], Midpoint())
        called = target.evaluations
        errors[reseed] = relative_error(replay(record, source, target), truth)
        assert target.evaluations - called == (40 if reseed else 39)
    assert errors[True] < 0.5 * errors[False], errors


def test_a_reconstruction_keeps_its_pair():
    mixture = Mixture("ve")
    clean, denoiser = mixture.sample(2), mixture.denoiser()
    record = invert(denoiser, clean, full_grid("ve", 20), 20, "belm")
    once = replay(record, denoiser)
    # A sampler of the host knows one denoiser only and hands it over as both.
    assert torch.equal(once, replay(record, denoiser, denoiser)) and relative_error(once, clean) <= 1e-12
    assert not torch.equal(once, replay(record, denoiser, mixture.denoiser("target")))
