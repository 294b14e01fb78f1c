"""The executor: swaps, what stays untouched, rows in any order, one forward or several, the host's own mask."""

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
    Gather,
    Join,
    Layers,
    Mask,
    Mix,
    Rows,
    Rule,
    Step,
    Take,
    Term,
    ValueMap,
    Window,
)
from retrace_tests.attention.problems import STEP, Counted, attend, cross_site, joint_site, pair, self_site, tensors

MUTUAL = Term(k=Take(), v=Take())
STRUCTURE = Term(q=Take(), k=Take())
PLACES = {"self": self_site(), "txt": joint_site(), "img": joint_site(text_first=False)}
SITES = pytest.mark.parametrize("site", PLACES.values(), ids=PLACES)


def run(rules, site, q, k, v, rows=None, step=STEP, attention=attend, cache=None, **more):
    return Executor(rules).run(site, rows or pair(), step, Call(q, k, v, attention, **more), cache)


IDLE = {
    "no rule": [],
    "strength 0": [Rule("a", (MUTUAL,), strength=0.0)],
    "closed window": [Rule("a", (MUTUAL,), window=Window(0.5, 1.0))],
    "empty window": [Rule("a", (MUTUAL,), window=Window(0.0, 0.0))],
    "other layers": [Rule("a", (MUTUAL,), layers=Layers.parse("input:0-3"))],
    "other kind": [Rule("a", (MUTUAL,), kinds=("cross",))],
    "other branch": [Rule("a", (MUTUAL,), branch="mutual")],
    "other chunk": [Rule("a", (MUTUAL,), chunks=("uncond",))],
    "finer than the limit": [Rule("a", (MUTUAL,), limit=0.25)],
    "resting gate": [Rule("a", (MUTUAL,), gate=lambda step: False)],
}


@pytest.mark.parametrize("name", IDLE)
def test_without_an_active_rule_the_call_is_the_networks_own(name):
    site = self_site(latent=(1, 8, 8))
    q, k, v = tensors(site)
    counted = Counted()
    out = run(IDLE[name], site, q, k, v, attention=counted)
    assert len(counted.calls) == 1 and all(have is want for have, want in zip(counted.calls[0], (q, k, v, None)))
    assert torch.equal(out, attend(q, k, v))


@SITES
def test_a_swap_costs_no_call_and_leaves_the_source(site):
    q, k, v = tensors(site)
    before = [tensor.clone() for tensor in (q, k, v)]
    counted = Counted()
    out = run([Rule("masactrl", (MUTUAL,))], site, q, k, v, attention=counted)
    image = slice(*site.image)
    k2, v2 = k.clone(), v.clone()
    k2[1, :, image], v2[1, :, image] = k[0, :, image], v[0, :, image]
    assert len(counted.calls) == 1 and counted.calls[0][0] is q
    assert torch.equal(out, attend(q, k2, v2))
    assert torch.equal(out[0], attend(q, k, v)[0]) and not torch.allclose(out[1], attend(q, k, v)[1])
    assert all(torch.equal(have, want) for have, want in zip((q, k, v), before))


@SITES
def test_all_tokens_of_k_and_v_make_equal_queries_equal(site):
    """Reproduction: with the queries equal too, the target is the source bit for bit."""
    q, k, v = tensors(site)
    q[1] = q[0]
    out = run([Rule("all", (MUTUAL,), group="all")], site, q, k, v)
    assert torch.equal(out[0], out[1])
    # What fails, as it must: values alone, or maps alone.
    for term in (Term(v=Take()), STRUCTURE):
        other = run([Rule("part", (term,), group="all")], site, q, k, v)
        assert not torch.allclose(other[0], other[1])


@SITES
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_swaps_of_equal_rows_are_no_ops(site, name):
    q, k, v = (tensor[:1].repeat(2, 1, 1, 1) for tensor in tensors(site))
    out = run([Rule("a", (Term(**{name: Take()}),))], site, q, k, v)
    assert torch.equal(out, attend(q, k, v))


def everything():
    """One rule of every form that an edit can take, for a joint site with 5 text tokens."""
    both, gather = Join((OWN, SOURCE)), Gather(SOURCE, Mask((torch.arange(16).reshape(1, 4, 4) % 3 > 0).float()))
    half = ValueMap(torch.eye(5) * 0.5, 0.0), ValueMap(torch.ones(5) * 0.5)
    words = (Term(q=Take(), k=Take(), values=half[0]), Term(values=half[1]))
    mask = Mask(torch.linspace(0, 1, 16).reshape(1, 4, 4))
    return {
        "swap": Rule("a", (MUTUAL,)),
        "mix": Rule("a", (Term(q=Mix(weight=0.3)),)),
        "masked": Rule("a", (MUTUAL,), mask=mask),
        "join": Rule("a", (Term(k=both, v=both),)),
        "gather": Rule("a", (Term(k=gather, v=gather),)),
        "words": Rule("a", words, group="all", queries="image"),
        "blend": Rule("a", (STRUCTURE,), strength=0.4, blend="output"),
    }


@pytest.mark.parametrize("name", everything())
def test_rows_may_come_in_any_order_and_chunks_in_any_call(name):
    """The same rows in one call, in another order, and cond and uncond in calls of their own."""
    site, rule = joint_site(), everything()[name]
    branches, chunks, items = ("source", "target") * 4, ("cond",) * 4 + ("uncond",) * 4, (0, 0, 1, 1) * 2
    q, k, v = tensors(site, rows=8)
    whole = run([rule], site, q, k, v, Rows(branches, chunks, items))
    plain = attend(q, k, v)
    assert torch.equal(whole[::2], plain[::2]) or float((whole[::2] - plain[::2]).abs().max()) <= 1e-6
    assert not torch.allclose(whole[1::2], plain[1::2])
    for order in ([7, 2, 5, 0, 3, 6, 1, 4], [4, 5, 6, 7], [1, 0], [5, 4, 6, 7]):
        rows = Rows(*(tuple(entry[row] for row in order) for entry in (branches, chunks, items)))
        some = run([rule], site, q[order], k[order], v[order], rows)
        assert float((some - whole[order]).abs().max()) <= 1e-6


GRIDS = [((1, 3, 5), (1, 9, 20)), ((2, 4, 3), (2, 7, 6)), ((3, 2, 4), (3, 4, 7))]


@pytest.mark.parametrize(("grid", "latent"), GRIDS, ids=["landscape", "clip", "odd clip"])
@pytest.mark.parametrize("name", [name for name in everything() if name not in ("masked", "gather")])
def test_any_grid(name, grid, latent):
    """Wide, tall, odd and moving pictures: a mask of ones is no mask, one of zeros no edit, and rows stay apart."""
    site, rule = joint_site(text=5, grid=grid, latent=latent), everything()[name]
    q, k, v = tensors(site, rows=4)
    out, plain = (run(rules, site, q, k, v, pair(items=2)) for rules in ([rule], []))
    assert float((out[:2] - plain[:2]).abs().max()) <= 1e-6 and not torch.allclose(out[2:], plain[2:])
    for weights, want in ((torch.ones, out), (torch.zeros, plain)):
        masked = replace(rule, mask=Mask(weights(2, *latent)))
        assert float((run([masked], site, q, k, v, pair(items=2)) - want).abs().max()) <= 1e-6
    # One picture's mask is not the other's.
    each = torch.zeros(2, *latent)
    each[1] = 1.0
    some = run([replace(rule, mask=Mask(each))], site, q, k, v, pair(items=2))
    assert float((some - torch.stack([plain[0], plain[1], plain[2], out[3]])).abs().max()) <= 1e-6


@pytest.mark.parametrize("name", everything())
def test_one_forward_and_one_after_the_other_agree(name):
    site, rule, cache = joint_site(), everything()[name], EvaluationCache()
    q, k, v = tensors(site, rows=4)
    rows = pair(items=2)
    whole = run([rule], site, q, k, v, rows)
    executor = Executor([rule])
    parts = []
    for start, branch in ((0, "source"), (2, "target")):
        some = [tensor[start : start + 2] for tensor in (q, k, v)]
        parts.append(executor.run(site, Rows((branch,) * 2, ("cond",) * 2, (0, 1)), STEP, Call(*some, attend), cache))
    assert float((torch.cat(parts) - whole).abs().max()) <= 1e-6
    # Nothing is kept that no rule reads.
    asked = {name for _, name in executor.needs(site, STEP)}
    assert len(cache) == 2 * len(asked)


@pytest.mark.parametrize("name", everything())
def test_large_pieces_are_asked_for_one_by_one(name, monkeypatch):
    """A copy into a common batch would cost more than a call; the answers are the same."""
    site, rule = joint_site(), everything()[name]
    q, k, v = tensors(site, rows=4)
    stacked, single = Counted(), Counted()
    whole = run([rule], site, q, k, v, pair(items=2), attention=stacked)
    monkeypatch.setattr("retrace.attention.calls.STACKED", 0)
    parts = run([rule], site, q, k, v, pair(items=2), attention=single)
    assert float((whole - parts).abs().max()) <= 1e-6
    # A call of every row stays one call.
    assert {call[0].shape[0] for call in single.calls} <= {1, 4} and len(single.calls) >= len(stacked.calls)


def test_rows_that_read_the_same_share_it_without_a_copy():
    site = self_site()
    q, k, v = tensors(site)
    counted = Counted()
    run([Rule("a", (MUTUAL,))], site, q, k, v, attention=counted)
    ((_, keys, values, _),) = counted.calls
    assert keys.data_ptr() == k.data_ptr() and values.data_ptr() == v.data_ptr()
    assert keys.stride(0) == values.stride(0) == 0


@pytest.mark.parametrize("name", everything())
def test_answers_lie_as_the_networks_own_do(name):
    """Tokens before heads, so that what stands behind the attention need not turn them."""
    site, rule = joint_site(), everything()[name]
    q, k, v = (tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in tensors(site))
    out = run([rule], site, q, k, v)
    assert out.transpose(1, 2).is_contiguous()


def test_nothing_is_kept_where_all_readers_are_in_the_call():
    site, cache = self_site(), EvaluationCache()
    run([Rule("a", (MUTUAL,))], site, *tensors(site), cache=cache)
    assert len(cache) == 0


def test_only_what_a_further_chunk_reads_is_kept():
    site, cache = self_site(), EvaluationCache()
    executor = Executor([Rule("a", (MUTUAL,), source_for="shared")])
    q, k, v = tensors(site, rows=2)
    executor.run(site, pair(), STEP, Call(q, k, v, attend), cache)
    assert len(cache) == 2
    executor.run(site, pair(chunk="uncond"), STEP, Call(q, k, v, attend), cache)
    assert len(cache) == 2
    cache.clear()
    executor.chunks = ("cond",)
    executor.run(site, pair(), STEP, Call(q, k, v, attend), cache)
    assert len(cache) == 0


def test_only_image_tokens_are_kept_unless_text_is_read():
    site, rows = joint_site(text=5), Rows(("source",), ("cond",), (0,))
    for rule, length in ((Rule("a", (MUTUAL,)), 16), (Rule("a", (MUTUAL,), group="all"), 21)):
        cache = EvaluationCache()
        run([rule], site, *tensors(site, rows=1), rows, cache=cache)
        assert cache.get(site, STEP, ("source", "cond", 0), "k").length == length


def test_shared_source_serves_both_chunks_and_both_wants_its_own():
    site = self_site()
    q, k, v = tensors(site, rows=3)
    rows = Rows(("source", "target", "target"), ("cond", "cond", "uncond"), (0, 0, 0))
    out = run([Rule("a", (MUTUAL,), source_for="shared")], site, q, k, v, rows)
    assert torch.equal(out[1:], attend(q[1:], k[:1].expand(2, -1, -1, -1), v[:1].expand(2, -1, -1, -1)))
    with pytest.raises(ValueError, match="k of branch 'source' must be known before rule a reads it .* for uncond"):
        run([Rule("a", (MUTUAL,))], site, q, k, v, rows)


def test_one_reference_serves_a_whole_batch():
    site = self_site()
    q, k, v = tensors(site, rows=3)
    rows = Rows(("source", "target", "target"), ("cond",) * 3, (0, 0, 1))
    out = run([Rule("a", (MUTUAL,))], site, q, k, v, rows)
    assert torch.equal(out[2], attend(q[2:], k[:1], v[:1])[0])


def test_windows_that_meet_are_one_window():
    site = self_site()
    q, k, v = tensors(site)
    first, second = Rule("a", (MUTUAL,), window=Window(0.1, 0.4)), Rule("b", (MUTUAL,), window=Window(0.4, 0.8))
    whole = Rule("a", (MUTUAL,), window=Window(0.1, 0.8))
    for index in range(10):
        step = Step(index, 10, 1.0)
        some = run([first, second], site, q, k, v, step=step)
        assert torch.equal(some, run([whole], site, q, k, v, step=step))
        assert torch.equal(some, attend(q, k, v)) == (index not in range(1, 8))


def test_rules_compose_operands_first():
    """A value map after a swap acts on the swapped operands."""
    site = cross_site(text=6)
    q, k, v = tensors(site)
    weights = torch.linspace(0, 2, 6)
    swap = Rule("swap", (Term(q=Take()),), kinds=("cross",))
    scale = Rule("scale", (Term(values=ValueMap(weights)),), kinds=("cross",), group="all", queries="image")
    want = attend(q[:1], k[1:], v[1:] * weights[:, None])
    for rules in ([swap, scale], [scale, swap]):
        torch.testing.assert_close(run(rules, site, q, k, v)[1:], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("group", ["image", "text", "all"])
def test_text_keys_belong_to_every_group(group):
    site = cross_site(text=6)
    q, k, v = tensors(site)
    rule, cache = Rule("a", (MUTUAL,), kinds=("cross",), group=group), EvaluationCache()
    assert torch.equal(run([rule], site, q, k, v), attend(q, k[[0, 0]], v[[0, 0]]))
    # Keys and values together may be of any number.
    other = tensors(cross_site(text=9), rows=1)
    run([rule], cross_site(text=9), *other, Rows(("source",), ("cond",), (0,)), cache=cache)
    out = run([rule], site, q[1:], k[1:], v[1:], Rows(("target",), ("cond",), (0,)), cache=cache)
    assert torch.equal(out, attend(q[1:], *other[1:]))


def test_a_mask_at_a_cross_site_blends_outputs():
    """Text keys have no place in the picture, so that a mask weighs what the image queries read."""
    site = cross_site(text=6)
    q, k, v = tensors(site)
    weights = torch.linspace(0, 1, 16)
    out = run([Rule("a", (MUTUAL,), kinds=("cross",), mask=Mask(weights.reshape(1, 4, 4)))], site, q, k, v)
    want = torch.lerp(attend(q, k, v)[1], attend(q[1:], k[:1], v[:1])[0], weights[:, None])
    torch.testing.assert_close(out[1], want, rtol=0, atol=1e-6)


def test_two_rules_on_one_operand_are_refused():
    site = self_site()
    q, k, v = tensors(site)
    with pytest.raises(ValueError, match="must replace different operands, got k from one and two"):
        run([Rule("one", (MUTUAL,)), Rule("two", (STRUCTURE,))], site, q, k, v)
    words = Rule("words", (Term(values=ValueMap(torch.ones(6))),), kinds=("cross",), group="all", queries="image")
    more = Rule("more", words.terms, kinds=("cross",), group="all", queries="image")
    site = cross_site(text=6)
    with pytest.raises(ValueError, match="got output from words and more"):
        run([words, more], site, *tensors(site))


def test_three_branches_read_each_other_before_any_edit():
    """The mutual branch takes the target's own queries, not the ones that the target was given."""
    site = self_site()
    q, k, v = tensors(site, rows=3)
    rows = Rows(("source", "target", "mutual"), ("cond",) * 3, (0,) * 3)
    rules = [Rule("a", (STRUCTURE,)), Rule("b", (Term(q=Take(TARGET), k=Take(), v=Take()),), branch="mutual")]
    out = run(rules, site, q, k, v, rows)
    assert torch.equal(out[1:2], attend(q[:1], k[:1], v[1:2]))
    assert torch.equal(out[2:], attend(q[1:2], k[:1], v[:1]))


def test_text_of_two_lengths_needs_image_tokens():
    there, here = joint_site(text=7), joint_site(text=4)
    cache, rule = EvaluationCache(), Rule("value", (Term(v=Take()),), group="all")
    run([rule], there, *tensors(there, rows=1), Rows(("source",), ("cond",), (0,)), cache=cache)
    with pytest.raises(ValueError, match="keys and values must be equally many, got 20 and 23"):
        run([rule], here, *tensors(here, rows=1), Rows(("target",), ("cond",), (0,)), cache=cache)
    mixed = Rule("mix", (Term(v=Take()),), group="all", strength=0.5)
    with pytest.raises(ValueError, match="tokens of both branches must be equally many .* got 23 and 20"):
        run([mixed], here, *tensors(here, rows=1), Rows(("target",), ("cond",), (0,)), cache=cache)


def test_pictures_of_two_sizes_are_refused():
    there, here = self_site(grid=(1, 4, 4)), self_site(grid=(1, 4, 3))
    cache = EvaluationCache()
    for rule in everything()["join"], Rule("a", (MUTUAL,)), Rule("b", (Term(q=Take()),)):
        run([rule], there, *tensors(there, rows=1), Rows(("source",), ("cond",), (0,)), cache=cache)
        with pytest.raises(ValueError, match="branches source and target must be of one size .* got 16 and 12"):
            run([rule], here, *tensors(here, rows=1), Rows(("target",), ("cond",), (0,)), cache=cache)


def additive(shape, seed=3):
    mask = torch.zeros(shape)
    mask[torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.7] = float("-inf")
    return mask


def test_a_mask_of_all_rows_stays_as_it_is():
    site = self_site()
    q, k, v = tensors(site)
    mask, counted = additive((1, 1, 1, 16)), Counted()
    run([Rule("a", (MUTUAL,))], site, q, k, v, attention=counted, mask=mask)
    assert len(counted.calls) == 1 and counted.calls[0][3] is mask


@pytest.mark.parametrize("queries", [1, 16])
def test_a_mask_belongs_to_the_keys(queries):
    """A row that takes keys takes their columns: text that is padding for the source is padding wherever it is read."""
    site = cross_site(text=6)
    q, k, v = tensors(site)
    mask = additive((2, 1, queries, 6))
    mask[..., 0] = 0.0
    rule = Rule("a", (MUTUAL,), kinds=("cross",), group="all")
    out = run([rule], site, q, k, v, mask=mask)
    assert torch.equal(out, attend(q, k[[0, 0]], v[[0, 0]], mask[[0, 0]]))
    # The same, with the source in an earlier forward.
    cache = EvaluationCache()
    for row, branch in enumerate(("source", "target")):
        some = [tensor[row : row + 1] for tensor in (q, k, v)]
        part = run([rule], site, *some, Rows((branch,), ("cond",), (0,)), cache=cache, mask=mask[row : row + 1])
    assert torch.equal(part, out[1:])


@pytest.mark.parametrize("text_first", [True, False])
def test_image_keys_of_a_joint_site_bring_their_own_columns(text_first):
    site = joint_site(text=5, text_first=text_first)
    q, k, v = tensors(site)
    image, mask = slice(*site.image), additive((2, 1, 1, 21))
    mask[..., site.text[0]] = 0.0
    out = run([Rule("a", (MUTUAL,))], site, q, k, v, mask=mask)
    k2, v2, columns = k.clone(), v.clone(), mask.clone()
    for tensor in (k2, v2):
        tensor[1, :, image] = (k if tensor is k2 else v)[0, :, image]
    columns[1, ..., image] = mask[0, ..., image]
    assert torch.equal(out, attend(q, k2, v2, columns))


@pytest.mark.parametrize(
    "kinds", ["boolean then additive", "additive then boolean", "none then additive", "boolean then none"]
)
def test_branches_with_masks_of_different_kinds(kinds):
    """Keys of both branches side by side, each with its own kind of mask."""
    site, cache = cross_site(text=6), EvaluationCache()
    q, k, v = tensors(site)
    bias = additive((2, 1, 1, 6))
    bias[..., 0] = 0.0
    shown = {"boolean": lambda row: bias[row : row + 1] == 0, "additive": lambda row: bias[row : row + 1]}
    shown["none"] = lambda row: None
    first, second = kinds.split(" then ")
    both = Join((OWN, SOURCE))
    rule = Rule("a", (Term(k=both, v=both),), kinds=("cross",))
    for row, (branch, kind) in enumerate((("source", first), ("target", second))):
        some = [tensor[row : row + 1] for tensor in (q, k, v)]
        out = run([rule], site, *some, Rows((branch,), ("cond",), (0,)), cache=cache, mask=shown[kind](row))
    columns = [
        torch.zeros(1, 1, 1, 6) if kind == "none" else bias[row : row + 1] for row, kind in ((1, second), (0, first))
    ]
    want = attend(q[1:], torch.cat([k[1:], k[:1]], 2), torch.cat([v[1:], v[:1]], 2), torch.cat(columns, -1))
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("name", everything())
def test_a_mask_of_each_row_in_every_form(name, boolean):
    """The mask's meaning: a key that is masked everywhere may hold anything."""
    site, rule = joint_site(text=5), everything()[name]
    q, k, v = tensors(site)
    mask = torch.zeros(2, 1, 1, 21)
    mask[:, ..., 4] = float("-inf")
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 4], v2[:, :, 4] = 100.0, -50.0
    mask = mask == 0 if boolean else mask
    torch.testing.assert_close(run([rule], site, q, k, v, mask=mask), run([rule], site, q, k2, v2, mask=mask))


def test_masks_of_the_wrong_number_of_rows_are_named():
    site = self_site()
    with pytest.raises(ValueError, match="rows must be one a batch row, got 2 for 3"):
        run([], site, *tensors(site, rows=3))


def test_gradients_pass_and_nothing_is_written_in_place():
    site = joint_site(text=5)
    for rule in everything().values():
        q, k, v = (tensor.requires_grad_() for tensor in tensors(site))
        run([rule], site, q, k, v).square().sum().backward()
        assert all(bool(tensor.grad.isfinite().all()) and bool(tensor.grad.any()) for tensor in (q, k, v))


def test_rules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="q of rule a must keep its tokens, got Join"):
        Rule("a", (Term(q=Join()),))
    with pytest.raises(ValueError, match="k and v of rule a must both be a Join, got one"):
        Rule("a", (Term(k=Join()),))
    with pytest.raises(ValueError, match="strength must lie between 0 and 1, got 2"):
        Rule("a", (MUTUAL,), strength=2.0)
    with pytest.raises(ValueError, match="start and end must satisfy"):
        Window(0.5, 0.4)
