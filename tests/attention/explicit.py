"""What rules mean: the target's attention by explicit probabilities in float64, one row, no call fused."""

from typing import NamedTuple

import torch
from torch import Tensor

from retrace.attention import Add, Gather, Join, Mix, Own, Site
from retrace.attention.rules import OWN


class Row(NamedTuple):
    """q, k, v (heads, tokens, d) of one row, and the bias (1 | heads, 1 | queries, keys) of its keys."""

    site: Site
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor


def row_of(site, q, k, v, number=-1, mask=None):
    """A row of a call, wide and with a key head for each head."""
    q, k, v = (tensor[number].double() for tensor in (q, k, v))
    k, v = (tensor.repeat_interleave(q.shape[0] // k.shape[0], 0) for tensor in (k, v))
    if mask is None:
        return Row(site, q, k, v, torch.zeros(1, 1, k.shape[1], dtype=torch.float64))
    columns = mask[number if mask.shape[0] > 1 else 0]
    bias = torch.zeros(columns.shape, dtype=torch.float64)
    return Row(site, q, k, v, bias.masked_fill(~columns, -torch.inf) if mask.dtype == torch.bool else columns.double())


def edited(rules, source, target):
    """The target's output (heads, queries, d) under rules that read from the source."""
    late = [rule for rule in rules if _has_calls_of_its_own(rule, target.site)]
    operands = target
    for rule in rules:
        if rule not in late:
            operands = _swapped(rule, rule.terms[0], operands, source, share=True)
    out = _probabilities(operands) @ operands.v
    for rule in late:
        span = slice(*target.site.image) if rule.queries == "image" else slice(None)
        total, mass = torch.zeros_like(out), torch.zeros_like(out)
        for term in rule.terms:
            row = _swapped(rule, term, operands, source, share=False)
            matrix = _matrix(term.values, row, operands if isinstance(term.v, Own) else source)
            where = 1.0 if term.where is None else _weights(term.where, target.site, out.shape[1], 1.0, others=1.0)
            reached = _probabilities(row) @ matrix
            total += where * (reached @ row.v)
            mass += where * reached.sum(-1, keepdim=True)
        total = total / mass if rule.renormalise else total
        share = _weights(rule.mask, target.site, out.shape[1], rule.strength)
        out[:, span] = torch.lerp(out, total, share)[:, span]
    return out


def _has_calls_of_its_own(rule, site):
    term, part = rule.terms[0], rule.mask is not None or rule.strength < 1.0
    longer = isinstance(term.k, Join | Gather) or rule.blend == "output"
    text_keys = site.kind == "cross" and rule.mask is not None
    plain = len(rule.terms) == 1 and term.values is None and term.where is None and rule.queries == "all"
    return (longer and part) or text_keys or not plain


def _probabilities(row):
    return (row.q @ row.k.transpose(-1, -2) * row.q.shape[-1] ** -0.5 + row.bias).softmax(-1)


def _matrix(values, row, of_v):
    """W of a term, (keys, values)."""
    (keys, length), (a, b), (c, d) = (row.k.shape[1], row.v.shape[1]), row.site.text or (0, 0), of_v.site.text or (0, 0)
    if values is None or (values.text is None and values.rest == 1.0):
        return torch.eye(length, dtype=torch.float64)
    matrix = torch.zeros(keys, length, dtype=torch.float64)
    others = [[i for i in range(n) if not first <= i < last] for n, first, last in ((keys, a, b), (length, c, d))]
    matrix[others[0], others[1]] = values.rest
    text = torch.ones(b - a, dtype=torch.float64) if values.text is None else values.text.double()
    matrix[a:b, c:d] = torch.diag(text) if text.ndim == 1 else text
    return matrix


def _weights(mask, site, length, strength, others=None):
    """(tokens, 1): an image token's own weight, for all others the largest."""
    if mask is None:
        return torch.full((length, 1), strength, dtype=torch.float64)
    cells = mask.on(site.grid)[0].double() * strength
    weights = torch.full((length,), float(cells.max()) if others is None else others, dtype=torch.float64)
    weights[slice(*site.image)] = cells
    return weights[:, None]


def _span(site, name, group, length):
    if group == "all" or (name != "q" and site.kind == "cross"):
        return slice(0, length)
    return slice(*(site.image if group == "image" else site.text))


def _swapped(rule, term, own, source, share):
    """The operands of a term; a key brings its column of the bias where it is taken whole."""
    site, made, bias, keys = own.site, {}, own.bias, own.site
    for name, operand in term.operands():
        mine, theirs = getattr(own, name), getattr(source, name)
        group = "image" if name == "q" and rule.queries == "image" else rule.group
        here, there = _span(site, name, group, mine.shape[1]), _span(source.site, name, group, theirs.shape[1])
        weight = _weights(rule.mask if share else None, site, mine.shape[1], rule.strength if share else 1.0)
        if isinstance(operand, Own):
            made[name] = mine
        elif isinstance(operand, Join):
            rows = [own if branch == OWN else _taken(own, source, name, here, there) for branch in operand.branches]
            made[name] = torch.cat([getattr(row, name) for row in rows], 1)
            bias = torch.cat([row.bias for row in rows], -1)
        elif isinstance(operand, Gather):
            row = _taken(own, source, name, here, there)
            chosen = operand.tokens.on(site.grid)[0] >= 0.5
            image = range(*site.image)
            places = [
                i for i in range(mine.shape[1]) if i not in image or bool(chosen[i - image.start]) or not chosen.any()
            ]
            made[name], bias = getattr(row, name)[:, places], row.bias[..., places]
        elif here == slice(0, mine.shape[1]) and there == slice(0, theirs.shape[1]) and float(weight.min()) == 1.0:
            made[name] = theirs
            bias, keys = (source.bias, source.site) if name == "k" else (bias, keys)
        else:
            weight = weight * operand.weight if isinstance(operand, Mix) else weight
            weight = weight[here]
            made[name] = mine.clone()
            if isinstance(operand, Add):
                made[name][:, here] += operand.scale * weight * theirs[:, there]
            else:
                made[name][:, here] = torch.lerp(mine[:, here], theirs[:, there], weight)
            if name == "k" and not isinstance(operand, Add | Mix) and float(weight.min()) == 1.0:
                bias = _taken(own, source, name, here, there).bias
    return Row(keys, made["q"], made["k"], made["v"], bias)


def _taken(own, source, name, here, there):
    """The own row with the tokens of a group from the source."""
    whole = getattr(own, name).clone()
    whole[:, here] = getattr(source, name)[:, there]
    bias = own.bias.expand(*torch.broadcast_shapes(own.bias.shape[:2], source.bias.shape[:2]), -1).clone()
    bias[..., here] = source.bias[..., there]
    return own._replace(**{name: whole}, bias=bias)
