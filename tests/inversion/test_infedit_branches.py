"""InfEdit of several branches: each branch is an InfEdit of its own, and the blend has the last word."""

import pytest
import torch

from retrace.inversion import BranchedInfEdit, Denoiser, InfEdit, relative_error
from retrace_tests.inversion.problems import Mixture, full_grid

SPACES = ["ve", "flow"]


def together(*denoisers):
    """One denoiser for states stacked along the batch."""

    def denoise(x, sigma):
        return torch.cat([each(part, sigma) for each, part in zip(denoisers, x.chunk(len(denoisers)), strict=True)])

    return Denoiser(denoise, denoisers[0].space, denoisers[0].sigma_floor)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_target_does_not_feel_the_other_branch(space, eta):
    """Another branch changes nothing by itself; what it ends at is the edit towards its own prompt at eta 1."""
    mixture = Mixture(space)
    source, target, other = mixture.denoiser("source"), mixture.denoiser("target"), mixture.denoiser("target", 3.0)
    ends = []

    def watch(index, total, sigma, states):
        assert len(states) == 3 and total == 5 and torch.equal(states[0], clean_of(space))
        ends.append((index, sigma, states))
        return states[1]

    clean = clean_of(space)
    both = together(source, target, other)
    edit = BranchedInfEdit(eta=eta, others=1, blend=watch)
    grid = full_grid(space, 6)
    found = edit.edit(both, both, clean, grid, 5, 4, both=both)
    alone = InfEdit(eta=eta).edit(source, target, clean, grid, 5, 4)
    assert relative_error(found, alone) < 1e-12
    assert [entry[:2] for entry in ends] == [(i, grid[5 - i]) for i in range(5)]
    if eta == 1.0:
        wanted = InfEdit(eta=eta).edit(source, other, clean, grid, 5, 4)
        assert relative_error(ends[-1][2][2], wanted) < 1e-12
    assert relative_error(found, clean) > 1e-6


def clean_of(space):
    """A clean latent that is the same in every call."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, *Mixture(space).shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("space", SPACES)
def test_the_blend_is_carried_on(space):
    """What the blend returns is the next level's latent: keeping the source keeps it to the end."""
    mixture = Mixture(space)
    both = together(mixture.denoiser("source"), mixture.denoiser("target"))
    clean, grid = clean_of(space), full_grid(space, 6)
    kept = BranchedInfEdit(blend=lambda index, total, sigma, states: states[0])
    assert torch.equal(kept.edit(both, both, clean, grid, 5, 4, both=both), clean)
    early = BranchedInfEdit(blend=lambda index, total, sigma, states: states[0] if index < 4 else states[1])
    late = early.edit(both, both, clean, grid, 5, 4, both=both)
    plain = BranchedInfEdit().edit(both, both, clean, grid, 5, 4, both=both)
    assert relative_error(late, plain) > 1e-6 and relative_error(late, clean) > 1e-6


def test_refusals():
    with pytest.raises(ValueError, match="others must be at least 0, got -1"):
        BranchedInfEdit(others=-1)
    with pytest.raises(ValueError, match="eta must lie between 0 and 1"):
        BranchedInfEdit(eta=2.0)
    mixture = Mixture("ve")
    source, target = mixture.denoiser("source"), mixture.denoiser("target")
    with pytest.raises(ValueError, match="both must be given"):
        BranchedInfEdit().edit(source, target, clean_of("ve"), full_grid("ve", 4), 3)
