"""Outside a mask nothing changes. Every method, with and without a path: test_contract.py."""

import pytest
import torch

from retrace.inversion import blend, invert, replay
from retrace_tests.inversion.problems import CLIP_SHAPE, SHAPE, Mixture, full_grid


def made(space="flow", shape=SHAPE, index=7, dtype=None):
    mixture = Mixture(space, shape)
    return mixture, invert(mixture.denoiser(), mixture.sample(2), full_grid(space, 10), index, "midpoint", dtype=dtype)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_black_is_the_source_and_white_is_no_mask(space):
    mixture, inversion = made(space, index=10)
    source, target = mixture.denoiser(), mixture.denoiser("target")

    def masked(value):
        return replay(inversion, source, target, blend(inversion, torch.full((1, 1, 3, 5), value)))

    assert torch.equal(masked(0.0), inversion.x0) and torch.equal(masked(1.0), replay(inversion, source, target))


def test_the_hook_mixes_leaks_nothing_and_leaves_its_arguments():
    mixture, inversion = made()
    x, mask = mixture.noise(2), torch.full((1, 1, 3, 5), 0.25)
    before = x.clone(), mask.clone()
    hook = blend(inversion, mask)
    for index in (0, 3, 6):
        wanted = 0.25 * x + 0.75 * inversion.state_at(inversion.sigmas[index])
        torch.testing.assert_close(hook(x, index), wanted, rtol=1e-14, atol=1e-14)
    assert torch.equal(x, before[0]) and torch.equal(mask, before[1])
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., 2] = 1.0
    out = blend(inversion, mask)(torch.full((2, *SHAPE), float("inf"), dtype=torch.float64), 0)
    assert torch.equal(out[..., :2], inversion.x0[..., :2]) and torch.isinf(out[..., 2]).all()


@pytest.mark.parametrize(
    ("shape", "mask_shape"), [(SHAPE, (2, 4, 3, 5)), (CLIP_SHAPE, (1, 1, 1, 3, 4)), (CLIP_SHAPE, (2, 1, 2, 3, 4))]
)
def test_masks_that_fit(shape, mask_shape):
    mixture, inversion = made(shape=shape, dtype=torch.float32)
    mask = torch.rand(mask_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    out = replay(inversion, mixture.denoiser(), mixture.denoiser("target", 3.0), blend(inversion, mask))
    outside = (mask == 0).expand_as(out)
    assert torch.equal(out[outside], inversion.x0[outside]) and out.dtype == inversion.dtype
    assert not torch.equal(out[~outside], inversion.x0[~outside])


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        *(
            (torch.zeros(shape), "mask must fit the latent .* resize it to the latent grid")
            for shape in ((3, 5), (1, 1, 5, 3), (1, 1, 1, 1), (3, 1, 3, 5), (1, 2, 3, 5), (1, 1, 1, 3, 5))
        ),
        *(
            (torch.full((1, 1, 3, 5), value), "mask must lie between 0 and 1, got values outside; clamp it")
            for value in (-0.1, 1.1, float("nan"))
        ),
    ],
)
def test_masks_that_do_not(mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        blend(made("ve")[1], mask)
