"""Outside the mask the target is the source, bit for bit."""

import pytest
import torch

from retrace.attention import AttentionPlan, Layers, Step
from retrace.attention.local_blend import LocalBlend, with_local_blend
from retrace.attention.token_map import token_map
from retrace.attention.word_list import parse_words
from retrace_tests.attention.blends import SHAPES, heat, run_of, states
from retrace_tests.attention.prompts import sd15


def at(index, total=10):
    return Step(index, total, 0.5)


def weights(blend, **heats):
    return blend.weights(run_of(**heats).maps, torch.Size(SHAPES[0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_alone(shape):
    both, mask = states(shape), torch.zeros(1, 1, 8, 12)
    mask[..., 2:5, 3:7], mask[..., 6, 6] = 1.0, 0.5
    # A target that has run away where it is not wanted does no harm.
    both["target"][..., mask[0, 0] == 0.0] = torch.inf
    for given in (mask, lambda size: mask.expand(size[0], 1, *size[-2:])):
        out = LocalBlend(mask=given, start=0.0).after(run_of(), at(0), both)
        for name, value in (("target", 1.0), ("source", 0.0)):
            assert torch.equal(out[..., mask[0, 0] == value], both[name][..., mask[0, 0] == value])
        torch.testing.assert_close(out[..., 6, 6], (both["source"] + both["target"])[..., 6, 6] / 2)


def test_words_of_source_or_target_are_edited_where_the_mask_is():
    # A cell of the map is two of the latent, and its neighbours count.
    maps = {"source": heat(1, 2), "target": heat(3, 5)}
    one, either = (weights(LocalBlend(names), **maps) for names in (("source",), ("source", "target")))
    assert bool(one[:, :, 0:4, 2:8].all()) and one[:, :, 6:8, 10:12].max() == one[..., 0].max() == 0.0
    assert bool(either[:, :, 6:8, 10:12].all()) and torch.equal(torch.maximum(one, either), either)
    mask = torch.zeros(2, 1, 8, 12)
    mask[1, :, :, :5] = 1.0
    assert torch.equal(weights(LocalBlend(("source",), mask), source=heat(1, 2)), torch.minimum(one, mask))
    wide, soft = (weights(LocalBlend(("source",), **about), **maps) for about in ({"grow": 2}, {"blur": 1.0}))
    assert wide.sum() > one.sum() and bool((wide >= one).all()) and bool(((soft > 0.0) & (soft < 1.0)).any())


def test_only_inside_its_window():
    both, run = states(), run_of(source=heat(1, 2))
    blend = LocalBlend(("source",), start=0.2, end=0.9)
    acted = [not torch.equal(blend.after(run, at(i), both), both["target"]) for i in range(10)]
    assert acted == [False] * 2 + [True] * 7 + [False]
    # However few the steps, the last one is blended.
    assert LocalBlend(("source",), start=0.99).is_open(at(0, 1))


def test_an_empty_map_keeps_the_source_and_says_so(caplog):
    both, run, blend = states(), run_of(source=torch.zeros(2, 1, 4, 6)), LocalBlend(("source",))
    assert torch.equal(blend.after(run, at(5), both), both["source"]) and not caplog.records
    blend.after(run, at(9), both)
    assert "mask is empty" in caplog.text


def plan():
    return AttentionPlan(text=token_map(sd15("a red cat"), sd15("a blue dog")))


def worded(plan, words, **about):
    return with_local_blend(plan, LocalBlend(**about), parse_words(words))


def test_words_are_looked_for_in_the_prompt_that_holds_them():
    made = worded(plan(), "cat, dog, a", threshold=0.4)
    source, target = made.probes
    assert (source.branch, source.tokens) == ("source", (1, 3)) and (target.branch, target.tokens) == ("target", (1, 3))
    (rule,) = made.latent_rules
    assert rule.probes == (source.name, target.name) and rule.threshold == 0.4
    again = with_local_blend(made, LocalBlend(), parse_words("red"), Layers.parse("0.5-1.0"))
    assert len({probe.name for probe in again.probes}) == 3 and again.latent_rules[1].probes == (again.probes[2].name,)
    assert again.probes[2].layers.text == "0.5-1.0" and made.start().maps.keys() == {source.name, target.name}
    masked = with_local_blend(AttentionPlan(), LocalBlend(mask=torch.ones(1, 1, 8, 12)))
    assert masked.probes == () and len(masked.latent_rules) == 1


@pytest.mark.parametrize(
    ("sentence", "refused"),
    [
        ("must have words or a mask", lambda: with_local_blend(plan(), LocalBlend())),
        ("must have words or a mask", lambda: weights(LocalBlend())),
        ("word 'bird' must be in the prompt 'a blue dog'", lambda: worded(plan(), "cat, bird")),
        ("must come with a plan that knows its prompts", lambda: worded(AttentionPlan(), "cat")),
        ("must start before its end", lambda: LocalBlend(("source",), start=0.5, end=0.5)),
        ("threshold must be at least 0 and below 1", lambda: LocalBlend(("source",), threshold=1.5)),
    ],
)
def test_refusals(sentence, refused):
    with pytest.raises(ValueError, match=sentence):
        refused()
