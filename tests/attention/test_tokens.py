"""Token maps: which key of the target takes the attention of which key of the source."""

from dataclasses import dataclass

import pytest
import torch

from retrace.attention.token_map import is_open, token_map
from retrace.attention.tokens import Prompt, Segment, Token, roles
from retrace.attention.word_list import Word, WordWeight, WordWindow
from retrace_tests.attention.prompts import sd3, sd15

PAIRS = [
    ("a red cat", "a blue cat"),
    ("a red cat", "a light_ish pur_ple cat"),
    ("a light_ish pur_ple cat on a mat", "a red cat on a mat"),
    ("a cat on a mat", "a mat"),
    ("a cat", "a big cat on a mat in the sun"),
    ("", "a cat"),
    ("a cat", ""),
    ("one two three four five six seven eight nine ten eleven twelve", "one three four"),
    ("one three four", "one two three four five six seven eight nine ten eleven twelve"),
    ("one two three four five six seven eight nine ten", "one two three four five six seven eight nine zehn"),
    ("a photo of a cat", "a cat, a photo, nothing of that"),
]


@dataclass
class At:
    index: int
    total: int


def word_keys(prompt, role="word"):
    keys, offset = [], 0
    for segment in prompt.segments:
        keys += [offset + i for i, token in enumerate(segment.tokens) if token.role == role]
        offset += len(segment.tokens)
    return keys


@pytest.mark.parametrize("mode", ["replace", "refine", "similarity"])
@pytest.mark.parametrize("build", [sd15, sd3])
@pytest.mark.parametrize("text", ["", "a red cat", "a cat and a cat", " ".join("abcdefghijklmnopqrstuvw")])
def test_equal_prompts_are_mapped_onto_themselves(text, build, mode):
    prompt = build(text)
    cosine = torch.ones(prompt.length, prompt.length)
    found = token_map(prompt, build(text), mode, cosine=cosine)
    assert torch.equal(found.matrix, torch.eye(prompt.length)) and bool((found.alpha == 1).all())


@pytest.mark.parametrize("build", [sd15, sd3])
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_replace_keeps_the_mass_of_every_source_token(one, other, build):
    found = token_map(build(one), build(other), "replace")
    torch.testing.assert_close(found.matrix.sum(1), torch.ones(found.source.length))
    # What takes nothing over keeps its own, except for keys that the source has no mass for.
    idle = (found.alpha == 0).nonzero()[:, 0].tolist()
    assert not found.matrix[:, idle].any() and set(idle) <= set(word_keys(found.target))


@pytest.mark.parametrize("build", [sd15, sd3])
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_refine_maps_equal_tokens_only(one, other, build):
    found = token_map(build(one), build(other), "refine")
    assert set(found.matrix.unique().tolist()) <= {0.0, 1.0} and bool((found.matrix.sum(0) == found.alpha).all())
    assert bool((found.matrix.sum(1) <= 1).all())
    tokens = [[t for s in p.segments for t in s.tokens] for p in (found.source, found.target)]
    assert all(tokens[0][i] == tokens[1][j] for i, j in found.matrix.nonzero().tolist())


@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize("build", [sd15, sd3])
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_words_pads_and_ends_stay_among_themselves(one, other, build, mode):
    source, target = build(one), build(other)
    found = token_map(source, target, mode)
    tokens = [[t for s in p.segments for t in s.tokens] for p in (source, target)]
    names = [[s.name for s in p.segments for _ in s.tokens] for p in (source, target)]
    for i, j in found.matrix.nonzero().tolist():
        assert names[0][i] == names[1][j]
        roles_here = tokens[0][i].role, tokens[1][j].role
        # Words that were taken out at the very end of a prompt hand their mass to its end.
        assert roles_here[0] == roles_here[1] or roles_here in (("word", "end"), ("pad", "end")), roles_here
        if roles_here[0] == "word" and mode == "refine":
            assert roles_here[1] == "word"


def test_the_tail_stays_aligned_behind_a_word_of_more_tokens():
    found = token_map(sd15("a red cat on mats"), sd15("a light_ish pur_ple cat on mats"), "replace")
    # start a red cat on mats -> start a light ish pur ple cat on mats
    rows = found.matrix[:6].nonzero().tolist()
    assert [j for i, j in rows if i == 2] == [2, 3, 4, 5] and bool((found.matrix[2, 2:6] == 0.25).all())
    assert [(i, j) for i, j in rows if i != 2] == [(0, 0), (1, 1), (3, 6), (4, 7), (5, 8)]
    assert found.matrix[6, 9] == 1.0


def test_a_shorter_target_takes_nothing_from_the_source_for_its_new_pads():
    found = token_map(sd15("a red cat on mats"), sd15("a cat"), "replace")
    # "red" hands its mass to the noun behind it, "on mats" to the end of the text.
    assert found.matrix[2, 2] == found.matrix[3, 2] == found.matrix[4, 3] == found.matrix[5, 3] == 1.0
    refined = token_map(sd15("a red cat on mats"), sd15("a cat"), "refine")
    assert not refined.matrix[4:6].any() and bool((refined.alpha[-3:] == 0).all())


def test_pads_that_a_longer_target_has_no_room_for_are_spread():
    found = token_map(sd15("a cat"), sd15("a cat on big mats"), "replace")
    # Eight pads onto five: the first five one to one, the others in equal parts.
    pads = found.matrix[4:, 7:]
    torch.testing.assert_close(pads[:5], torch.eye(5))
    torch.testing.assert_close(pads[5:], torch.full((3, 5), 0.2))
    assert not token_map(sd15("a cat"), sd15("a cat on big mats"), "refine").matrix[9:].any()


def test_what_a_template_adds_is_no_word_of_the_prompt():
    tokens = tuple(Token(i, text, role) for i, (text, role) in enumerate(((b"a cat", "word"), (b" assistant", "end"))))
    prompt = Prompt("a cat", (Segment("qwen", tokens),))
    assert prompt.find("cat") == (0,)
    with pytest.raises(ValueError, match="'assistant' must be in the prompt"):
        prompt.find("assistant")


def test_prompts_of_several_rows_are_aligned_across_them():
    words = [f"w{i}" for i in range(24)]
    one, other = sd15(" ".join(words)), sd15(" ".join(["new", *words]))
    found = token_map(one, other, "refine")
    assert one.length == 36 and [int(found.matrix[:, j].argmax()) for j in other.find("w15")] == list(one.find("w15"))
    # The tenth word begins the second row of the target only.
    assert one.find("w9") == (10,) and other.find("w9") == (13,) and found.matrix[10, 13] == 1.0
    assert [found.matrix[i, i] for i in (0, 12, 24)] == [1.0] * 3  # starts
    assert found.alpha.sum() == other.length - 1 - 0  # all but "new"; a pad less is no loss


def test_more_rows_in_the_target_than_in_the_source():
    found = token_map(sd15("a cat"), sd15(" ".join(f"w{i}" for i in range(12))), "refine")
    assert found.matrix.shape == (12, 24)
    assert found.matrix[0, 0] == 1.0 and found.alpha[12] == 0.0


def test_sd3_has_two_keys_for_a_word():
    prompt = sd3("a red cat")
    assert prompt.find("red") == (2, 12 + 1)
    found = token_map(prompt, sd3("a blue cat"), "replace")
    assert found.matrix[2, 2] == found.matrix[13, 13] == 1.0 and not found.matrix[:12, 12:].any()


def test_similarity_joins_the_best_pair_of_a_span_only():
    source, target = sd15("a red cat here"), sd15("a big lynx here")
    cosine = torch.zeros(source.length, target.length)
    cosine[3, 3], cosine[2, 3], cosine[0, 2] = 0.9, 0.5, 1.0
    found = token_map(source, target, "similarity", cosine=cosine)
    assert found.matrix[3, 3] == 1.0 and found.alpha[2] == 0.0 and not found.matrix[2].any()


def test_repeated_words_are_all_or_one_of_them():
    prompt = sd15("a cat and a cat")
    assert prompt.find("cat") == (2, 5) and prompt.find("Cat", 2) == (5,)
    with pytest.raises(ValueError, match="must occur 3 times"):
        prompt.find("cat", 3)
    with pytest.raises(ValueError, match="must occur 0 times"):
        prompt.find("cat", 0)
    with pytest.raises(ValueError, match="'dog' must be in the prompt 'a cat and a cat'"):
        prompt.find("dog")


def test_windows_are_those_of_the_official_table():
    # int(b (n + 1)) <= i < int(e (n + 1)), n = 10.
    assert [i for i in range(10) if is_open((0.0, 0.0), i, 10)] == []
    assert [i for i in range(10) if is_open((0.0, 1.0), i, 10)] == list(range(10))
    assert [i for i in range(10) if is_open((0.2, 0.5), i, 10)] == [2, 3, 4]
    assert [i for i in range(50) if is_open((0.0, 0.8), i, 50)] == list(range(40))
    assert [i for i in range(10) if is_open((0.95, 1.0), i, 10)] == []


def reference(found, a, source, own):
    """Official arithmetic on probabilities, column by column."""
    mapped = source @ found.matrix.double()
    edited = torch.empty_like(own)
    for j in range(own.shape[1]):
        refined = found.alpha[j] * mapped[:, j] + (1 - found.alpha[j]) * own[:, j]
        edited[:, j] = a[j] * found.weights[j] * refined + (1 - a[j]) * own[:, j]
    return edited


@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize("index", [0, 3, 5, 9])
def test_value_maps_are_the_edit_of_the_probabilities(mode, index):
    found = token_map(
        sd15("a red cat on mats"),
        sd15("a light_ish cat on big mats"),
        mode,
        [WordWeight(Word("cat"), 3.0), WordWeight(Word("mats"), -1.0), WordWeight(Word("big"), 2.0)],
        (0.0, 0.4),
        [WordWindow(Word("lightish"), 0.1, 0.6)],
    )
    generator = torch.Generator().manual_seed(0)
    source, own = (torch.rand(7, 12, generator=generator, dtype=torch.float64).softmax(-1) for _ in range(2))
    values = torch.rand(12, 5, generator=generator, dtype=torch.float64)
    step = At(index, 10)
    a = torch.full((12,), float(index < 4))
    a[[2, 3]] = float(1 <= index < 6)
    expected = reference(found, a.double(), source, own) @ values
    got = source @ (found.taken(None, step).double() @ values)
    got += own @ (found.own(None, step).double()[:, None] * values)
    torch.testing.assert_close(got, expected)
    assert found.is_active(step) == bool(a.any())
    torch.testing.assert_close(found.reweighted(None, step), a * found.weights + 1 - a)


def test_outside_its_window_a_map_is_the_identity():
    found = token_map(sd15("a red cat"), sd15("a blue cat"), weights=[WordWeight(Word("cat"), 5.0)], window=(0.0, 0.5))
    step = At(8, 10)
    assert not found.is_active(step) and not found.taken(None, step).any()
    assert bool((found.own(None, step) == 1).all()) and bool((found.reweighted(None, step) == 1).all())


def test_refusals():
    cat = sd15("a cat")
    with pytest.raises(ValueError, match="mode must be one of"):
        token_map(cat, cat, "swap")
    with pytest.raises(ValueError, match="window must lie between 0 and 1"):
        token_map(cat, cat, window=(0.5, 0.2))
    with pytest.raises(ValueError, match="same text encoders"):
        token_map(cat, sd3("a cat"))
    with pytest.raises(ValueError, match="cosine must have a row"):
        token_map(cat, cat, "similarity")
    with pytest.raises(ValueError, match="'dog' must be in the prompt"):
        token_map(cat, cat, weights=[WordWeight(Word("dog"), 2.0)])


def test_roles_of_each_kind_of_tokenizer():
    def short(*arguments):
        return "".join(role[0] for role in roles(*arguments))

    assert short([1, 7, 8, 2, 2, 2], 1, 2, 2) == "swwepp"  # CLIP-L pads with its end
    assert short([1, 7, 8, 2], 1, 2, 2) == "swwe"
    assert short([1, 2, 2], 1, 2, 2) == "sep"
    assert short([1, 7, 8, 2, 0, 0], 1, 2, 0) == "swwepp"  # CLIP-G
    assert short([7, 8, 2, 0, 0], None, 2, 0) == "wwepp"  # T5
    assert short([7, 8], None, None, 0) == "ww"  # Qwen
    assert short([1, 7, 0], 1, None, 0) == "swp"
    assert short([], None, 2, 0) == ""
