"""Outside the mask the target is the source, bit for bit."""

from types import SimpleNamespace

import pytest
import torch

from retrace.attention.local_blend import LocalBlend
from retrace.attention.words import WordMaps


def at(index, total=10):
    return SimpleNamespace(index=index, total=total)


def run_of(**heats):
    """A run whose word maps hold these heats, one (items, frames, h, w) each."""
    maps = {}
    for name, heat in heats.items():
        maps[name] = WordMaps([(0,), (1,)])
        for item, one in enumerate(heat):
            maps[name].add(None, None, item, torch.stack([one, torch.zeros_like(one)]))
    return SimpleNamespace(maps=maps)


def states(shape=(2, 4, 8, 12), seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Values that a sum would round: 1e8 swallows small differences.
    return {
        name: torch.randn(shape, generator=generator) * 10.0**power for name, power in (("source", 4), ("target", 0))
    }


def heat(shape=(2, 1, 4, 6), place=(1, 2)):
    maps = torch.full(shape, 0.01)
    maps[..., place[0], place[1]] = 0.5
    return maps


@pytest.mark.parametrize("shape", [(2, 4, 8, 12), (2, 4, 3, 8, 12)])
def test_mask_alone(shape):
    both = states(shape)
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., 2:5, 3:7] = 1.0
    mask[..., 6, 6] = 0.5
    found = LocalBlend(mask=mask, start=0.0).after(run_of(), at(0), both)
    inside = torch.zeros(8, 12, dtype=torch.bool)
    inside[2:5, 3:7] = True
    outside = ~inside
    outside[6, 6] = False
    assert torch.equal(found[..., inside], both["target"][..., inside])
    assert torch.equal(found[..., outside], both["source"][..., outside])
    torch.testing.assert_close(found[..., 6, 6], (both["source"] + both["target"])[..., 6, 6] / 2)


def test_words_of_source_or_target_are_edited():
    both = states()
    run = run_of(source=heat(), target=heat(place=(3, 5)))
    found = LocalBlend(("source", "target")).after(run, at(5), both)
    changed = (found != both["source"]).any(1)
    # A cell of the map is two of the latent, and its neighbours count.
    assert bool(changed[:, 2:4, 4:6].all()) and bool(changed[:, 6:8, 10:12].all())
    assert not changed[:, :, 0].any() and not changed[:, 0, 11].any()
    single = LocalBlend(("source",)).weights(run.maps, both["source"].shape)
    assert single[:, :, 6:8, 10:12].max() == 0.0


def test_words_and_mask_meet():
    mask = torch.zeros(2, 1, 8, 12)
    mask[1, :, :, :5] = 1.0
    weights = LocalBlend(("source",), mask).weights(run_of(source=heat()).maps, states()["source"].shape)
    assert weights[0].max() == 0.0 and weights[1, 0, 3, 4] == 1.0 and weights[1, 0, :, 5:].max() == 0.0


def test_growing_and_blurring_the_words():
    run = run_of(source=heat())
    shape = states()["source"].shape
    plain = LocalBlend(("source",)).weights(run.maps, shape)
    wide = LocalBlend(("source",), grow=2).weights(run.maps, shape)
    soft = LocalBlend(("source",), blur=1.0).weights(run.maps, shape)
    assert wide.sum() > plain.sum() and bool((wide >= plain).all())
    assert bool(((soft > 0.0) & (soft < 1.0)).any())


def test_only_inside_its_window():
    both = states()
    run = run_of(source=heat())
    blend = LocalBlend(("source",), start=0.2, end=0.9)
    acted = [not torch.equal(blend.after(run, at(i), both), both["target"]) for i in range(10)]
    assert acted == [False] * 2 + [True] * 7 + [False]
    # However few the steps, the last one is blended.
    assert LocalBlend(("source",), start=0.99).is_open(at(0, 1))


def test_an_empty_map_keeps_the_source_and_says_so(caplog):
    both = states()
    run = run_of(source=torch.zeros(2, 1, 4, 6))
    blend = LocalBlend(("source",))
    assert torch.equal(blend.after(run, at(5), both), both["source"]) and not caplog.records
    blend.after(run, at(9), both)
    assert "mask is empty" in caplog.text


def test_refusals():
    with pytest.raises(ValueError, match="must have words or a mask"):
        LocalBlend()
    with pytest.raises(ValueError, match="must start before its end"):
        LocalBlend(("source",), start=0.5, end=0.5)
    with pytest.raises(ValueError, match="threshold must be at least 0 and below 1"):
        LocalBlend(("source",), threshold=1.5)
