"""The blend of unified control: every cell is the target's, the mutual branch's or the source's, bit for bit."""

import pytest
import torch

from retrace.attention import Settings, Step, get_preset
from retrace.attention.token_map import token_map
from retrace.attention.unified_blend import UnifiedBlend, with_unified_blend
from retrace.attention.word_list import parse_words
from retrace_tests.attention.blends import SHAPES, heat, run_of, states
from retrace_tests.attention.prompts import sd15


def step(index=9, sigma=0.1):
    return Step(index, 10, sigma)


def cells(row, column):
    return (Ellipsis, slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_three_masks(shape):
    frames, three = shape[2] if len(shape) == 5 else 1, states(shape)
    places = {"e": (0, 1), "m": (2, 3), "b": (3, 5)}
    # The first picture has maps without a peak: all of its cells are edited, and stay as the last of these says.
    run = run_of(**{name: heat(*place, frames, items=(1,)) for name, place in places.items()})

    def blended(blend, base, index=5, **parts):
        wanted = three[base].clone()
        for name, taken in parts.items():
            wanted[cells(*places[name])] = three[taken][cells(*places[name])]
        return torch.equal(blend.after(run, step(index), three)[1], wanted[1])

    blend = UnifiedBlend(("e",), ("m",), ("b",))
    assert blended(blend, "mutual", e="target", b="target", m="source")
    assert blended(blend, "mutual", 9, e="target", m="source")
    assert blended(blend, "target", 0)
    # Without words of the edit, everything but what is kept is the target's.
    assert blended(UnifiedBlend(kept=("m",)), "target", m="source") and blended(UnifiedBlend(), "target")


def test_each_frame_has_cells_of_its_own():
    three, maps = states(SHAPES[1]), heat(0, 1, frames=3)
    maps[:, :2] = 0.01
    out = UnifiedBlend(("e",)).after(run_of(e=maps), step(5), three)
    assert torch.equal(out[:, :, :2], three["mutual"][:, :, :2])
    assert torch.equal(out[:, :, 2][cells(0, 1)], three["target"][:, :, 2][cells(0, 1)])


@pytest.mark.parametrize(("flow", "high", "low"), [(False, 14.6, 1.0), (True, 0.95, 0.5)])
def test_early_steps_edit_less(flow, high, low):
    """The threshold is 0.15 over the signal's share: at pure noise nothing is above it."""
    run, three, blend = run_of(e=heat(0, 1)), states(), UnifiedBlend(("e",), flow=flow)
    assert blend.threshold(high) > 1.0 and blend.threshold(low) == 0.6
    assert torch.equal(blend.after(run, step(5, high), three), three["mutual"])
    assert not torch.equal(blend.after(run, step(5, low), three), three["mutual"])
    assert UnifiedBlend(edited_threshold=0.1, flow=flow).threshold(low) == pytest.approx(0.3 if flow else 0.15 * 2**0.5)


def planned(edited="", kept="", mode="refine"):
    tokens = token_map(sd15("a cat on a mat"), sd15("a dog on a mat"), mode)
    plan = get_preset("unified").build(Settings(text=tokens))
    return tokens, with_unified_blend(plan, UnifiedBlend(), parse_words(edited), parse_words(kept))


def test_words_are_read_where_their_attention_is_from():
    """A word that takes another branch's attention is read there, a new one in the target."""
    tokens, plan = planned("dog, mat", "on, mat")
    dog, mat, on = (tokens.target.find(word, None) for word in ("dog", "mat", "on"))
    length = tokens.source.length
    assert {probe.name: (probe.branch, probe.tokens, probe.length) for probe in plan.probes} == {
        "unified blend, edited, target": ("target", dog, length),
        "unified blend, shared, mutual": ("mutual", mat, length),
        "unified blend, kept, source": ("source", on, length),
    }
    (blend,) = plan.latent_rules
    assert blend.edited == ("unified blend, edited, target",) and len(blend.shared) == len(blend.kept) == 1
    assert planned()[1].latent_rules == planned()[1].probes == ()
    # Replaced words take the source's attention, so the third branch's cat is read for the dog.
    (probe,) = planned("dog", mode="replace")[1].probes
    assert (probe.branch, probe.tokens) == ("mutual", tokens.source.find("cat", None))


def test_refusals():
    for words in ({"edited": "bird"}, {"kept": "cat"}):
        with pytest.raises(ValueError, match="bird|cat"):
            planned(**words)
    with pytest.raises(ValueError, match="edited_threshold must be at least 0 and below 1, got 1"):
        UnifiedBlend(edited_threshold=1.0)
