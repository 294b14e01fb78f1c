"""Alignment of token ids."""

import itertools
import random

import pytest

from retrace.attention.alignment import align


@pytest.mark.parametrize(
    ("source", "target", "pairs", "spans"),
    [
        ("a red cat", "a red cat", [(0, 0), (1, 1), (2, 2)], []),
        # The rest is in spans between anchors.
        ("a red cat sits", "a big blue cat", [(0, 0), (2, 3)], [((1, 2), (1, 3)), ((3, 4), (4, 4))]),
        # A repeated word stays with its neighbours.
        ("a cat on a mat", "a dog and a cat on a mat", [(i, i + 3) for i in range(5)], [((0, 0), (0, 3))]),
        ("a cat on a mat", "a cat on a mat and a dog", [(i, i) for i in range(5)], [((5, 5), (5, 8))]),
        ("a cat", "a dog", [(0, 0)], [((1, 2), (1, 2))]),
    ],
)
def test_pairs_and_the_spans_between(source, target, pairs, spans):
    aligned = align(source.split(), target.split())
    assert list(aligned.pairs) == pairs and list(aligned.spans) == spans


@pytest.mark.parametrize("seed", range(30))
def test_no_alignment_has_more_matches_and_every_token_is_held_once(seed):
    """Against all common subsequences, tried one by one."""
    draw = random.Random(seed)
    source, target = ([draw.choice("abc") for _ in range(draw.randint(0, 7))] for _ in range(2))
    aligned = align(source, target)
    assert all(source[i] == target[j] for i, j in aligned.pairs)
    assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(aligned.pairs))

    def is_within(short):
        rest = iter(target)
        return all(letter in rest for letter in short)

    longest = max(n for n in range(8) for some in itertools.combinations(source, n) if is_within(some))
    assert len(aligned.pairs) == longest
    for side, length in ((0, len(source)), (1, len(target))):
        held = [pair[side] for pair in aligned.pairs] + [i for span in aligned.spans for i in range(*span[side])]
        assert sorted(held) == list(range(length))
