"""The executor: what stays untouched, what a rule costs, rows in any order, one forward or several, refusals."""

from dataclasses import replace

import pytest
import torch

from retrace.attention import (
    OWN,
    SOURCE,
    TARGET,
    Call,
    EvaluationCache,
    Executor,
    Join,
    Layers,
    Rows,
    Take,
    Term,
    Window,
)
from retrace_tests.attention.forms import EVERY, PLACES, STRUCTURE, SWAP, both, rule, run
from retrace_tests.attention.problems import STEP, Counted, attend, cross_site, joint_site, pair, self_site, tensors

FORMS = pytest.mark.parametrize("name", [name for name in EVERY if name != "no word"])
ONE = {branch: Rows((branch,), ("cond",), (0,)) for branch in ("source", "target")}
IDLE = {
    "no rule": [],
    "strength 0": [rule(SWAP, strength=0.0)],
    "closed window": [rule(SWAP, window=Window(0.5, 1.0))],
    "empty window": [rule(SWAP, window=Window(0.0, 0.0))],
    "other layers": [rule(SWAP, layers=Layers.parse("input:0-3"))],
    "other kind": [rule(SWAP, kinds=("cross",))],
    "other branch": [rule(SWAP, branch="mutual")],
    "other chunk": [rule(SWAP, chunks=("uncond",))],
    "finer than the limit": [rule(SWAP, limit=0.25)],
    "resting gate": [rule(SWAP, gate=lambda step: False)],
}


@pytest.mark.parametrize("name", IDLE)
def test_without_an_active_rule_the_call_is_the_networks_own(name):
    site, counted = self_site(latent=(1, 8, 8)), Counted()
    q, k, v = tensors(site)
    out = run(IDLE[name], site, q, k, v, attention=counted)
    assert len(counted.calls) == 1 and all(have is want for have, want in zip(counted.calls[0], (q, k, v, None)))
    assert torch.equal(out, attend(q, k, v))


@pytest.mark.parametrize("place", PLACES)
def test_a_swap_costs_no_call_and_writes_on_nothing(place):
    site, counted, mask = PLACES[place], Counted(), torch.zeros(1, 1, 1, 1)
    q, k, v = tensors(site)
    before, mask = [tensor.clone() for tensor in (q, k, v)], mask.expand(1, 1, 1, k.shape[2])
    out = run([rule(SWAP)], site, q, k, v, attention=counted, mask=mask)
    ((queries, keys, values, columns),) = counted.calls
    assert queries is q and columns is mask and torch.equal(out[0], attend(q, k, v, mask)[0])
    assert all(torch.equal(have, want) for have, want in zip((q, k, v), before))
    if site.kind != "joint":
        # Rows that read the same share it without a copy.
        assert (keys.data_ptr(), values.data_ptr()) == (k.data_ptr(), v.data_ptr())
        assert keys.stride(0) == values.stride(0) == 0


@pytest.mark.parametrize("place", PLACES)
def test_all_of_k_and_v_make_equal_queries_equal(place):
    """Reproduction: with the queries equal too, the target is the source bit for bit."""
    q, k, v = tensors(PLACES[place])
    q[1] = q[0]
    assert torch.equal(*run([rule(SWAP, group="all")], PLACES[place], q, k, v))
    for form in "union", "values", "structure":
        same = [tensor[:1].repeat(2, 1, 1, 1) for tensor in (q, k, v)]
        torch.testing.assert_close(run(EVERY[form], PLACES[place], *same), attend(*same), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "place", "rows", "keys"),
    [
        ("every word taken", "cross", [2], 10),
        ("words", "cross", [2, 1], 15),
        ("weights", "cross", [2], 10),
        ("blended outputs", "cross", [2, 1], 15),
        # Fore- and background cost no more keys than one call.
        ("fore- and background", "self", None, 32),
    ],
)
def test_what_a_form_costs(name, place, rows, keys):
    site, counted = PLACES[place], Counted()
    run(EVERY[name], site, *tensors(site), attention=counted)
    assert rows is None or [call[0].shape[0] for call in counted.calls] == rows
    assert sum(call[1].shape[2] * call[0].shape[0] for call in counted.calls) == keys


@FORMS
def test_rows_may_be_asked_for_in_any_way(name, monkeypatch):
    """In another order, chunks in calls of their own, branches in forwards of their own, pieces one by one."""
    site, rules = PLACES["joint"], EVERY[name]
    branches, chunks, items = ("source", "target") * 4, ("cond",) * 4 + ("uncond",) * 4, (0, 0, 1, 1) * 2
    call, stacked, single = tensors(site, rows=8), Counted(), Counted()
    whole = run(rules, site, *call, Rows(branches, chunks, items), attention=stacked)
    plain = attend(*call)
    assert float((whole[::2] - plain[::2]).abs().max()) <= 1e-6 and not torch.allclose(whole[1::2], plain[1::2])

    def asked(order, **about):
        rows = Rows(*(tuple(entry[row] for row in order) for entry in (branches, chunks, items)))
        out = run(rules, site, *(tensor[order] for tensor in call), rows, **about)
        assert float((out - whole[order]).abs().max()) <= 2e-6

    for order in ([7, 2, 5, 0, 3, 6, 1, 4], [4, 5, 6, 7], [1, 0], [5, 4, 6, 7]):
        asked(order)
    cache = EvaluationCache()
    for order in ([0, 2], [1, 3]):
        asked(order, cache=cache)
    # Nothing is kept that no rule reads.
    assert len(cache) == 2 * len(Executor(rules).needs(site, STEP))
    monkeypatch.setattr("retrace.attention.calls.STACKED", 0)
    asked(list(range(8)), attention=single)
    # A call of every row stays one call.
    assert {call[0].shape[0] for call in single.calls} <= {1, 8} and len(single.calls) >= len(stacked.calls)


@FORMS
def test_answers_lie_as_the_networks_own_do_and_gradients_pass(name):
    """Tokens before heads, so that what stands behind the attention need not turn them."""
    site = PLACES["joint"]
    call = [tensor.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for tensor in tensors(site)]
    out = run(EVERY[name], site, *call)
    assert out.transpose(1, 2).is_contiguous()
    out.square().sum().backward()
    assert all(bool(tensor.grad.isfinite().all()) and bool(tensor.grad.any()) for tensor in call)


def test_only_what_a_further_call_reads_is_kept():
    site, cache = self_site(), EvaluationCache()
    run([rule(SWAP)], site, *tensors(site), cache=cache)
    assert len(cache) == 0
    executor, call = Executor([rule(SWAP, source_for="shared")]), Call(*tensors(site), attend)
    for chunk in "cond", "uncond":
        executor.run(site, pair(chunk=chunk), STEP, call, cache)
        assert len(cache) == 2
    cache.clear()
    executor.chunks = ("cond",)
    executor.run(site, pair(), STEP, call, cache)
    assert len(cache) == 0
    for group, length in (("image", 16), ("all", 21)):
        run([rule(SWAP, group=group)], joint_site(), *tensors(joint_site(), rows=1), ONE["source"], cache)
        assert cache.get(joint_site(), STEP, ("source", "cond", 0), "k").length == length


def test_who_serves_whom():
    """A shared source serves both chunks, one reference a whole batch; else each chunk wants its own."""
    site = self_site()
    q, k, v = tensors(site, rows=3)
    want = attend(q[1:], k[[0, 0]], v[[0, 0]])
    chunks = Rows(("source", "target", "target"), ("cond", "cond", "uncond"), (0, 0, 0))
    assert torch.equal(run([rule(SWAP, source_for="shared")], site, q, k, v, chunks)[1:], want)
    batch = replace(chunks, chunks=("cond",) * 3, items=(0, 0, 1))
    assert torch.equal(run([rule(SWAP)], site, q, k, v, batch)[1:], want)
    with pytest.raises(ValueError, match="k of branch 'source' must be known before rule a reads it .* for uncond"):
        run([rule(SWAP)], site, q, k, v, chunks)


def test_three_branches_read_each_other_before_any_edit():
    """The mutual branch takes the target's own queries, not the ones that the target was given."""
    site = self_site()
    q, k, v = tensors(site, rows=3)
    rules = [rule(STRUCTURE), rule(Term(q=Take(TARGET), k=Take(), v=Take()), branch="mutual")]
    out = run(rules, site, q, k, v, Rows(("source", "target", "mutual"), ("cond",) * 3, (0,) * 3))
    assert torch.equal(out[1:], attend(q[[0, 1]], k[[0, 0]], v[[1, 0]]))


@pytest.mark.parametrize("group", ["image", "text", "all"])
def test_text_keys_belong_to_every_group_and_may_be_of_any_number(group):
    there, here, cache = cross_site(text=9), cross_site(text=6), EvaluationCache()
    q, k, v = tensors(there, rows=1)
    own = tensors(here, rows=1, seed=1)
    rules = [rule(SWAP, group=group)]
    run(rules, there, q, k, v, ONE["source"], cache)
    assert torch.equal(run(rules, here, *own, ONE["target"], cache), attend(own[0], k, v))


@pytest.mark.parametrize(
    "kinds", ["boolean then additive", "additive then boolean", "none then additive", "boolean then none"]
)
def test_branches_with_masks_of_different_kinds(kinds):
    """Keys of both branches side by side, each with its own kind of mask."""
    site, cache, (first, second) = cross_site(text=6), EvaluationCache(), kinds.split(" then ")
    q, k, v = tensors(site)
    bias = torch.zeros(2, 1, 1, 6)
    bias[0, ..., 3], bias[1, ..., 1:3] = -torch.inf, -torch.inf
    for row, kind in ((0, first), (1, second)):
        mask = {"boolean": bias[row : row + 1] == 0, "additive": bias[row : row + 1], "none": None}[kind]
        rows = ONE[("source", "target")[row]]
        out = run([rule(both(OWN, SOURCE))], site, *(t[row : row + 1] for t in (q, k, v)), rows, cache, mask)
    columns = torch.cat([bias[row] * 0 if kind == "none" else bias[row] for row, kind in ((1, second), (0, first))], -1)
    k, v = (torch.cat([tensor[1:], tensor[:1]], 2) for tensor in (k, v))
    want = attend(q[1:], k, v, columns.nan_to_num(0.0, neginf=-torch.inf))
    torch.testing.assert_close(out, want)


def test_refusals():
    def said(sentence, rules, site, **about):
        with pytest.raises(ValueError, match=sentence):
            run(rules, site, *tensors(site, **about))

    def said_of_two(sentence, rules, there, here):
        cache = EvaluationCache()
        run(rules, there, *tensors(there, rows=1), ONE["source"], cache)
        with pytest.raises(ValueError, match=sentence):
            run(rules, here, *tensors(here, rows=1), ONE["target"], cache)

    said("rows must be one a batch row, got 2 for 3", [], self_site(), rows=3)
    one, two = (replace(rule(term), name=name) for name, term in (("one", SWAP), ("two", STRUCTURE)))
    said("must replace different operands, got k from one and two", [one, two], self_site())
    mapped = [replace(EVERY["weights"][0], name=name) for name in ("one", "two")]
    said("got output from one and two", mapped, PLACES["cross"])
    texts, values = (joint_site(text=7), joint_site(text=4)), Term(v=Take())
    said_of_two("keys and values must be equally many, got 20 and 23", [rule(values, group="all")], *texts)
    half = [rule(values, group="all", strength=0.5)]
    said_of_two("tokens of both branches must be equally many .* got 23 and 20", half, *texts)
    grids = self_site(grid=(1, 4, 4)), self_site(grid=(1, 4, 3))
    for form in "union", "keys and values", "two operands of two rules":
        said_of_two("branches source and target must be of one size .* got 16 and 12", EVERY[form], *grids)
    with pytest.raises(ValueError, match="q of rule a must keep its tokens, got Join"):
        rule(Term(q=Join()))
    with pytest.raises(ValueError, match="k and v of rule a must both be a Join, got one"):
        rule(Term(k=Join()))
    with pytest.raises(ValueError, match="strength must lie between 0 and 1, got 2"):
        rule(SWAP, strength=2.0)
    with pytest.raises(ValueError, match="start and end must satisfy"):
        Window(0.5, 0.4)
