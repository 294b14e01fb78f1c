"""Outside the mask the target is the source, bit for bit."""

from types import SimpleNamespace

import pytest
import torch

from retrace.attention import AttentionPlan, Layers
from retrace.attention.local_blend import LocalBlend, with_local_blend
from retrace.attention.token_map import token_map
from retrace.attention.word_list import parse_words
from retrace.attention.words import WordMaps
from retrace_tests.attention.prompts import sd15


def at(index, total=10):
    return SimpleNamespace(index=index, total=total)


def site(grid):
    return SimpleNamespace(grid=tuple(grid), latent=(1, 8, 12))


def run_of(**heats):
    """A run whose word maps hold these heats, one (items, frames, h, w) each."""
    maps = {}
    for name, heat in heats.items():
        maps[name] = WordMaps([(0,), (1,)])
        for item, one in enumerate(heat):
            maps[name].add(site(one.shape), None, item, torch.stack([one, torch.zeros_like(one)]))
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
    late = LocalBlend(mask=lambda size: mask.expand(size[0], 1, *size[-2:]), start=0.0)
    assert torch.equal(late.after(run_of(), at(0), both), found)
    inside = torch.zeros(8, 12, dtype=torch.bool)
    inside[2:5, 3:7] = True
    outside = ~inside
    outside[6, 6] = False
    assert torch.equal(found[..., inside], both["target"][..., inside])
    assert torch.equal(found[..., outside], both["source"][..., outside])
    torch.testing.assert_close(found[..., 6, 6], (both["source"] + both["target"])[..., 6, 6] / 2)
    # A target that has run away where it is not wanted does no harm.
    both["target"][..., outside] = torch.inf
    assert torch.equal(LocalBlend(mask=mask, start=0.0).after(run_of(), at(0), both)[..., inside], found[..., inside])
    assert torch.equal(LocalBlend(mask=mask, start=0.0).after(run_of(), at(0), both)[..., outside], found[..., outside])


def test_words_of_source_or_target_are_edited():
    both = states()
    run = run_of(source=heat(), target=heat(place=(3, 5)))
    found = LocalBlend(("source", "target")).after(run, at(5), both)
    changed = (found != both["source"]).any(1)
    # A cell of the map is two of the latent, and its neighbours count.
    assert bool(changed[:, 0:4, 2:8].all()) and bool(changed[:, 6:8, 10:12].all())
    assert not changed[:, :, 0].any() and not changed[:, 0, 11].any()
    single = LocalBlend(("source",)).weights(run.maps, both["source"].shape)
    assert single[:, :, 6:8, 10:12].max() == 0.0


def test_words_and_mask_meet():
    mask = torch.zeros(2, 1, 8, 12)
    mask[1, :, :, :5] = 1.0
    weights = LocalBlend(("source",), mask).weights(run_of(source=heat()).maps, states()["source"].shape)
    assert weights[0].max() == 0.0 and weights[1, 0, 3, 4] == 1.0 and weights[1, 0, :, 5:].max() == 0.0
    assert weights[1, 0, :, 0].max() == weights[1, 0, 7].max() == 0.0


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


def plan():
    text = token_map(sd15("a red cat"), sd15("a blue dog"))
    return AttentionPlan(text=text)


def test_words_are_looked_for_in_the_prompt_that_holds_them():
    made = with_local_blend(plan(), LocalBlend(threshold=0.4), parse_words("cat, dog, a"))
    source, target = made.probes
    assert (source.branch, source.tokens) == ("source", (1, 3)) and (target.branch, target.tokens) == ("target", (1, 3))
    (rule,) = made.latent_rules
    assert rule.probes == (source.name, target.name) and rule.threshold == 0.4
    again = with_local_blend(made, LocalBlend(), parse_words("red"), Layers.parse("0.5-1.0"))
    assert len({probe.name for probe in again.probes}) == 3 and again.latent_rules[1].probes == (again.probes[2].name,)
    assert made.start().maps.keys() == {source.name, target.name}


def test_a_mask_needs_no_words():
    mask = torch.ones(1, 1, 8, 12)
    made = with_local_blend(AttentionPlan(), LocalBlend(mask=mask))
    assert made.probes == () and made.latent_rules[0].mask is mask


def test_refusals():
    with pytest.raises(ValueError, match="must have words or a mask"):
        with_local_blend(plan(), LocalBlend())
    with pytest.raises(ValueError, match="word 'bird' must be in the prompt 'a blue dog'"):
        with_local_blend(plan(), LocalBlend(), parse_words("cat, bird"))
    with pytest.raises(ValueError, match="must come with a plan that knows its prompts"):
        with_local_blend(AttentionPlan(), LocalBlend(), parse_words("cat"))
    with pytest.raises(ValueError, match="must start before its end"):
        LocalBlend(("source",), start=0.5, end=0.5)
    with pytest.raises(ValueError, match="threshold must be at least 0 and below 1"):
        LocalBlend(("source",), threshold=1.5)
