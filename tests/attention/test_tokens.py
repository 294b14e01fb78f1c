"""Token maps: which key of the target takes the attention of which key of the source."""

from types import SimpleNamespace

import pytest
import torch

from retrace.attention.token_map import is_open, token_map
from retrace.attention.tokens import Prompt, Segment, Token, roles
from retrace.attention.word_list import Word, WordWeight, WordWindow
from retrace_tests.attention.prompts import sd3, sd15

MANY = "one two three four five six seven eight nine ten eleven twelve"
PAIRS = [
    ("a red cat", "a blue cat"),
    ("a red cat", "a light_ish pur_ple cat"),
    ("a light_ish pur_ple cat on a mat", "a red cat on a mat"),
    ("a cat on a mat", "a mat"),
    ("a cat", "a big cat on a mat in the sun"),
    ("", "a cat"),
    ("a cat", ""),
    (MANY, "one three four"),
    ("one three four", MANY),
    (MANY, MANY.replace("ten", "zehn")),
    ("a photo of a cat", "a cat, a photo, nothing of that"),
]
BUILDS = pytest.mark.parametrize("build", [sd15, sd3])


def mapped(source, target, mode="replace", **about):
    return token_map(sd15(source), sd15(target), mode, **about)


def keys(prompt):
    """Segment and token of every key."""
    return [(segment.name, token) for segment in prompt.segments for token in segment.tokens]


@BUILDS
@pytest.mark.parametrize("mode", ["replace", "refine", "similarity"])
@pytest.mark.parametrize("text", ["", "a red cat", "a cat and a cat", " ".join("abcdefghijklmnopqrstuvw")])
def test_equal_prompts_are_mapped_onto_themselves(text, build, mode):
    length = build(text).length
    tokens = token_map(build(text), build(text), mode, cosine=torch.ones(length, length))
    assert torch.equal(tokens.matrix, torch.eye(length)) and bool((tokens.alpha == 1).all())


@BUILDS
@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_map_joins_what_belongs_together(one, other, build, mode):
    """Replace keeps the mass of every source token, refine maps equal tokens only, roles stay among themselves."""
    tokens = token_map(build(one), build(other), mode)
    matrix, (source, target) = tokens.matrix, map(keys, (tokens.source, tokens.target))
    idle = (tokens.alpha == 0).nonzero()[:, 0].tolist()
    assert not matrix[:, idle].any()
    if mode == "replace":
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(source)))
        # What takes nothing over keeps its own, except for keys that the source has no mass for.
        assert all(target[j][1].role == "word" for j in idle)
    else:
        assert set(matrix.unique().tolist()) <= {0.0, 1.0} and torch.equal(matrix.sum(0), tokens.alpha)
        assert bool((matrix.sum(1) <= 1).all())
    for i, j in matrix.nonzero().tolist():
        assert source[i][0] == target[j][0] and (mode == "replace" or source[i][1] == target[j][1])
        role = source[i][1].role, target[j][1].role
        # Words that were taken out at the very end of a prompt hand their mass to its end.
        assert role[0] == role[1] or role in (("word", "end"), ("pad", "end"))


def test_the_tail_stays_aligned_behind_a_word_of_more_tokens():
    # start a red cat on mats -> start a light ish pur ple cat on mats
    matrix = mapped("a red cat on mats", "a light_ish pur_ple cat on mats").matrix
    assert torch.equal(matrix[2], torch.tensor([0, 0, *[0.25] * 4, *[0] * 6]))
    assert matrix[[0, 1, 3, 4, 5, 6], [0, 1, 6, 7, 8, 9]].eq(1.0).all()


def test_a_shorter_target_takes_nothing_from_the_source_for_its_new_pads():
    matrix = mapped("a red cat on mats", "a cat").matrix
    # "red" hands its mass to the noun behind it, "on mats" to the end of the text.
    assert matrix[[2, 3, 4, 5], [2, 2, 3, 3]].eq(1.0).all()
    refined = mapped("a red cat on mats", "a cat", "refine")
    assert not refined.matrix[4:6].any() and bool((refined.alpha[-3:] == 0).all())


def test_pads_that_a_longer_target_has_no_room_for_are_spread():
    # Eight pads onto five: the first five one to one, the others in equal parts.
    pads = mapped("a cat", "a cat on big mats").matrix[4:, 7:]
    torch.testing.assert_close(pads, torch.cat([torch.eye(5), torch.full((3, 5), 0.2)]))
    assert not mapped("a cat", "a cat on big mats", "refine").matrix[9:].any()


def test_prompts_of_several_rows_are_aligned_across_them():
    words = [f"w{i}" for i in range(24)]
    tokens = mapped(" ".join(words), " ".join(["new", *words]), "refine")
    one, other = tokens.source, tokens.target
    assert one.length == 36 and [int(tokens.matrix[:, j].argmax()) for j in other.find("w15")] == list(one.find("w15"))
    # The tenth word begins the second row of the target only.
    assert one.find("w9") == (10,) and other.find("w9") == (13,) and tokens.matrix[10, 13] == 1.0
    assert tokens.matrix[[0, 12, 24], [0, 12, 24]].eq(1.0).all()  # starts
    assert tokens.alpha.sum() == other.length - 1  # all but "new"; a pad less is no loss
    more = mapped("a cat", " ".join(words[:12]), "refine")
    assert more.matrix.shape == (12, 24) and more.matrix[0, 0] == 1.0 and more.alpha[12] == 0.0


def test_similarity_joins_the_best_pair_of_a_span_only():
    cosine = torch.zeros(12, 12)
    cosine[3, 3], cosine[2, 3], cosine[0, 2] = 0.9, 0.5, 1.0
    tokens = mapped("a red cat here", "a big lynx here", "similarity", cosine=cosine)
    assert tokens.matrix[3, 3] == 1.0 and tokens.alpha[2] == 0.0 and not tokens.matrix[2].any()


def test_words_of_a_prompt():
    prompt = sd15("a cat and a cat")
    assert prompt.find("cat") == (2, 5) and prompt.find("Cat", 2) == (5,)
    # SD3 has two keys for a word.
    assert sd3("a red cat").find("red") == (2, 12 + 1)
    # What a template adds is no word of the prompt.
    tokens = tuple(Token(i, text, role) for i, (text, role) in enumerate(((b"a cat", "word"), (b" assistant", "end"))))
    framed = Prompt("a cat", (Segment("qwen", tokens),))
    assert framed.find("cat") == (0,)
    for sentence, where, word in (
        ("must occur 3 times", prompt, ("cat", 3)),
        ("must occur 0 times", prompt, ("cat", 0)),
        ("'dog' must be in the prompt 'a cat and a cat'", prompt, ("dog",)),
        ("'assistant' must be in the prompt", framed, ("assistant",)),
    ):
        with pytest.raises(ValueError, match=sentence):
            where.find(*word)


@pytest.mark.parametrize(
    ("window", "total", "steps"),
    [
        ((0.0, 0.0), 10, range(0)),
        ((0.0, 1.0), 10, range(10)),
        ((0.2, 0.5), 10, range(2, 5)),
        ((0.0, 0.8), 50, range(40)),
        ((0.95, 1.0), 10, range(0)),
    ],
)
def test_windows_are_those_of_the_official_table(window, total, steps):
    """int(b (n + 1)) <= i < int(e (n + 1))."""
    assert [i for i in range(total) if is_open(window, i, total)] == list(steps)


@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize("index", [0, 3, 5, 9])
def test_value_maps_are_the_edit_of_the_probabilities(mode, index):
    """Official arithmetic on probabilities, column by column; outside its windows a map is the identity."""
    tokens = mapped(
        "a red cat on mats",
        "a light_ish cat on big mats",
        mode,
        weights=[WordWeight(Word("cat"), 3.0), WordWeight(Word("mats"), -1.0), WordWeight(Word("big"), 2.0)],
        window=(0.0, 0.4),
        windows=[WordWindow(Word("lightish"), 0.1, 0.6)],
    )
    generator, step = torch.Generator().manual_seed(0), SimpleNamespace(index=index, total=10)
    source, own = (torch.rand(7, 12, generator=generator, dtype=torch.float64).softmax(-1) for _ in range(2))
    values = torch.rand(12, 5, generator=generator, dtype=torch.float64)
    a = torch.full((12,), float(index < 4))
    a[[2, 3]] = float(1 <= index < 6)
    refined = tokens.alpha.double() * (source @ tokens.matrix.double()) + (1 - tokens.alpha.double()) * own
    edited = a.double() * tokens.weights.double() * refined + (1 - a.double()) * own
    made = source @ (tokens.taken(None, step).double() @ values)
    made += own @ (tokens.own(None, step).double()[:, None] * values)
    torch.testing.assert_close(made, edited @ values)
    assert tokens.is_active(step) == bool(a.any())
    torch.testing.assert_close(tokens.reweighted(None, step), a * tokens.weights + 1 - a)


@pytest.mark.parametrize(
    ("sentence", "about"),
    [
        ("mode must be one of", {"mode": "swap"}),
        ("window must lie between 0 and 1", {"window": (0.5, 0.2)}),
        ("same text encoders", {"target": sd3("a cat")}),
        ("cosine must have a row", {"mode": "similarity"}),
        ("'dog' must be in the prompt", {"weights": [WordWeight(Word("dog"), 2.0)]}),
    ],
)
def test_refusals(sentence, about):
    with pytest.raises(ValueError, match=sentence):
        token_map(**{"source": sd15("a cat"), "target": sd15("a cat"), **about})


@pytest.mark.parametrize(
    ("ids", "marks", "letters"),
    [
        ([1, 7, 8, 2, 2, 2], (1, 2, 2), "swwepp"),  # CLIP-L pads with its end
        ([1, 7, 8, 2], (1, 2, 2), "swwe"),
        ([1, 2, 2], (1, 2, 2), "sep"),
        ([1, 7, 8, 2, 0, 0], (1, 2, 0), "swwepp"),  # CLIP-G
        ([7, 8, 2, 0, 0], (None, 2, 0), "wwepp"),  # T5
        ([7, 8], (None, None, 0), "ww"),  # Qwen
        ([1, 7, 0], (1, None, 0), "swp"),
        ([], (None, 2, 0), ""),
    ],
)
def test_roles_of_each_kind_of_tokenizer(ids, marks, letters):
    assert "".join(role[0] for role in roles(ids, *marks)) == letters
