"""Outside a mask nothing changes."""

import pytest
import torch

from retrace.inversion import Inversion, blend, implied_noise, invert, mix, relative_error, replay
from retrace_tests.inversion.problems import CLIP_SHAPE, SHAPE, Mixture, full_grid


def record_of(space, keep_path=False, shape=SHAPE, batch=2, level=7, dtype=None):
    mixture = Mixture(space, shape)
    clean = mixture.sample(batch)
    return mixture, invert(
        mixture.denoiser(), clean, full_grid(space, 10), level, "midpoint", keep_path=keep_path, dtype=dtype
    )


@pytest.mark.parametrize("keep_path", [False, True])
@pytest.mark.parametrize("space", ["ve", "flow"])
def test_source_states_join_both_ends_of_the_record(space, keep_path):
    _, record = record_of(space, keep_path)
    assert torch.equal(record.state_at(record.sigmas[0]), record.x0) and torch.equal(
        record.state_at(record.sigmas[7]), record.x
    )
    if keep_path:
        assert all(torch.equal(record.state_at(record.sigmas[level]), record.path[level]) for level in range(8))
        return
    # One and the same noise at every level: the one that x_k implies.
    noise = implied_noise(record.x, record.x0, record.sigma, space)
    torch.testing.assert_close(mix(record.x0, noise, record.sigma, space), record.x)
    for level in range(1, 7):
        torch.testing.assert_close(
            record.state_at(record.sigmas[level]), mix(record.x0, noise, record.sigmas[level], space)
        )


def test_re_noised_states_are_near_the_path():
    # Why the record's own noise is used: fresh noise would miss the path by the noise level itself.
    _, record = record_of("flow", keep_path=True)
    bare = Inversion(**{**vars(record), "path": None})
    for level in range(1, 7):
        assert relative_error(bare.state_at(bare.sigmas[level]), record.path[level]) < 0.3


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_source_states_of_a_grid_that_starts_above_zero(space):
    mixture = Mixture(space)
    grid = [0.05, *full_grid(space, 10)[1:]]
    record = invert(mixture.denoiser(), mixture.sample(1), grid, 6, "euler")
    assert torch.equal(record.state_at(record.sigmas[0]), record.x0)
    just_above = Inversion(**{**vars(record), "sigmas": (0.05, 0.05 + 1e-9, *grid[2:])})
    torch.testing.assert_close(just_above.state_at(just_above.sigmas[1]), record.x0, rtol=0, atol=1e-6)


def test_full_level_of_a_flow_model():
    mixture, record = record_of("flow", level=10)
    assert record.sigma == 1.0
    out = replay(
        record, mixture.denoiser(), mixture.denoiser("target"), after_step=blend(record, torch.zeros(1, 1, 3, 5))
    )
    assert torch.equal(out, record.x0)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_white_everywhere_is_no_mask(space):
    mixture, record = record_of(space)
    target = mixture.denoiser("target")
    masked = replay(record, mixture.denoiser(), target, after_step=blend(record, torch.ones(1, 1, 3, 5)))
    assert torch.equal(masked, replay(record, mixture.denoiser(), target))


def test_soft_edges_are_between():
    mixture, record = record_of("flow")
    hook = blend(record, torch.full((1, 1, 3, 5), 0.25))
    x = mixture.noise(2)
    for level in (0, 3, 6):
        expected = 0.25 * x + 0.75 * record.state_at(record.sigmas[level])
        torch.testing.assert_close(hook(x, level), expected, rtol=1e-14, atol=1e-14)


def test_nothing_leaks_from_inside():
    _, record = record_of("ve")
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., 2] = 1.0
    out = blend(record, mask)(torch.full((2, *SHAPE), float("inf"), dtype=torch.float64), 0)
    assert torch.equal(out[..., :2], record.x0[..., :2]) and torch.isinf(out[..., 2]).all()


def test_hook_leaves_its_arguments():
    mixture, record = record_of("ve")
    x, mask = mixture.noise(2), torch.full((1, 1, 3, 5), 0.5)
    x_before, mask_before = x.clone(), mask.clone()
    hook = blend(record, mask)
    hook(x, 3)
    assert torch.equal(x, x_before) and torch.equal(mask, mask_before)


@pytest.mark.parametrize(
    ("shape", "mask_shape"),
    [
        (SHAPE, (1, 1, 3, 5)),
        (SHAPE, (2, 1, 3, 5)),
        (SHAPE, (2, 4, 3, 5)),
        (CLIP_SHAPE, (1, 1, 1, 3, 4)),
        (CLIP_SHAPE, (2, 1, 2, 3, 4)),
    ],
)
def test_masks_that_fit(shape, mask_shape):
    mixture, record = record_of("flow", shape=shape)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(mask_shape, generator=generator).round()
    assert 0 < mask.mean() < 1
    out = replay(record, mixture.denoiser(), mixture.denoiser("target", 3.0), after_step=blend(record, mask))
    outside = (mask == 0).expand_as(out)
    assert torch.equal(out[outside], record.x0[outside]) and not torch.equal(out[~outside], record.x0[~outside])


@pytest.mark.parametrize(
    "mask_shape", [(3, 5), (1, 1, 5, 3), (1, 1, 1, 1), (3, 1, 3, 5), (1, 2, 3, 5), (1, 1, 1, 3, 5)]
)
def test_masks_that_do_not_fit(mask_shape):
    _, record = record_of("ve")
    with pytest.raises(ValueError, match="mask must fit the latent .* resize it to the latent grid"):
        blend(record, torch.zeros(mask_shape))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_masks_out_of_range(value):
    _, record = record_of("ve")
    with pytest.raises(ValueError, match="mask must lie between 0 and 1, got values outside; clamp it"):
        blend(record, torch.full((1, 1, 3, 5), value))


def test_float32_records_keep_float32():
    mixture, record = record_of("flow", dtype=torch.float32)
    mask = torch.zeros(1, 1, 3, 5, dtype=torch.float64)
    mask[..., 0] = 1.0
    out = replay(record, mixture.denoiser(), mixture.denoiser("target"), after_step=blend(record, mask))
    assert out.dtype == torch.float32 and torch.equal(out[..., 1:], record.x0[..., 1:])
