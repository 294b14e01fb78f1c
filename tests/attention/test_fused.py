"""Every fused form against explicit probabilities in float64."""

from dataclasses import replace

import pytest
import torch

from retrace.attention import (
    OWN,
    SOURCE,
    Add,
    Call,
    Executor,
    Gather,
    Join,
    Mask,
    Mix,
    Rows,
    Rule,
    Take,
    Term,
    ValueMap,
    complement,
)
from retrace_tests.attention.problems import (
    STEP,
    Counted,
    attend,
    cross_site,
    joint_site,
    pair,
    probabilities,
    self_site,
    tensors,
)

# Largest difference to float64 on unit normals, as the kernels themselves have.
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", CLOSE, ids=lambda dtype: str(dtype).removeprefix("torch."))
ORDERS = pytest.mark.parametrize("text_first", [True, False], ids=["txt-img", "img-txt"])


def executed(rules, site, q, k, v, rows=None, step=STEP, attention=attend, cache=None, **more):
    return Executor(rules).run(site, rows or pair(), step, Call(q, k, v, attention, **more), cache)


def close(out, want, dtype):
    # bfloat16 rounds what it returns: relative to the largest entry.
    bound = CLOSE[dtype] * (1.0 if dtype == torch.float32 else max(1.0, float(want.abs().max())))
    assert float((out.double() - want).abs().max()) <= bound


def random_map(rows, columns, seed=1):
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(rows, columns, generator=generator) > 0.7
    return torch.rand(rows, columns, generator=generator) * there


def words_rule(taken, own, rest=0.0, **changes):
    terms = (
        Term(q=Take(), k=Take(), values=ValueMap(taken, rest)),
        Term(values=ValueMap(own, 1.0 - rest)),
    )
    about = {"kinds": ("cross", "joint"), "group": "all", "queries": "image"}
    return Rule("words", terms, **{**about, **changes})


@DTYPES
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_replace_with_a_word_schedule_at_a_cross_site(dtype, strength):
    site = cross_site(text=9)
    q, k, v = tensors(site, dtype=dtype)
    matrix, active = random_map(9, 9), (torch.arange(9) % 3 > 0).float()
    rule = words_rule(matrix * active, 1.0 - active, strength=strength)
    out = executed([rule], site, q, k, v)
    source, target = probabilities(q[0], k[0]), probabilities(q[1], k[1])
    mixed = active.double() * (source @ matrix.double()) + (1.0 - active.double()) * target
    close(out[1], (strength * mixed + (1.0 - strength) * target) @ v[1].double(), dtype)
    close(out[0], source @ v[0].double(), dtype)


@DTYPES
def test_refine_and_weights_that_may_be_negative(dtype):
    site = cross_site(text=8)
    q, k, v = tensors(site, dtype=dtype)
    place = torch.tensor([0, 1, 1, 3, 4, 5, 7, 2])
    alpha = torch.tensor([1.0, 1, 0, 1, 0, 1, 1, 0])
    weights = torch.tensor([1.0, 2, 1, -1, 1, 1, 0, 1])
    chosen = torch.zeros(8, 8)
    chosen[place, torch.arange(8)] = 1.0
    rule = words_rule(chosen * (alpha * weights), (1.0 - alpha) * weights)
    out = executed([rule], site, q, k, v)
    source, target = probabilities(q[0], k[0]), probabilities(q[1], k[1])
    a = alpha.double()
    want = (source[..., place] * a + target * (1.0 - a)) * weights.double()
    close(out[1], want @ v[1].double(), dtype)


def test_all_words_active_is_one_call_and_some_are_two():
    site = cross_site(text=6)
    q, k, v = tensors(site)
    counted = Counted()
    executed([words_rule(torch.eye(6), torch.zeros(6))], site, q, k, v, attention=counted)
    assert [call[0].shape[0] for call in counted.calls] == [2]
    counted.calls.clear()
    executed([words_rule(torch.eye(6), torch.ones(6))], site, q, k, v, attention=counted)
    assert [call[0].shape[0] for call in counted.calls] == [2, 1]


def test_a_rule_that_leaves_nothing_gives_zeros():
    site = cross_site(text=6)
    q, k, v = tensors(site)
    out = executed([words_rule(torch.zeros(6, 6), torch.zeros(6))], site, q, k, v)
    assert not out[1].any() and torch.equal(out[0], attend(q, k, v)[0])


@DTYPES
def test_reweight_is_value_scaling(dtype):
    site = cross_site(text=7)
    q, k, v = tensors(site, dtype=dtype)
    weights = torch.linspace(-1.0, 4.0, 7)
    counted = Counted()
    rule = Rule("reweight", (Term(values=ValueMap(weights)),), kinds=("cross",), queries="image", group="all")
    out = executed([rule], site, q, k, v, attention=counted)
    close(out[1], (probabilities(q[1], k[1]) * weights.double()) @ v[1].double(), dtype)
    assert len(counted.calls) == 1


def test_weight_one_is_the_identity_and_zero_takes_the_word_away():
    site = cross_site(text=7)
    q, k, v = tensors(site)
    plain = attend(q, k, v)

    def scaled(weights):
        rule = Rule("reweight", (Term(values=ValueMap(weights)),), kinds=("cross",), queries="image", group="all")
        return executed([rule], site, q, k, v)

    assert torch.equal(scaled(torch.ones(7)), plain)
    gone = v.clone()
    gone[1, :, 3] = 0.0
    weights = torch.ones(7)
    weights[3] = 0.0
    assert torch.equal(scaled(weights)[1], attend(q, k, gone)[1])


@DTYPES
@ORDERS
@pytest.mark.parametrize("rest", [0.0, 1.0], ids=["own image", "source image"])
@pytest.mark.parametrize("kept", [1.0, 0.0], ids=["some words", "all words"])
def test_text_columns_of_a_joint_site(dtype, text_first, rest, kept):
    """Image queries: text columns mapped from the source, image columns the target's own or the source's."""
    site = joint_site(text=5, text_first=text_first)
    q, k, v = tensors(site, dtype=dtype)
    (a, b), (c, d) = site.image, site.text
    matrix, keep = random_map(5, 5), torch.tensor([0.0, 1, 0, 0.5, 0]) * kept
    out = executed([words_rule(matrix, keep, rest)], site, q, k, v)
    source, target = probabilities(q[0], k[0]), probabilities(q[1], k[1])
    want = target.clone()
    want[:, a:b, c:d] = source[:, a:b, c:d] @ matrix.double() + target[:, a:b, c:d] * keep.double()
    if rest:
        want[:, a:b, a:b] = source[:, a:b, a:b]
    close(out[1], want @ v[1].double(), dtype)
    close(out[0], source @ v[0].double(), dtype)


@ORDERS
def test_text_columns_under_a_mask_of_each_query(text_first):
    site = joint_site(text=5, text_first=text_first)
    q, k, v = tensors(site)
    image, text = slice(*site.image), slice(*site.text)
    mask = torch.randn(2, 1, 21, 21, generator=torch.Generator().manual_seed(8))
    matrix, keep = random_map(5, 5), torch.tensor([0.0, 1, 0, 0.5, 0])
    out = executed([words_rule(matrix, keep)], site, q, k, v, mask=mask)
    scores = q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5 + mask.double()
    source, target = scores.softmax(-1)
    want = target.clone()
    want[:, image, text] = source[:, image, text] @ matrix.double() + target[:, image, text] * keep.double()
    close(out[1], want @ v[1].double(), torch.float32)


@ORDERS
def test_a_joint_site_with_another_text_length_in_the_source(text_first):
    """The source's forward is another one, with its own number of text tokens and its own order of them."""
    from retrace.attention import EvaluationCache

    there, here = joint_site(text=7, text_first=not text_first), joint_site(text=4, text_first=text_first)
    qs, ks, vs = tensors(there, rows=1, seed=1)
    qt, kt, vt = tensors(here, rows=1, seed=2)
    cache, matrix, keep = EvaluationCache(), random_map(7, 4), torch.tensor([1.0, 0, 0.5, 0])
    rule = words_rule(matrix, keep)
    executed([rule], there, qs, ks, vs, Rows(("source",), ("cond",), (0,)), cache=cache)
    out = executed([rule], here, qt, kt, vt, Rows(("target",), ("cond",), (0,)), cache=cache)
    source, target = probabilities(qs[0], ks[0]), probabilities(qt[0], kt[0])
    image, text = slice(*here.image), slice(*here.text)
    want = target.clone()
    block = source[:, slice(*there.image), slice(*there.text)]
    want[:, image, text] = block @ matrix.double() + target[:, image, text] * keep.double()
    close(out[0], want @ vt[0].double(), torch.float32)


@pytest.mark.parametrize("rest", [0.0, 1.0], ids=["own image", "source image"])
@pytest.mark.parametrize("fills", [(5, 3), (3, 5), (5, 0), (4, 4)])
def test_texts_that_are_filled_up_by_different_numbers_of_learnt_tokens(fills, rest):
    """Z-Image: text, tokens that fill it up, image. What is missing of them is the last one again."""
    from retrace.attention import EvaluationCache

    (qs, ks, vs), (qt, kt, vt) = (
        tensors(joint_site(text=4), rows=1, seed=seed, extra=fill) for seed, fill in enumerate(fills)
    )
    here, there = (replace(joint_site(text=4), image=(4 + fill, 20 + fill)) for fill in fills)
    cache, matrix, keep = EvaluationCache(), random_map(4, 4), torch.tensor([1.0, 0, 0.5, 0])
    rule = words_rule(matrix, keep, rest)
    executed([rule], here, qs, ks, vs, Rows(("source",), ("cond",), (0,)), cache=cache)
    out = executed([rule], there, qt, kt, vt, Rows(("target",), ("cond",), (0,)), cache=cache)
    (a, b), text = there.image, slice(0, 4)
    source = probabilities(qs[0], ks[0])[:, slice(*here.image)]
    own = probabilities(qt[0], kt[0])[:, a:b]
    v = vt[0].double()
    want = (source[..., text] @ matrix.double() + own[..., text] * keep.double()) @ v[:, text]
    if rest:
        fill = [min(place, fills[1] - 1) for place in range(fills[0])]
        filled = v[:, 4:a][:, fill] if fills[1] else torch.zeros(3, fills[0], 8, dtype=torch.float64)
        want = want + source[..., 4:] @ torch.cat([filled, v[:, a:b]], 1)
    else:
        want = want + own[..., 4:] @ v[:, 4:]
    close(out[0, :, a:b], want, torch.float32)


@ORDERS
def test_self_replace_at_a_joint_site_takes_image_tokens_of_any_prompt_length(text_first):
    from retrace.attention import EvaluationCache

    there, here = joint_site(text=7, text_first=text_first), joint_site(text=4, text_first=text_first)
    qs, ks, vs = tensors(there, rows=1, seed=1)
    qt, kt, vt = tensors(here, rows=1, seed=2)
    cache, rule = EvaluationCache(), Rule("structure", (Term(q=Take(), k=Take()),))
    executed([rule], there, qs, ks, vs, Rows(("source",), ("cond",), (0,)), cache=cache)
    out = executed([rule], here, qt, kt, vt, Rows(("target",), ("cond",), (0,)), cache=cache)
    q, k = qt.clone(), kt.clone()
    q[:, :, slice(*here.image)] = qs[:, :, slice(*there.image)]
    k[:, :, slice(*here.image)] = ks[:, :, slice(*there.image)]
    assert torch.equal(out, attend(q, k, vt))


def test_repeated_text_is_cut_back_to_the_lengths_of_the_map():
    """The host brings prompts of 6 and 4 tokens to 12 by repetition, which leaves cross-attention as it is."""
    site = cross_site(text=12)
    q, _, _ = tensors(site)
    _, short_k, short_v = tensors(cross_site(text=6), rows=1, seed=3)
    _, other_k, other_v = tensors(cross_site(text=4), rows=1, seed=4)
    k = torch.cat([short_k.repeat(1, 1, 2, 1), other_k.repeat(1, 1, 3, 1)])
    v = torch.cat([short_v.repeat(1, 1, 2, 1), other_v.repeat(1, 1, 3, 1)])
    matrix, keep = random_map(6, 4), torch.tensor([1.0, 0, 0.5, 1])
    out = executed([words_rule(matrix, keep)], site, q, k, v)
    source, target = probabilities(q[0], short_k[0]), probabilities(q[1], other_k[0])
    close(out[1], (source @ matrix.double() + target * keep.double()) @ other_v[0].double(), torch.float32)


def test_a_map_of_another_length_is_refused():
    site = cross_site(text=7)
    q, k, v = tensors(site)
    with pytest.raises(ValueError, match="token map must fit the text .* got 7 keys for 5 tokens"):
        executed([words_rule(torch.eye(5), torch.zeros(5))], site, q, k, v)


@DTYPES
def test_union_is_one_softmax_over_both(dtype):
    site = self_site()
    q, k, v = tensors(site, dtype=dtype)
    both = Join((OWN, SOURCE))
    out = executed([Rule("union", (Term(k=both, v=both),))], site, q, k, v)
    keys, values = torch.cat([k[1], k[0]], 1), torch.cat([v[1], v[0]], 1)
    close(out[1], probabilities(q[1], keys) @ values.double(), dtype)
    close(out[0], probabilities(q[0], k[0]) @ v[0].double(), dtype)


@ORDERS
def test_union_at_a_joint_site_keeps_the_own_text(text_first):
    site = joint_site(text_first=text_first)
    q, k, v = tensors(site)
    image = slice(*site.image)
    k2, v2 = k[1].clone(), v[1].clone()
    k2[:, image], v2[:, image] = k[0, :, image], v[0, :, image]
    keys, values = torch.cat([k[1], k2], 1), torch.cat([v[1], v2], 1)
    for branches in ((OWN, SOURCE), (SOURCE, OWN)):
        both = Join(branches)
        out = executed([Rule("union", (Term(k=both, v=both),))], site, q, k, v)
        close(out[1], probabilities(q[1], keys) @ values.double(), torch.float32)


@pytest.mark.parametrize("site", [self_site(), joint_site()], ids=["self", "joint"])
def test_union_of_equal_rows_is_plain_attention(site):
    q, k, v = (tensor[:1].repeat(2, 1, 1, 1) for tensor in tensors(site))
    both = Join((OWN, SOURCE))
    out = executed([Rule("union", (Term(k=both, v=both),))], site, q, k, v)
    close(out[1], attend(q, k, v)[1].double(), torch.float32)


@pytest.mark.parametrize("site", [self_site(), joint_site(), joint_site(text_first=False)], ids=["self", "txt", "img"])
def test_gathered_keys_are_a_mask_of_minus_infinity(site):
    q, k, v = tensors(site)
    there = (torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    # One half is enough to belong to it.
    gather = Gather(SOURCE, Mask(there * 0.5))
    out = executed([Rule("gather", (Term(k=gather, v=gather),))], site, q, k, v)
    keys, values = k[1].clone().double(), v[1].clone().double()
    image = slice(*site.image)
    keys[:, image], values[:, image] = k[0, :, image].double(), v[0, :, image].double()
    bias = torch.zeros(keys.shape[1], dtype=torch.float64)
    bias[image] = torch.log(there.flatten().double())
    scores = q[1].double() @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
    close(out[1], scores.softmax(-1) @ values, torch.float32)


def test_foreground_reads_foreground_and_background_background():
    site = self_site()
    q, k, v = tensors(site)
    generator = torch.Generator().manual_seed(6)
    ours, theirs = (torch.rand(1, 4, 4, generator=generator) > 0.5 for _ in range(2))
    front, back = Gather(SOURCE, Mask(theirs.float())), Gather(SOURCE, complement(Mask(theirs.float())))
    mine = Mask(ours.float())
    terms = (Term(k=front, v=front, where=mine), Term(k=back, v=back, where=complement(mine)))
    counted = Counted()
    out = executed([Rule("masked", terms)], site, q, k, v, attention=counted)
    close(out[0], attend(q, k, v)[0].double(), torch.float32)
    for token in range(16):
        same = theirs.flatten() if ours.flatten()[token] else ~theirs.flatten()
        want = probabilities(q[1, :, token : token + 1], k[0][:, same]) @ v[0][:, same].double()
        close(out[1][:, token : token + 1], want, torch.float32)
    # The two calls of the target have short keys: together no more than one.
    assert sum(call[1].shape[2] * call[0].shape[0] for call in counted.calls) == 16 + 16


@ORDERS
def test_foreground_at_a_joint_site_leaves_text_queries_whole(text_first):
    """Text queries read both sums in full: only image queries are told apart."""
    site = joint_site(text=5, text_first=text_first)
    q, k, v = tensors(site)
    ours = (torch.arange(16).reshape(1, 4, 4) % 3 > 0).float()
    every = Mask(torch.ones(1, 4, 4))
    term = Term(k=Gather(SOURCE, every), v=Gather(SOURCE, every), where=Mask(ours))
    out = executed([Rule("front", (term,))], site, q, k, v)
    image = slice(*site.image)
    whole = executed([Rule("masactrl", (Term(k=Take(), v=Take()),))], site, q, k, v)[1]
    want = whole.clone()
    want[:, image] = whole[:, image] * ours.flatten()[:, None]
    torch.testing.assert_close(out[1], want, rtol=0, atol=1e-6)


def test_a_gather_without_tokens_takes_all():
    site = self_site()
    q, k, v = tensors(site)
    gather = Gather(SOURCE, Mask(torch.zeros(1, 4, 4)))
    out = executed([Rule("gather", (Term(k=gather, v=gather),))], site, q, k, v)
    assert torch.equal(out, executed([Rule("masactrl", (Term(k=Take(), v=Take()),))], site, q, k, v))


@DTYPES
def test_mix_and_add(dtype):
    site = self_site()
    q, k, v = tensors(site, dtype=dtype)
    out = executed([Rule("mix", (Term(k=Mix(weight=0.25), v=Add(scale=0.5)),), strength=0.5)], site, q, k, v)
    wide = k.double()
    keys = (wide[1] + 0.125 * (wide[0] - wide[1])).to(dtype)
    values = (v.double()[1] + 0.25 * v.double()[0]).to(dtype)
    close(out[1], probabilities(q[1], keys) @ values.double(), dtype)


@DTYPES
def test_blended_outputs_are_blended_probabilities(dtype):
    site = self_site()
    q, k, v = tensors(site, dtype=dtype)
    weights = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(7))
    rule = Rule("structure", (Term(q=Take(), k=Take()),), strength=0.6, mask=Mask(weights), blend="output")
    counted = Counted()
    out = executed([rule], site, q, k, v, attention=counted)
    share = 0.6 * weights.double().flatten()[:, None]
    mixed = share * probabilities(q[0], k[0]) + (1.0 - share) * probabilities(q[1], k[1])
    close(out[1], mixed @ v[1].double(), dtype)
    assert [call[0].shape[0] for call in counted.calls] == [2, 1]


@pytest.mark.parametrize("rest", [0.0, 1.0])
def test_shared_key_heads(rest):
    site = joint_site(text=5)
    q, k, v = tensors(site, heads=4, key_heads=2)
    matrix, keep = random_map(5, 5), torch.tensor([1.0, 0, 1, 0.5, 0])
    rules = [words_rule(matrix, keep, rest)]
    out = executed(rules, site, q, k, v)
    wide = executed(rules, site, q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    close(out, wide.double(), torch.float32)


@ORDERS
def test_reference_tokens_of_a_joint_site_stay_out_of_it(text_first):
    """Tokens that are neither image nor text, such as a reference latent, are never injected into."""
    site = joint_site(text=3, text_first=text_first)
    q, k, v = tensors(site, extra=4)
    out = executed([Rule("masactrl", (Term(k=Take(), v=Take()),))], site, q, k, v)
    image = slice(*site.image)
    k2, v2 = k.clone(), v.clone()
    k2[1, :, image], v2[1, :, image] = k[0, :, image], v[0, :, image]
    assert torch.equal(out, attend(q, k2, v2))
    matrix, keep = random_map(3, 3), torch.ones(3)
    mapped = executed([words_rule(matrix, keep)], site, q, k, v)
    source, want = probabilities(q[0], k[0]), probabilities(q[1], k[1])
    text = slice(*site.text)
    want[:, image, text] = source[:, image, text] @ matrix.double() + want[:, image, text]
    close(mapped[1], want @ v[1].double(), torch.float32)


@DTYPES
def test_renormalised_weights_are_a_bias_of_their_logarithm_and_repeated_keys(dtype):
    site = cross_site(text=7)
    q, k, v = tensors(site, dtype=dtype)
    weights = torch.tensor([1.0, 1, 3, 1, 2, 1, 1])
    rule = Rule(
        "reweight",
        (Term(values=ValueMap(weights)),),
        kinds=("cross",),
        group="all",
        queries="image",
        renormalise=True,
    )
    out = executed([rule], site, q, k, v)
    biased = attend(q, k, v, weights.log().to(dtype).expand(1, 1, 1, 7))
    times = weights.long()
    repeated = attend(q, k.repeat_interleave(times, 2), v.repeat_interleave(times, 2))
    want = probabilities(q[1], k[1]) * weights.double()
    want = (want / want.sum(-1, keepdim=True)) @ v[1].double()
    for found in (out, biased, repeated):
        close(found[1], want, dtype)
    assert torch.equal(out[0], attend(q, k, v)[0])


@pytest.mark.parametrize("site", [cross_site(text=6), joint_site(text=6)], ids=["cross", "joint"])
def test_renormalised_sums_have_mass_one(site):
    """Values that are all one come out as one, whatever the maps."""
    q, k, _ = tensors(site)
    v = torch.ones_like(k)
    matrix, keep = random_map(6, 6), torch.tensor([1.0, 0, 0.5, 1, 0, 1])
    out = executed([words_rule(matrix, keep, renormalise=True)], site, q, k, v)
    torch.testing.assert_close(out, torch.ones_like(q), rtol=0, atol=1e-5)
    assert not torch.allclose(executed([words_rule(matrix, keep)], site, q, k, v), torch.ones_like(q), atol=1e-2)
