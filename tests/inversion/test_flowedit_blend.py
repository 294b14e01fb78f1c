"""FlowEdit with a blend: the blend has the last word at every level, at the clean end and at the last ones."""

import pytest
import torch

from retrace.core.noise import Noises
from retrace.inversion import BlendedFlowEdit, FlowEdit, mix, relative_error
from retrace_tests.inversion.problems import Mixture, full_grid

SPACES = ["ve", "flow"]
STEPS, LEVEL = 8, 6


def edited(space, edit, **changes):
    mixture = Mixture(space)
    clean = mixture.sample(2)
    grid = full_grid(space, STEPS)
    source, target = mixture.denoiser("source"), mixture.denoiser("target")
    return clean, edit.edit(source, target, clean, grid, LEVEL, 4, **changes), grid


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("settings", [{}, {"n_avg": 2}, {"n_min": 3}, {"pull": 0.05}], ids=str)
def test_it_blends_after_every_level(space, settings):
    """Told of each level once, with the source's state beside its own; handing its own back changes nothing."""
    seen = []

    def watch(index, total, sigma, states):
        seen.append((index, total, sigma, *states))
        return states[1]

    clean, found, grid = edited(space, BlendedFlowEdit(**settings, blend=watch))
    assert torch.equal(found, edited(space, FlowEdit(**settings))[1])
    assert [entry[:3] for entry in seen] == [(i, LEVEL, grid[LEVEL - i]) for i in range(LEVEL)]
    last = settings.get("n_min", 0)
    noises = Noises(4, clean)
    for _ in range((LEVEL - last) * settings.get("n_avg", 1)):
        noises.draw()
    noise = noises.draw()
    for index, _, _, source, _ in seen:
        level = LEVEL - 1 - index
        state = clean if index < LEVEL - last else mix(clean, noise, grid[level], space)
        assert relative_error(source, state) < 1e-12, index
    assert torch.equal(seen[-1][4], found)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("n_min", [0, 3])
def test_the_blend_is_carried_on(space, n_min):
    """Keeping the source to the end gives it back; keeping it for a while gives another edit."""
    kept = BlendedFlowEdit(n_min=n_min, blend=lambda index, total, sigma, states: states[0])
    clean, found, _ = edited(space, kept)
    assert torch.equal(found, clean)
    early = BlendedFlowEdit(n_min=n_min, blend=lambda index, total, sigma, states: states[index >= 2])
    plain = edited(space, FlowEdit(n_min=n_min))[1]
    late = edited(space, early)[1]
    assert relative_error(late, plain) > 1e-6 and relative_error(late, clean) > 1e-6


@pytest.mark.parametrize("n_min", [0, 3])
def test_a_mask_comes_after_the_blend(n_min):
    """Outside the mask the source stays bit for bit, whatever the blend does."""
    wild = BlendedFlowEdit(n_min=n_min, blend=lambda index, total, sigma, states: states[1] + 1.0)
    mask = torch.zeros(1, 1, *Mixture("flow").shape[1:])
    mask[..., 0] = 1.0
    clean, found, _ = edited("flow", wild, mask=mask)
    assert torch.equal(found[..., 1:], clean[..., 1:]) and not torch.equal(found[..., 0], clean[..., 0])
