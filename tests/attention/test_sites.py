"""The layer syntax."""

import pytest

from retrace.attention import Layers
from retrace_tests.attention.forms import SWAP, rule
from retrace_tests.attention.problems import cross_site, joint_site, self_site

DOUBLES = [joint_site(stack="double", index=index, number=index) for index in range(19)]
SINGLES = [joint_site(stack="single", index=index, number=19 + index) for index in range(38)]
INNER = [self_site(stack="input", index=8, inner=inner) for inner in range(10)]
KINDS = [self_site(number=number) for number in range(16)] + [cross_site(number=number) for number in range(16)]
DEPTHS = [self_site(depth=number / 10) for number in range(11)]
SPACED = " Double: 0, 1, 17-18 ;single:20 - 37; "


@pytest.mark.parametrize(
    ("text", "sites", "picked"),
    [
        (SPACED, DOUBLES, [0, 1, 17, 18]),
        (SPACED, SINGLES, range(20, 38)),
        ("single", DOUBLES, []),
        ("single", SINGLES, range(38)),
        ("input:8.3", INNER, [3]),
        ("input:8", INNER, range(10)),
        ("self#10-15", KINDS, range(10, 16)),
        ("self#3;cross#3", KINDS, [3, 19]),
        ("self", KINDS, range(16)),
        ("cross; self#2", KINDS, [2, *range(16, 32)]),
        ("0.35-1.0", DEPTHS, range(4, 11)),
        (".2-.4", DEPTHS, [2, 3, 4]),
        ("0-1", DEPTHS, range(11)),
        ("all", DEPTHS, range(11)),
    ],
)
def test_what_a_text_picks(text, sites, picked):
    assert [index for index, site in enumerate(sites) if Layers.parse(text).matches(site)] == list(picked)
    assert Layers.parse(SPACED).text == "double: 0, 1, 17-18; single:20 - 37"


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
        ("self#3.1", "must be like"),
    ],
)
def test_what_is_not_understood_is_an_error(text, what):
    with pytest.raises(ValueError, match=what):
        Layers.parse(text)


@pytest.mark.parametrize(
    ("latent", "limit", "inside", "outside"),
    [
        ((64, 64), 0.25, (16, 16), (32, 32)),
        ((64, 64), 0.5, (32, 32), (64, 64)),
        ((96, 64), 0.25, (24, 16), (48, 32)),
        # 9 x 7 cells become 5 x 4, then 3 x 2 tokens.
        ((9, 7), 0.5, (5, 4), (9, 7)),
        ((9, 7), 0.25, (3, 2), (5, 4)),
    ],
)
def test_limits_are_shares_of_the_latents_side(latent, limit, inside, outside):
    def covers(grid, limit):
        return rule(SWAP, limit=limit).covers(self_site(grid=(1, *grid), latent=(1, *latent)))

    assert covers(inside, limit) and not covers(outside, limit) and covers(outside, None)
