"""Alignment of token ids."""

import itertools
import random

import pytest

from retrace.attention.alignment import align


def pairs(source, target):
    return list(align(source.split(), target.split()).pairs)


def test_equal_sequences_are_matched_one_to_one():
    found = align("a red cat".split(), "a red cat".split())
    assert found.pairs == ((0, 0), (1, 1), (2, 2)) and found.spans == ()


def test_the_rest_is_in_spans_between_anchors():
    found = align("a red cat sits".split(), "a big blue cat".split())
    assert found.pairs == ((0, 0), (2, 3))
    assert found.spans == (((1, 2), (1, 3)), ((3, 4), (4, 4)))


def test_a_repeated_word_stays_with_its_neighbours():
    assert pairs("a cat on a mat", "a dog and a cat on a mat") == [(0, 3), (1, 4), (2, 5), (3, 6), (4, 7)]
    assert pairs("a cat on a mat", "a cat on a mat and a dog") == [(i, i) for i in range(5)]
    assert pairs("a cat", "a dog") == [(0, 0)]


@pytest.mark.parametrize("seed", range(30))
def test_no_alignment_has_more_matches(seed):
    """Against all common subsequences, tried one by one."""
    draw = random.Random(seed)
    source, target = ([draw.choice("abc") for _ in range(draw.randint(0, 7))] for _ in range(2))
    found = align(source, target).pairs
    assert all(source[i] == target[j] for i, j in found)
    assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(found))

    def is_within(short):
        rest = iter(target)
        return all(letter in rest for letter in short)

    longest = max(n for n in range(8) for some in itertools.combinations(source, n) if is_within(some))
    assert len(found) == longest


def test_spans_and_pairs_hold_every_token_once():
    draw = random.Random(1)
    for _ in range(50):
        source, target = ([draw.choice("abcd") for _ in range(draw.randint(0, 9))] for _ in range(2))
        found = align(source, target)
        for side, length in ((0, len(source)), (1, len(target))):
            held = [pair[side] for pair in found.pairs] + [i for span in found.spans for i in range(*span[side])]
            assert sorted(held) == list(range(length))
