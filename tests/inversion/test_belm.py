"""O-BELM: the paper's form, its local order, and a new pair for a new prompt."""

from dataclasses import replace

import pytest
import torch

from retrace.inversion import get_method, invert, relative_error, replay, two_step
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
def test_an_edit_gets_a_new_pair_and_a_reconstruction_keeps_its_own(space):
    mixture, grid = Mixture(space), full_grid(space, 50)
    source, target = mixture.denoiser(), mixture.denoiser("target", 3.0)
    kinds = (get_method("belm", {"reseed": each}) for each in (True, False))
    new, kept = (invert(source, mixture.sample(8), grid, 40, kind) for kind in kinds)
    edited, called = replay(new, source, target), target.evaluations
    assert called == 40 and torch.equal(new.mate, kept.mate)
    assert relative_error(edited, replay(kept, source, target)) > 0.1 and target.evaluations - called == 39
    pair = replace(kept, mate=get_method("belm").mate(target, kept.x, grid, 40))
    assert torch.equal(edited, replay(pair, source, target))
    # A sampler of the host knows one denoiser only and hands it over as both.
    assert torch.equal(replay(new, source), replay(new, source, source))
