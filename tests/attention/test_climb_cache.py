"""What a climb keeps, and which of it each evaluation of the way down reads."""

import pytest
import torch

from retrace.attention import ClimbCache, RunCache, Site, Step, Window, place
from retrace.attention.cached_operand import CachedOperand
from retrace.attention.timing import mirrored

FALLING = (1.0, 0.75, 0.5, 0.25, 0.0)
RISING = FALLING[::-1]
MIDDLES = (0.125, 0.375, 0.625, 0.875)
# Of midpoint, going up and going down; FireFlow asks at one end and then in the middle alone.
UP = tuple(level for pair in zip(RISING, MIDDLES, strict=False) for level in pair)
DOWN = tuple(level for pair in zip(FALLING, MIDDLES[::-1], strict=False) for level in pair)
FIRE_UP, FIRE_DOWN = (0.0, *MIDDLES), (1.0, *MIDDLES[::-1])
SITE = Site("single", 3, 0, "joint", 3, 0.5, (2, 6), (0, 2), (1, 2, 2), (1, 4, 4))
WHO = ("source", "cond", 0)


def kept(value):
    return CachedOperand(torch.full((1, 6, 2), float(value)), (2, 6), (0, 2))


HALF = Window(0.0, 0.5)


def recording(window=HALF, limit=10**6, **changes):
    return ClimbCache(RunCache(limit), FALLING, window.holds, **changes)


def climbed(made, asked):
    """Keep at every level a tensor of that level's number."""
    for level in (*asked, FALLING[0]) if made.aligned else asked:
        step = made.upward(level)
        if made.acts(step):
            made.put(SITE, step, WHO, "v", kept(level))
    made.cache.freeze()
    return made


def read(made, level):
    found = made.get(SITE, made.downward(level), WHO, "v")
    return None if found is None else float(found.tensor[0, 0, 0])


def test_a_step_is_the_same_step_the_other_way():
    for level in MIDDLES:
        assert mirrored(place(RISING, level)).index == place(FALLING, level).index
    assert mirrored(Step(0, 4, 0.0)) == Step(3, 4, 0.0)


def test_as_published_the_first_evaluation_reads_one_step_cleaner():
    made = climbed(recording(), UP)
    assert [read(made, level) for level in DOWN[:4]] == [0.75, 0.875, 0.5, 0.625]
    assert [read(made, level) for level in DOWN[4:]] == [None] * 4


def test_aligned_every_evaluation_reads_its_own_level():
    made = climbed(recording(aligned=True), UP)
    assert [read(made, level) for level in DOWN[:4]] == [1.0, 0.875, 0.75, 0.625]
    assert [read(made, level) for level in DOWN[4:]] == [None] * 4


def test_where_a_climb_asks_in_the_middle_alone_that_is_read():
    assert [read(climbed(recording(), FIRE_UP), level) for level in FIRE_DOWN[:3]] == [0.875, 0.875, 0.625]
    assert [read(climbed(recording(aligned=True), FIRE_UP), level) for level in FIRE_DOWN[:2]] == [1.0, 0.875]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("up", "down"), [(UP, DOWN), (FIRE_UP, FIRE_DOWN), (RISING[:-1], FALLING[:-1])])
def test_the_number_of_evaluations_is_known_before(up, down, aligned):
    for end in (0.25, 0.5, 1.0):
        made = recording(Window(0.0, end), aligned=aligned)
        steps = made.steps(up)
        made.check(up, down)
        assert all(map(made.acts, steps))
        assert len(climbed(made, up).cache) == len(steps)
        assert all(read(made, level) is not None for level in down if made.acts(made.downward(level)))


def test_a_climb_that_skips_a_step_is_refused():
    with pytest.raises(ValueError, match=r"within step 1 of 4 .* use midpoint or fireflow"):
        recording().check(UP[:6], DOWN)
    recording(Window(0.25, 0.5)).check(UP[:6], DOWN)


def test_only_what_is_read_of_the_source_is_kept():
    made = recording()
    made.put(SITE, Step(0, 4, 1.0), ("source", "uncond", 0), "v", kept(1))
    assert len(made.cache) == 0
    both = recording(cond_only=False)
    both.put(SITE, Step(0, 4, 1.0), ("source", "uncond", 0), "v", kept(1))
    assert len(both.cache) == 1


def test_measuring_counts_and_keeps_only_what_is_read():
    made = recording()
    assert made.each is None
    made.measure(0.0)
    made.put(SITE, Step(0, 4, 1.0), WHO, "v", kept(1))
    made.put(SITE, Step(0, 4, 1.0), ("source", "cond", 1), "v", kept(1))
    made.measured()
    assert made.each == 2 * 6 * 2 * 4 and len(made.cache) == 0
    inside = recording(Window())
    inside.measure(0.0)
    inside.put(SITE, Step(0, 4, 1.0), WHO, "v", kept(7))
    inside.measured()
    assert inside.each == inside.cache.size and read(inside, 0.25) == 7.0


def test_the_budget_holds():
    made = recording(limit=6 * 2 * 4)
    made.put(SITE, Step(0, 4, 1.0), WHO, "v", kept(1))
    with pytest.raises(ValueError, match="attention cache must stay within"):
        made.put(SITE, Step(1, 4, 0.75), WHO, "v", kept(1))
