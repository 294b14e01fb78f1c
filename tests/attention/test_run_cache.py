"""A cache's budgets, on a device that torch only pretends to have."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from retrace.attention import Call, Executor, Rows, Rule, RunCache, Step, Take, Term
from retrace.attention.cached_operand import CachedOperand
from retrace.attention.run_cache import bytes_of
from retrace_tests.attention.problems import attend, joint_site, self_site

SITE = self_site()
WHO = ("source", "cond", 0)
EACH = 3 * 16 * 8 * 4


@pytest.fixture(autouse=True)
def device():
    """Tensors have no numbers here, so that they may be said to lie anywhere."""
    with FakeTensorMode(), torch.no_grad():
        yield


def kept(masked=False, tokens=16):
    mask = torch.empty(1, 1, tokens, device="cuda") if masked else None
    return CachedOperand(torch.empty(3, tokens, 8, device="cuda"), (0, tokens), None, mask)


def where(cache, steps):
    """Kind of device of what was kept in each step."""
    found = [cache.get(SITE, Step(index, 9, 0.5), WHO, "k") for index in range(steps)]
    return [None if each is None else each.tensor.device.type for each in found]


def filled(cache, steps, **about):
    for index in range(steps):
        cache.put(SITE, Step(index, 9, 0.5), WHO, "k", kept(**about))
    return cache


@pytest.mark.parametrize(("on_device", "stays"), [(0, 0), (EACH - 1, 0), (2 * EACH, 2), (3 * EACH - 1, 2), (9**9, 4)])
def test_what_is_beyond_the_budget_of_the_device_lies_in_memory(on_device, stays):
    cache = filled(RunCache(9**9, on_device), 4)
    assert where(cache, 4) == ["cuda"] * stays + ["cpu"] * (4 - stays) and cache.size == 4 * EACH


def test_what_is_kept_twice_counts_once():
    cache = filled(filled(filled(RunCache(2 * EACH, EACH), 1), 1), 2)
    assert where(cache, 2) == ["cuda", "cpu"] and (cache.size, len(cache)) == (2 * EACH, 2)


def test_columns_of_a_mask_count_and_go_with_their_keys():
    assert bytes_of(kept(masked=True)) == EACH + 16 * 4
    cache = filled(RunCache(9**9, EACH), 1, masked=True)
    found = cache.get(SITE, Step(0, 9, 0.5), WHO, "k")
    assert (found.tensor.device.type, found.mask.device.type) == ("cpu", "cpu")
    with pytest.raises(ValueError, match="attention cache must stay within"):
        filled(RunCache(EACH), 1, masked=True)


def test_a_bank_that_is_full_keeps_what_it_has():
    cache = RunCache(2 * EACH, EACH)
    with pytest.raises(ValueError, match=r"must stay within .* got more at step 2"):
        filled(cache, 3)
    assert where(cache, 3) == ["cuda", "cpu", None] and cache.size == 2 * EACH
    cache.clear()
    assert cache.size == 0 and where(filled(cache, 2), 2) == ["cuda", "cpu"]


@pytest.mark.parametrize("site", [self_site(), joint_site()], ids=["self", "joint"])
def test_what_was_spilled_comes_back_to_the_device(site):
    """Keys, values and the mask's columns of a call are all on one device, wherever they have waited."""
    tokens = 16 + (0 if site.text is None else 5)
    rule = Rule("a", (Term(k=Take(), v=Take()),))
    seen = []

    def watched(q, k, v, mask):
        seen.append([tensor.device.type for tensor in (q, k, v, mask)])
        return attend(q, k, v, mask)

    cache = RunCache(9**9)
    for branch in ("source", "target"):
        q, k, v = (torch.empty(1, 3, tokens, 8, device="cuda") for _ in range(3))
        mask = torch.empty(1, 1, 1, tokens, device="cuda")
        rows = Rows((branch,), ("cond",), (0,))
        Executor([rule]).run(site, rows, Step(0, 9, 0.5), Call(q, k, v, watched, mask), cache)
    assert seen == [["cuda"] * 4] * 2 and len(cache) == 2
