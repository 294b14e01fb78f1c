"""The blend of unified control: every cell is the target's, the mutual branch's or the source's, bit for bit."""

from types import SimpleNamespace

import pytest
import torch

from retrace.attention import Settings, Step, get_preset
from retrace.attention.token_map import token_map
from retrace.attention.unified_blend import UnifiedBlend, with_unified_blend
from retrace.attention.word_list import parse_words
from retrace.attention.words import WordMaps
from retrace_tests.attention.prompts import sd15

SHAPES = [(2, 4, 8, 12), (2, 4, 3, 8, 12)]


def step(index=9, total=10, sigma=0.1):
    return Step(index, total, sigma)


def run_of(frames=1, **places):
    """A run whose maps have a peak in these cells of a 4 x 6 grid."""
    maps = {}
    for name, place in places.items():
        maps[name] = WordMaps([(0,), (1,)])
        heat = torch.full((2, frames, 4, 6), 0.01)
        heat[1, :, place[0], place[1]] = 0.5
        for item in range(2):
            maps[name].add(SimpleNamespace(grid=(frames, 4, 6), latent=(frames, 8, 12)), None, item, heat)
    return SimpleNamespace(maps=maps)


def states(shape):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name in ("source", "target", "mutual")}


def cells(row, column):
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = True
    return mask


@pytest.mark.parametrize("shape", SHAPES)
def test_three_masks(shape):
    frames = shape[2] if len(shape) == 5 else 1
    run, three = run_of(frames, e=(0, 1), m=(2, 3), b=(3, 5)), states(shape)
    blend = UnifiedBlend(("e",), ("m",), ("b",))
    wanted = three["mutual"].clone()
    for part, name in ((cells(0, 1), "target"), (cells(3, 5), "target"), (cells(2, 3), "source")):
        wanted[..., part] = three[name][..., part]
    assert torch.equal(blend.after(run, step(5), three), wanted)
    wanted[..., cells(3, 5)] = three["mutual"][..., cells(3, 5)]
    assert torch.equal(blend.after(run, step(9), three), wanted)
    assert torch.equal(blend.after(run, step(0), three), three["target"])
    # Without words of the edit, everything but what is kept is the target's.
    wanted = three["target"].clone()
    wanted[..., cells(2, 3)] = three["source"][..., cells(2, 3)]
    assert torch.equal(UnifiedBlend(kept=("m",)).after(run, step(5), three), wanted)
    assert torch.equal(UnifiedBlend().after(run, step(5), three), three["target"])


def test_early_steps_edit_less():
    """The threshold is 0.15 over the signal's share: at pure noise nothing is above it."""
    run, three = run_of(e=(0, 1)), states(SHAPES[0])
    for flow, high, low in ((False, 14.6, 1.0), (True, 0.95, 0.5)):
        blend = UnifiedBlend(("e",), flow=flow)
        assert blend.threshold(high) > 1.0 and blend.threshold(low) == 0.6
        assert torch.equal(blend.after(run, step(5, sigma=high), three), three["mutual"])
        assert not torch.equal(blend.after(run, step(5, sigma=low), three), three["mutual"])
    assert UnifiedBlend().threshold(3.0) == 0.6
    assert UnifiedBlend(edited_threshold=0.1).threshold(1.0) == pytest.approx(0.15 * 2**0.5)


def planned(edited="", kept="", mode="refine"):
    tokens = token_map(sd15("a cat on a mat"), sd15("a dog on a mat"), mode)
    plan = get_preset("unified").build(Settings(text=tokens))
    return tokens, plan, with_unified_blend(plan, UnifiedBlend(), parse_words(edited), parse_words(kept))


def test_words_are_read_where_their_attention_is_from():
    """A word that takes another branch's attention is read there, a new one in the target."""
    tokens, plain, plan = planned("dog, mat", "on, mat")
    read = {probe.name: (probe.branch, probe.tokens, probe.length) for probe in plan.probes}
    dog, mat, on = (tokens.target.find(word, None) for word in ("dog", "mat", "on"))
    length = tokens.source.length
    assert read == {
        "unified blend, edited, target": ("target", dog, length),
        "unified blend, shared, mutual": ("mutual", mat, length),
        "unified blend, kept, source": ("source", on, length),
    }
    (blend,) = plan.latent_rules
    assert blend.edited == ("unified blend, edited, target",) and len(blend.shared) == len(blend.kept) == 1
    assert plain.probes == () and planned()[2].latent_rules == ()
    # Replaced words take the source's attention, so the third branch's cat is read for the dog.
    (probe,) = planned("dog", mode="replace")[2].probes
    assert (probe.branch, probe.tokens) == ("mutual", tokens.source.find("cat", None))


def test_refusals():
    with pytest.raises(ValueError, match="bird"):
        planned("bird")
    with pytest.raises(ValueError, match="cat"):
        planned(kept="cat")
    with pytest.raises(ValueError, match="edited_threshold must be at least 0 and below 1, got 1"):
        UnifiedBlend(edited_threshold=1.0)
