"""Every form of an edit inside the host's networks, against probabilities in float64 from the operands of its calls."""

import tiny_dits
import torch
from attending import inverted, resampled, resolver

# Largest difference to float64, as the kernels themselves have it on unit normals; values here may be larger.
CLOSE = 2e-6
TEXT_SHARE = 0.6


def _recorded(pack, edit):
    """Run an edit and return what went into every attention call of both branches, and what came out."""
    run = pack.module("attention").AttentionRun
    original, calls = run.run, []

    def spy(self, site, rows, step, call):
        out = original(self, site, rows, step, call)
        operands = [tensor.clone() for tensor in (call.q, call.k, call.v)]
        calls.append((site, rows, operands, call.mask, call.scale, out.clone()))
        return out

    run.run = spy
    try:
        edit()
    finally:
        run.run = original
    return [call for call in calls if call[1].branches == ("source", "target")]


def _probabilities(q, k, mask, scale):
    scores = q @ k.repeat_interleave(q.shape[0] // k.shape[0], 0).transpose(-1, -2)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.double()
    return scores.softmax(-1)


def _rows(tensors, mask):
    """Operands of both rows in float64, and their rows of the mask."""
    columns = [None, None] if mask is None else [mask[row % mask.shape[0]] for row in range(2)]
    return [[tensor[row].double() for tensor in tensors] for row in range(2)], columns


def _swap(names):
    def explicit(site, source, target, masks, scale):
        own = dict(zip("qkv", target))
        for name in names:
            image = slice(*site.image)
            own[name] = own[name].clone()
            own[name][:, image] = dict(zip("qkv", source))[name][:, image]
        return _probabilities(own["q"], own["k"], masks[1], scale) @ own["v"]

    return explicit


def _union(site, source, target, masks, scale):
    (_, ks, vs), (q, k, v) = source, target
    image = slice(*site.image)
    k2, v2 = k.clone(), v.clone()
    k2[:, image], v2[:, image] = ks[:, image], vs[:, image]
    mask = None if masks[1] is None else torch.cat([masks[1], masks[1]], -1)
    return _probabilities(q, torch.cat([k, k2], 1), mask, scale) @ torch.cat([v, v2], 1)


def _map(length):
    generator = torch.Generator().manual_seed(length)
    matrix = torch.rand(length, length, generator=generator)
    return matrix * (matrix > TEXT_SHARE), (torch.arange(length) % 3 == 0).float()


def _words(site, source, target, masks, scale):
    taken, kept = (each.double() for each in _map(site.text[1] - site.text[0]))
    theirs, own = (_probabilities(q, k, mask, scale) for (q, k, _), mask in zip((source, target), masks))
    image, text = slice(*site.image), slice(*site.text)
    want = own.clone()
    want[:, image, text] = theirs[:, image, text] @ taken + own[:, image, text] * kept
    return want @ target[2]


def check_every_form_against_explicit_probabilities(pack):
    """Swaps, unions and word maps as the tiny networks of every architecture meet them, at every site and row."""
    attention = pack.module("attention")
    take, both = attention.Take(), attention.Join(("own", "source"))

    def rule(*terms, **about):
        return attention.AttentionPlan((attention.Rule("form", terms, **about),), source_for="shared")

    def matrix(site, step):
        return _map(site.text[1] - site.text[0])[0]

    def diagonal(site, step):
        return _map(site.text[1] - site.text[0])[1]

    values = attention.ValueMap
    words = (attention.Term(q=take, k=take, values=values(matrix, 0.0)), attention.Term(values=values(diagonal, 1.0)))
    forms = {
        "mutual": (rule(attention.Term(k=take, v=take)), _swap("kv")),
        "structure": (rule(attention.Term(q=take, k=take)), _swap("qk")),
        "value": (rule(attention.Term(v=take)), _swap("v")),
        "union": (rule(attention.Term(k=both, v=both)), _union),
        "words": (rule(*words, kinds=("cross", "joint"), group="all", queries="image"), _words),
    }
    for kind in tiny_dits.KINDS:
        model, inversion = inverted(pack, kind)
        sites = resolver(pack, model).slots
        for name, (plan, explicit) in forms.items():
            acts = plan.rules[0].kinds
            calls = _recorded(pack, lambda m=model, b=inversion, k=kind, p=plan: resampled(pack, m, b, k, p))
            assert len(calls) == 2 * len(sites), (kind, name, len(calls))
            moved = 0.0
            for site, _, tensors, mask, scale, out in calls:
                (source, target), masks = _rows(tensors, mask)
                plain = [_probabilities(q, k, m, scale) @ v for (q, k, v), m in zip((source, target), masks)]
                edited = explicit(site, source, target, masks, scale) if site.kind in acts else plain[1]
                for have, want in zip(out, (plain[0], edited)):
                    apart = float((have.double() - want).abs().max()) / max(1.0, float(want.abs().max()))
                    assert apart <= CLOSE, (kind, name, site.label, apart)
                moved = max(moved, float((plain[1] - edited).abs().max()))
            assert moved > 1e-4, (kind, name, moved)
