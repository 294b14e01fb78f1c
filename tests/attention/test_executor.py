"""The executor: swaps, what stays untouched, rows in any order, one forward or several."""

import pytest
import torch

from retrace.attention import Executor, Rule, Take, Term
from retrace_tests.attention.problems import STEP, Counted, attend, joint_site, pair, self_site, tensors

MUTUAL = Term(k=Take(), v=Take())


def test_without_a_rule_the_call_is_the_networks_own():
    q, k, v = tensors(self_site())
    counted = Counted()
    out = Executor([]).run(self_site(), pair(), STEP, q, k, v, counted)
    assert len(counted.calls) == 1 and all(have is want for have, want in zip(counted.calls[0], (q, k, v, None)))
    assert torch.equal(out, attend(q, k, v))


@pytest.mark.parametrize("site", [self_site(), joint_site(), joint_site(text_first=False)], ids=["self", "txt", "img"])
def test_a_swap_costs_no_call_and_leaves_the_source(site):
    q, k, v = tensors(site)
    counted = Counted()
    out = Executor([Rule("mutual", (MUTUAL,))]).run(site, pair(), STEP, q, k, v, counted)
    a, b = site.image
    k2, v2 = k.clone(), v.clone()
    k2[1, :, a:b], v2[1, :, a:b] = k[0, :, a:b], v[0, :, a:b]
    assert len(counted.calls) == 1
    assert torch.equal(out, attend(q, k2, v2))
    assert torch.equal(out[0], attend(q, k, v)[0]) and not torch.allclose(out[1], attend(q, k, v)[1])
