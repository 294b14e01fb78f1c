"""Where the source of a record stands between its levels, and two walks side by side."""

from dataclasses import replace

import pytest
import torch

from retrace.inversion import Denoiser, invert, load, mix, replay, save, with_noise

SIGMAS = {"ve": (0.0, 0.5, 1.5, 4.0, 9.0), "flow": (0.0, 0.2, 0.5, 0.8, 1.0)}


def _denoiser(space, seed=0):
    """A model that pulls every state to a picture of its own."""
    picture = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Denoiser(lambda x, sigma: picture.expand_as(x) + 0.1 * x / (1.0 + sigma), space)


def _record(space, method="euler", level=4, keep_path=True, batch=2):
    x0 = torch.randn(batch, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return invert(_denoiser(space), x0, SIGMAS[space], level, method, keep_path)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_levels_of_a_path_are_the_path(space):
    record = _record(space)
    for level, sigma in enumerate(record.climb):
        assert torch.equal(record.state_at(sigma), record.path[level])
    assert torch.equal(record.state_at(0.0), record.x0) and torch.equal(record.state_at(99.0), record.x)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_between_levels_it_is_the_euler_step_itself(space):
    record = _record(space)
    denoiser = _denoiser(space)
    for low, high in zip(record.climb, record.climb[1:], strict=False):
        below = record.state_at(low)
        for share in (0.1, 0.5, 0.9):
            sigma = low + share * (high - low)
            wanted = below + (sigma - low) * denoiser.derivative(below, low)
            assert torch.allclose(record.state_at(sigma), wanted, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_without_a_path_it_is_the_straight_mixture(space):
    noise = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kept = _record(space, level=3, keep_path=False)
    record = replace(kept, x=mix(kept.x0, noise, kept.sigma, space))
    for sigma in (0.1, 0.4, kept.sigma):
        wanted = mix(record.x0, noise, sigma, space)
        assert torch.allclose(record.state_at(sigma), wanted, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("method", ["euler", "midpoint", "edict", "bdia", "noise_map"])
def test_two_walks_beside_each_other_are_two_walks(method):
    record = _record("ve", method)
    source, target = _denoiser("ve"), _denoiser("ve", seed=5)

    def both(x, sigma):
        first, second = x.chunk(2)
        return torch.cat([source(first, sigma), target(second, sigma)])

    walked = replay(record.doubled(), Denoiser(both, "ve"), Denoiser(both, "ve"))
    back, edit = walked.chunk(2)
    assert torch.equal(back, replay(record, source)) and torch.equal(edit, replay(record, source, target))
    assert not torch.equal(back, edit)


def test_a_moved_noise_is_no_state_of_the_source(tmp_path):
    """The path tells where the source was; without one nothing does. A file remembers that it was moved."""
    record = _record("ve")
    moved = with_noise(record, record.x + 1.0)
    save(moved, tmp_path / "moved.safetensors")
    for each in (moved, load(tmp_path / "moved.safetensors")):
        assert torch.equal(each.x, record.x + 1.0)
        for sigma in (0.0, 0.2, 0.5, 3.0, 8.9, record.sigma, 99.0):
            assert torch.equal(each.state_at(sigma), record.state_at(sigma)), sigma
    bare = with_noise(_record("ve", keep_path=False), record.x + 1.0)
    assert torch.equal(bare.state_at(0.0), bare.x0)
    for call in (lambda: bare.state_at(0.2), lambda: bare.state_at(9.0), lambda: bare.doubled()):
        with pytest.raises(ValueError, match="inversion must hold its path to tell where its source was before its"):
            call()


def test_beside_a_moved_noise_the_source_is_still_itself():
    record = _record("ve")
    moved, source, target = with_noise(record, record.x + 1.0), _denoiser("ve"), _denoiser("ve", seed=5)

    def both(x, sigma):
        first, second = x.chunk(2)
        return torch.cat([source(first, sigma), target(second, sigma)])

    back, edit = replay(moved.doubled(), Denoiser(both, "ve"), Denoiser(both, "ve")).chunk(2)
    assert torch.equal(back, replay(record, source)) and torch.equal(edit, replay(moved, source, target))
    assert not torch.equal(edit, replay(record, source, target))
