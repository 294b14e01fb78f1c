"""Direct inversion: the source is exact at any guidance, and an edit gets as much of its correction as it is given."""

from dataclasses import replace

import pytest
import torch

from retrace.inversion import Denoiser, Euler, get_method, invert, relative_error, replay, walk
from retrace_tests.inversion.problems import Mixture, full_grid


def guided(mixture, cfg, prompt="source"):
    """A guided denoiser that knows its unguided side, as the backends make it."""
    plain = mixture.denoiser(prompt)
    return Denoiser(mixture.denoiser(prompt, cfg)._denoise, mixture.space, plain=plain._denoise)


def made(space, cfg, carry=1.0, steps=20, index=20, batch=3, dtype=torch.float64):
    """(mixture, guided source denoiser, clean latent, record)."""
    mixture = Mixture(space)
    clean, denoiser = mixture.sample(batch).to(dtype), guided(mixture, cfg)
    method = get_method("direct", {"carry": carry})
    return mixture, denoiser, clean, invert(denoiser, clean, full_grid(space, steps), index, method, dtype=dtype)


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize("carry", [0.0, 1.0])
def test_the_source_is_exact_at_any_guidance(space, carry):
    f64, f32 = torch.float64, torch.float32
    for cfg, index, dtype in ((1.0, 20, f64), (7.5, 20, f64), (7.5, 12, f32), (7.5, 1, f64)):
        mixture, denoiser, clean, record = made(space, cfg, carry, index=index, dtype=dtype)
        seen = []
        assert torch.equal(replay(record, denoiser, on_step=lambda report, seen=seen: seen.append(report.x)), clean)
        # The whole way, and whatever the guidance is that the source is asked under.
        assert all(torch.equal(a, b) for a, b in zip(seen, record.path[-2::-1], strict=True))
        assert torch.equal(replay(record, mixture.denoiser("target", 3.0)), clean)


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 5e-6)])
def test_with_all_of_the_correction_the_source_prompt_is_a_target_that_comes_back(space, dtype, bound):
    _, denoiser, clean, record = made(space, 7.5, steps=50, index=50, dtype=dtype)
    silent = Denoiser(denoiser, space)
    assert relative_error(replay(record, silent, denoiser), clean) <= bound and silent.evaluations == 0
    # Without it, guidance drives the same walk away.
    *_, bare = made(space, 7.5, carry=0.0, steps=50, index=50, dtype=dtype)
    assert relative_error(replay(bare, silent, denoiser), clean) > 0.1


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_without_it_an_edit_is_plain_ddim(space):
    mixture, _, clean, record = made(space, 7.5, carry=0.0)
    ddim = invert(mixture.denoiser(), clean, record.sigmas, 20, "ddim", keep_path=True)
    assert all(torch.equal(a, b) for a, b in zip(record.path, ddim.path, strict=True))
    target = mixture.denoiser("target", 7.5)
    assert record.residuals is None
    plain = walk(target, record.x, record.falling, Euler())
    assert torch.equal(replay(record, mixture.denoiser(), target), plain)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_residuals_are_what_the_guided_step_misses(space):
    _, denoiser, _, record = made(space, 4.0, index=9)
    for i in range(1, 10):
        step = walk(denoiser, record.path[i], record.sigmas[i - 1 : i + 1][::-1], Euler())
        assert torch.equal(record.residuals[i - 1], record.path[i - 1] - step)


def test_carry_is_a_dial():
    found = []
    for carry in (0.0, 0.25, 0.5, 1.0):
        _, denoiser, clean, record = made("ve", 7.5, carry)
        assert denoiser.evaluations == (40 if carry else 20) == record.meta["evaluations"]
        found.append(relative_error(replay(record, denoiser, denoiser), clean))
    assert all(a > b for a, b in zip(found, found[1:], strict=False)), found


def test_the_climb_is_unguided():
    """A denoiser without an unguided side climbs as it is."""
    mixture, _, clean, record = made("ve", 7.5)
    bare = invert(mixture.denoiser("source", 7.5), clean, record.sigmas, 20, "direct")
    assert relative_error(bare.x, record.x) > 0.1
    assert torch.equal(replay(bare, mixture.denoiser("source", 7.5)), clean)


def test_without_its_parts_it_is_refused():
    mixture, denoiser, clean, record = made("flow", 3.0, index=6, steps=8)
    with pytest.raises(ValueError, match="must hold its path, got none"):
        replay(replace(record, path=None), denoiser)
    bare = replace(record, residuals=None)
    assert torch.equal(replay(bare, denoiser), clean)
    with pytest.raises(ValueError, match="must hold its residuals, got none"):
        replay(bare, denoiser, mixture.denoiser("target"))
