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
UP = tuple(sigma for pair in zip(RISING, MIDDLES, strict=False) for sigma in pair)
DOWN = tuple(sigma for pair in zip(FALLING, MIDDLES[::-1], strict=False) for sigma in pair)
FIRE_UP, FIRE_DOWN = (0.0, *MIDDLES), (1.0, *MIDDLES[::-1])
SITE = Site("single", 3, 0, "joint", 3, 0.5, (2, 6), (0, 2), (1, 2, 2), (1, 4, 4))
WHO = ("source", "cond", 0)
FIRST = Step(0, 4, 1.0)
SIZE = 6 * 2 * 4


def made(window=(0.0, 0.5), limit=10**6, **changes):
    return ClimbCache(RunCache(limit), FALLING, Window(*window).holds, **changes)


def put(cache, step=FIRST, who=WHO, value=1.0):
    cache.put(SITE, step, who, "v", CachedOperand(torch.full((1, 6, 2), float(value)), (2, 6), (0, 2)))


def climbed(cache, asked):
    """Keep at every sigma a tensor of that number."""
    for sigma in (*asked, FALLING[0]) if cache.aligned else asked:
        step = cache.upward(sigma)
        if cache.acts(step):
            put(cache, step, value=sigma)
    cache.cache.freeze()
    return cache


def read(cache, *sigmas):
    held = [cache.get(SITE, cache.downward(sigma), WHO, "v") for sigma in sigmas]
    return [None if operand is None else float(operand.tensor[0, 0, 0]) for operand in held]


def test_a_step_is_the_same_step_the_other_way():
    assert [mirrored(place(RISING, sigma)).index for sigma in MIDDLES] == [place(FALLING, s).index for s in MIDDLES]
    assert mirrored(Step(0, 4, 0.0)) == Step(3, 4, 0.0)
    assert [place(FALLING, sigma) for sigma in (0.75, 0.625)] == [Step(1, 4, 0.75, 0), Step(1, 4, 0.625, 1)]
    assert place(FALLING, 0.75) == Step(1, 4, 0.75)


@pytest.mark.parametrize(
    ("aligned", "up", "down", "wanted"),
    [
        # As published the first evaluation reads one step cleaner.
        (False, UP, DOWN, [0.75, 0.875, 0.5, 0.625, None, None, None, None]),
        (True, UP, DOWN, [1.0, 0.875, 0.75, 0.625, None, None, None, None]),
        # Where a climb asks in the middle alone, that is read.
        (False, FIRE_UP, FIRE_DOWN, [0.875, 0.875, 0.625, None, None]),
        (True, FIRE_UP, FIRE_DOWN, [1.0, 0.875, 0.625, None, None]),
    ],
)
def test_what_each_evaluation_reads(aligned, up, down, wanted):
    assert read(climbed(made(aligned=aligned), up), *down) == wanted


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("up", "down"), [(UP, DOWN), (FIRE_UP, FIRE_DOWN), (RISING[:-1], FALLING[:-1])])
@pytest.mark.parametrize("end", [0.25, 0.5, 1.0])
def test_the_number_of_evaluations_is_known_before(up, down, aligned, end):
    cache = made((0.0, end), aligned=aligned)
    steps = cache.steps(up)
    cache.check(up, down)
    assert all(map(cache.acts, steps)) and len(climbed(cache, up).cache) == len(steps)
    assert None not in read(cache, *(sigma for sigma in down if cache.acts(cache.downward(sigma))))


def test_a_climb_that_skips_a_step_is_refused():
    with pytest.raises(ValueError, match=r"within step 1 of 4 .* use midpoint or fireflow"):
        made().check(UP[:6], DOWN)
    made((0.25, 0.5)).check(UP[:6], DOWN)


@pytest.mark.parametrize(("cond_only", "count"), [(True, 0), (False, 1)])
def test_only_what_is_read_of_the_source_is_kept(cond_only, count):
    cache = made(cond_only=cond_only)
    put(cache, who=("source", "uncond", 0))
    assert len(cache.cache) == count


def test_measuring_counts_and_keeps_only_what_is_read():
    cache, inside = made(), made((0.0, 1.0))
    assert cache.each is None
    cache.measure(0.0)
    put(cache)
    put(cache, who=("source", "cond", 1))
    cache.measured()
    assert cache.each == 2 * SIZE and len(cache.cache) == 0
    inside.measure(0.0)
    put(inside, value=7)
    inside.measured()
    assert inside.each == inside.cache.size and read(inside, 0.25) == [7.0]
