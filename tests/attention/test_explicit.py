"""Every form that a rule can take against explicit probabilities in float64, at every kind of site."""

from dataclasses import replace

import pytest
import torch

from retrace.attention import EvaluationCache, Rows, Take, Term, ValueMap
from retrace_tests.attention.explicit import edited, row_of
from retrace_tests.attention.forms import CASES, EVERY, KEEP, PLACES, TEXT_KEYS, random_map, rule, run, words
from retrace_tests.attention.problems import attend, cross_site, joint_site, probabilities, tensors

# Largest difference to float64 on unit normals, as the kernels themselves have.
CLOSE = {torch.float32: 3e-6, torch.bfloat16: 1e-2}


def close(out, want, dtype=torch.float32):
    # bfloat16 rounds what it returns: relative to the largest entry.
    bound = CLOSE[dtype] * (1.0 if dtype == torch.float32 else max(1.0, float(want.abs().max())))
    assert float((out.double() - want).abs().max()) <= bound


def bias(*shape):
    """A mask that is added, with a key that all may see."""
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    mask[torch.rand(shape, generator=torch.Generator().manual_seed(4)) > 0.7] = -torch.inf
    mask[..., 0] = 0.0
    return mask


MASKS = {
    "no mask": lambda queries, keys: None,
    "one for all rows": lambda queries, keys: bias(1, 1, 1, keys),
    "each row": lambda queries, keys: bias(2, 1, 1, keys) > -1.0,
    "each query and head": lambda queries, keys: bias(2, 3, queries, keys),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("name", "place"), CASES)
def test_a_rule_is_what_it_means(name, place, mask):
    site = PLACES[place]
    q, k, v = tensors(site)
    shown = MASKS[mask](q.shape[2], k.shape[2])
    out = run(EVERY[name], site, q, k, v, mask=shown)
    source, target = (row_of(site, q, k, v, number, shown) for number in (0, 1))
    close(out[1], edited(EVERY[name], source, target))
    close(out[0], edited([], source, source))


@pytest.mark.parametrize(("name", "place"), CASES)
def test_in_half_precision_with_shared_key_heads_and_a_reference(name, place):
    """Tokens that are neither image nor text, such as a reference latent, are never injected into by an image rule."""
    site, extra = PLACES[place], 4 if place == "joint" else 0
    q, k, v = tensors(site, heads=4, key_heads=2, dtype=torch.bfloat16, extra=extra)
    if extra and any(rule.group == "all" and not rule.terms[0].values for rule in EVERY[name]):
        return
    out = run(EVERY[name], site, q, k, v)
    close(out[1], edited(EVERY[name], *(row_of(site, q, k, v, number) for number in (0, 1))), torch.bfloat16)


@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize(
    "name", [name for name in EVERY if name not in ("keys and values of all", "words of mass one")]
)
def test_the_source_in_a_forward_of_its_own_with_a_text_of_its_own(name, text_first):
    there, here = joint_site(text=7, text_first=not text_first), joint_site(text=4, text_first=text_first)
    rules, cache, calls = EVERY[name], EvaluationCache(), []
    if name in TEXT_KEYS:
        takes = isinstance(rules[-1].terms[0].k, Take)
        rules = [*rules[:-1], words(random_map(7, 4), KEEP[:4])] if takes else []
    for seed, (branch, site) in enumerate((("source", there), ("target", here))):
        calls.append(tensors(site, rows=1, seed=seed))
        out = run(rules, site, *calls[-1], Rows((branch,), ("cond",), (0,)), cache)
    close(out[0], edited(rules, row_of(there, *calls[0]), row_of(here, *calls[1])))


@pytest.mark.parametrize("rest", [0.0, 1.0], ids=["own image", "source image"])
@pytest.mark.parametrize("fills", [(5, 3), (3, 5), (5, 0), (4, 4)])
def test_texts_that_are_filled_up_by_different_numbers_of_learnt_tokens(fills, rest):
    """Z-Image: text, tokens that fill it up, image. What is missing of them is the last one again."""
    sites = [replace(joint_site(text=4), image=(4 + fill, 20 + fill)) for fill in fills]
    calls = [tensors(joint_site(text=4), rows=1, seed=seed, extra=fill) for seed, fill in enumerate(fills)]
    cache, matrix, keep = EvaluationCache(), random_map(4), KEEP[:4]
    for branch, site, call in zip(("source", "target"), sites, calls, strict=True):
        out = run([words(matrix, keep, rest)], site, *call, Rows((branch,), ("cond",), (0,)), cache)
    (a, b), v = sites[1].image, calls[1][2][0].double()
    source = probabilities(*(tensor[0] for tensor in calls[0][:2]))[:, slice(*sites[0].image)]
    own = probabilities(*(tensor[0] for tensor in calls[1][:2]))[:, a:b]
    want = (source[..., :4] @ matrix.double() + own[..., :4] * keep.double()) @ v[:, :4]
    if rest:
        fill = [min(place, fills[1] - 1) for place in range(fills[0])]
        filled = v[:, 4:a][:, fill] if fills[1] else torch.zeros(3, fills[0], 8, dtype=torch.float64)
        want = want + source[..., 4:] @ torch.cat([filled, v[:, a:b]], 1)
    else:
        want = want + own[..., 4:] @ v[:, 4:]
    close(out[0, :, a:b], want)


def test_repeated_text_is_cut_back_to_the_lengths_of_the_map():
    """The host brings prompts of 6 and 4 tokens to 12 by repetition, which leaves cross-attention as it is."""
    short = [tensors(cross_site(text=length), rows=1, seed=length) for length in (6, 4)]
    q = torch.cat([call[0] for call in short])
    k, v = (torch.cat([short[0][i].repeat(1, 1, 2, 1), short[1][i].repeat(1, 1, 3, 1)]) for i in (1, 2))
    rules = [words(random_map(6, 4), KEEP[:4])]
    out = run(rules, cross_site(text=12), q, k, v)
    rows = (row_of(cross_site(text=length), *call) for length, call in zip((6, 4), short, strict=True))
    close(out[1], edited(rules, *rows))
    for site in (cross_site(text=12), joint_site(text=7)):
        with pytest.raises(ValueError, match=r"token map must fit the text .* got (12|7) keys for 5 tokens"):
            run([words(torch.eye(5), torch.zeros(5))], site, *tensors(site))


def test_renormalised_weights_are_a_bias_of_their_logarithm():
    site, weights = PLACES["cross"], torch.tensor([1.0, 3, 2, 0.5, 1])
    q, k, v = tensors(site)
    out = run([rule(Term(values=ValueMap(weights)), group="all", queries="image", renormalise=True)], site, q, k, v)
    close(out[1], attend(q, k, v, weights.log().expand(1, 1, 1, 5))[1].double())
