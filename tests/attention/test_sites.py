"""The layer syntax."""

import pytest

from retrace.attention import Layers, Rule, Take, Term
from retrace_tests.attention.problems import cross_site, joint_site, self_site

TERM = Term(k=Take(), v=Take())


def picks(text, sites):
    return [index for index, site in enumerate(sites) if Layers.parse(text).matches(site)]


def test_blocks_of_stacks():
    doubles = [joint_site(stack="double", index=index, number=index) for index in range(19)]
    singles = [joint_site(stack="single", index=index, number=19 + index) for index in range(38)]
    text = " Double: 0, 1, 17-18 ;single:20 - 37; "
    assert picks(text, doubles) == [0, 1, 17, 18] and picks(text, singles) == list(range(20, 38))
    assert picks("single", doubles) == [] and picks("single", singles) == list(range(38))
    assert Layers.parse(text).text == "double: 0, 1, 17-18; single:20 - 37"


def test_transformers_inside_a_block():
    sites = [self_site(stack="input", index=8, inner=inner) for inner in range(10)]
    assert picks("input:8.3", sites) == [3] and picks("input:8", sites) == list(range(10))


def test_running_numbers_belong_to_one_kind():
    sites = [self_site(number=number) for number in range(16)] + [cross_site(number=number) for number in range(16)]
    assert picks("self#10-15", sites) == list(range(10, 16))
    assert picks("self#3;cross#3", sites) == [3, 19]
    assert picks("self", sites) == list(range(16)) and picks("cross; self#2", sites) == [2, *range(16, 32)]


def test_depths():
    sites = [self_site(depth=number / 10) for number in range(11)]
    assert picks("0.35-1.0", sites) == list(range(4, 11)) and picks("0-1", sites) == picks("all", sites)
    assert picks(".2-.4", sites) == [2, 3, 4] and len(picks("all", sites)) == 11


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "must name at least one layer"),
        (" ; ", "must name at least one layer"),
        ("doubl:3", "must be like .* got 'doubl:3'"),
        ("attn#3", "must be like"),
        ("double:a", "must be like"),
        ("double:3-", "must be like"),
        ("double:5-3", "must rise within a range, got '5-3'; write 3-5"),
        ("17", "must be like"),
        ("17-18", "must put a stack before block numbers, got '17-18'"),
        ("0.9-0.2", "must rise within a range"),
        ("output#3", "must be like"),
        ("self:3", "must be like"),
    ],
)
def test_what_is_not_understood_is_an_error(text, what):
    with pytest.raises(ValueError, match=what):
        Layers.parse(text)


def test_limits_are_shares_of_the_latents_side():
    def within(grid, latent, limit):
        return Rule("a", (TERM,), limit=limit).covers(self_site(grid=(1, *grid), latent=(1, *latent)))

    assert within((16, 16), (64, 64), 0.25) and not within((32, 32), (64, 64), 0.25)
    assert within((32, 32), (64, 64), 0.5) and not within((64, 64), (64, 64), 0.5)
    assert within((24, 16), (96, 64), 0.25) and not within((48, 32), (96, 64), 0.25)
    # 9 x 7 cells become 5 x 4, then 3 x 2 tokens.
    assert within((5, 4), (9, 7), 0.5) and within((3, 2), (9, 7), 0.25) and not within((5, 4), (9, 7), 0.25)
    assert within((16, 16), (64, 64), None)
