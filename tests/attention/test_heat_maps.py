"""Masks from maps."""

import pytest
import torch

from retrace.attention.heat_maps import blur, grow, over_maximum, threshold


def disc(noise=0.0, size=21, radius=5.0):
    """A bright disc on a dim ground, and its mask."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = ((x - size // 2) ** 2 + (y - size // 2) ** 2 <= radius**2).float()[None, None]
    return 0.2 + 0.6 * mask + noise * torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)), mask


@pytest.mark.parametrize(("how", "value"), [("absolute", 0.5), ("mean", 1.5), ("otsu", 1.0), ("quantile", None)])
def test_each_threshold_finds_a_disc(how, value):
    maps, mask = disc(noise=0.1)
    # Just as many cells as the disc has are above its quantile.
    assert torch.equal(threshold(maps, how, 1.0 - (float(mask.sum()) + 0.5) / 441 if value is None else value), mask)


@pytest.mark.parametrize(("share", "scale"), [(0.05, 1.0), (0.5, 1e-4), (0.9, 1e4)])
def test_otsu_parts_two_groups_of_any_size_and_scale(share, scale):
    generator = torch.Generator().manual_seed(0)
    bright = torch.rand(1, 1, 40, 40, generator=generator) < share
    maps = scale * (torch.where(bright, 0.8, 0.2) + 0.1 * torch.rand(bright.shape, generator=generator))
    assert torch.equal(threshold(maps, "otsu", 1.0), bright.float())


def test_items_have_thresholds_of_their_own_and_frames_have_not():
    maps = torch.zeros(2, 2, 4, 4)
    maps[0, 0, 0, 0], maps[0, 1, 0, 0], maps[1, 0, 1, 1] = 100.0, 10.0, 0.5
    assert threshold(maps, "absolute", 0.3).nonzero().tolist() == [[0, 0, 0, 0], [1, 0, 1, 1]]
    maps[1] *= 1e-30
    assert over_maximum(maps).amax(dim=(1, 2, 3)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("how", ["absolute", "quantile", "mean", "otsu"])
def test_an_empty_map_is_an_empty_mask(how):
    empty = torch.zeros(2, 1, 5, 5)
    assert not threshold(empty, how, 0.5).any() and not over_maximum(empty).any()


def test_growing_and_shrinking():
    _, mask = disc(radius=3.0)
    dot, full = torch.zeros(1, 1, 7, 9), torch.ones(1, 1, 5, 5)
    dot[0, 0, 3, 4] = 1.0
    assert grow(dot, 2).sum() == 25 and grow(dot, 0) is dot and grow(dot, 20).sum() == 63
    assert bool((grow(mask, 1) >= mask).all()) and bool((grow(mask, -1) <= mask).all())
    assert torch.equal(grow(grow(dot, 2), -2), dot) and torch.equal(grow(full, -2), full)


def test_blurring_keeps_the_mean_inside_and_the_range():
    dot, full = torch.zeros(2, 3, 31, 33), torch.ones(1, 1, 3, 3)
    dot[0, 1, 15, 16] = 1.0
    soft = blur(dot, 1.5)
    torch.testing.assert_close(soft[0, 1].sum(), torch.tensor(1.0))
    assert not soft[1].any() and not soft[0, 0].any() and torch.equal(blur(dot, 0.0), dot)
    torch.testing.assert_close(soft[0, 1, 15, 19] / soft.max(), torch.exp(torch.tensor(-0.5 * (3 / 1.5) ** 2)))
    torch.testing.assert_close(blur(full, 2.0), full)


@pytest.mark.parametrize(
    ("how", "value", "said"),
    [
        ("median", 0.5, "threshold must be one of"),
        ("absolute", 1.0, "at least 0 and below 1 for absolute"),
        ("quantile", -0.1, "at least 0 and below 1 for quantile"),
        ("mean", 0.0, "above 0 for mean"),
        ("otsu", float("nan"), "above 0 for otsu"),
    ],
)
def test_refusals(how, value, said):
    with pytest.raises(ValueError, match=said):
        threshold(torch.ones(1, 1, 2, 2), how, value)
