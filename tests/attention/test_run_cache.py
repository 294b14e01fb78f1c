"""A cache of a run: what it gives back, and its budgets, on a device that torch only pretends to have."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from retrace.attention import Call, Executor, Layers, Rows, RunCache, Step, Take, Term, Window, estimate
from retrace.attention.cached_operand import CachedOperand
from retrace.attention.run_cache import bytes_of
from retrace_tests.attention.forms import SWAP, rule, run
from retrace_tests.attention.problems import attend, cross_site, joint_site, pair, self_site, tensors

SITE = self_site()
WHO = ("source", "cond", 0)
EACH = 3 * 16 * 8 * 4
STEPS = [Step(index, 4, 1.0 - index / 4, evaluation) for index in range(4) for evaluation in (0, 1)]
SOURCE, TARGET = (Rows((branch,), ("cond",), (0,)) for branch in ("source", "target"))


def test_it_replays_what_sharing_in_one_batch_gives():
    """Every evaluation of a second-order run has its own operands; reading changes nothing."""
    site, cache = joint_site(text=5), RunCache(limit=2**20)
    rules = [rule(Term(v=Take()), group="all", window=Window(0.0, 0.75))]
    calls = {step: tensors(site, seed=index) for index, step in enumerate(STEPS)}
    for step, call in calls.items():
        run(rules, site, *(tensor[:1] for tensor in call), SOURCE, cache, step=step)
    cache.freeze()
    for step, call in [*reversed(calls.items())] * 2:
        out = run(rules, site, *(tensor[1:] for tensor in call), TARGET, cache, step=step)
        assert float((out - run(rules, site, *call, pair(), step=step)[1:]).abs().max()) <= 1e-5
    assert len(cache) == 6
    # Of another picture, step or evaluation it holds nothing.
    for other, step in ((joint_site(grid=(1, 2, 8)), STEPS[0]), (site, Step(0, 10, 1.0, 2)), (site, Step(4, 10, 1.0))):
        with pytest.raises(ValueError, match="v of branch 'source' must be known"):
            run(rules, other, *tensors(other, rows=1), TARGET, cache, step=step)


def test_the_estimate_is_what_it_comes_to_hold():
    sites = [self_site(), joint_site(text=5), cross_site(text=7), self_site(stack="input", index=1, number=0)]
    rules = [
        rule(SWAP, kinds=("self", "joint"), window=Window(0.0, 0.5)),
        rule(Term(q=Take()), layers=Layers.parse("output"), kinds=("self", "cross"), group="all"),
    ]
    executor, cache = Executor(rules), RunCache(limit=2**24)
    for step in STEPS:
        for site in sites:
            rows = Rows(("source",) * 2, ("cond",) * 2, (0, 1))
            executor.run(site, rows, step, Call(*tensors(site), attend), cache)
    assert cache.size == estimate(executor, sites, STEPS, channels=3 * 8, itemsize=4, rows=2) > 0


@pytest.fixture
def device():
    """Tensors have no numbers here, so that they may be said to lie anywhere."""
    with FakeTensorMode(), torch.no_grad():
        yield


def operand(masked=False, tokens=16):
    mask = torch.empty(1, 1, tokens, device="cuda") if masked else None
    return CachedOperand(torch.empty(3, tokens, 8, device="cuda"), (0, tokens), None, mask)


def where(cache, steps):
    """Kind of device of what is held for each step."""
    held = [cache.get(SITE, Step(index, 9, 0.5), WHO, "k") for index in range(steps)]
    return [None if each is None else each.tensor.device.type for each in held]


def filled(cache, steps, **about):
    for index in range(steps):
        cache.put(SITE, Step(index, 9, 0.5), WHO, "k", operand(**about))
    return cache


@pytest.mark.parametrize(("on_device", "stays"), [(0, 0), (EACH - 1, 0), (2 * EACH, 2), (3 * EACH - 1, 2), (9**9, 4)])
def test_what_is_beyond_the_budget_of_the_device_lies_in_memory(on_device, stays, device):
    cache = filled(RunCache(9**9, on_device), 4)
    assert where(cache, 4) == ["cuda"] * stays + ["cpu"] * (4 - stays) and cache.size == 4 * EACH


def test_a_full_one_keeps_what_it_has_and_the_same_key_counts_once(device):
    cache = filled(filled(RunCache(2 * EACH, EACH), 1), 1)
    with pytest.raises(ValueError, match=r"attention cache must stay within .* got more at step 2"):
        filled(cache, 3)
    assert where(cache, 3) == ["cuda", "cpu", None] and (cache.size, len(cache)) == (2 * EACH, 2)
    cache.freeze()
    assert len(filled(cache, 3)) == 2
    cache.clear()
    assert (cache.size, len(cache)) == (0, 0) and where(filled(cache, 2), 2) == ["cuda", "cpu"]


def test_columns_of_a_mask_count_and_go_with_their_keys(device):
    assert bytes_of(operand(masked=True)) == EACH + 16 * 4
    held = filled(RunCache(9**9, EACH), 1, masked=True).get(SITE, Step(0, 9, 0.5), WHO, "k")
    assert (held.tensor.device.type, held.mask.device.type) == ("cpu", "cpu")
    with pytest.raises(ValueError, match="attention cache must stay within"):
        filled(RunCache(EACH), 1, masked=True)


@pytest.mark.parametrize("site", [self_site(), joint_site()], ids=["self", "joint"])
def test_what_was_spilled_comes_back_to_the_device(site, device):
    """Keys, values and the mask's columns of a call are all on one device, wherever they have waited."""
    tokens, seen, cache = 16 + (0 if site.text is None else 5), [], RunCache(9**9)

    def watched(q, k, v, mask):
        seen.append([tensor.device.type for tensor in (q, k, v, mask)])
        return attend(q, k, v, mask)

    for rows in SOURCE, TARGET:
        call = (torch.empty(1, 3, tokens, 8, device="cuda") for _ in range(3))
        mask = torch.empty(1, 1, 1, tokens, device="cuda")
        run([rule(SWAP)], site, *call, rows, cache, mask, watched, Step(0, 9, 0.5))
    assert seen == [["cuda"] * 4] * 2 and len(cache) == 2
