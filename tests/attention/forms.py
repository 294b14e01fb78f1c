"""One rule of every form that an edit can take, and the sites where it has a meaning."""

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
    Rule,
    Take,
    Term,
    ValueMap,
    complement,
)
from retrace_tests.attention.problems import STEP, attend, cross_site, joint_site, pair, self_site

PLACES = {
    "self": self_site(),
    "cross": cross_site(text=5),
    "joint": joint_site(text=5),
    "joint, image first, of a clip": joint_site(text=5, text_first=False, grid=(2, 4, 2)),
}
# Finer than the tokens of each.
SOME = (torch.arange(16).reshape(1, 4, 4) % 3 > 0).float().repeat_interleave(2, 1).repeat_interleave(2, 2)
SOFT = Mask(torch.linspace(0, 1, 64).reshape(1, 8, 8))


def random_map(rows, columns=None, seed=1):
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(rows, columns or rows, generator=generator) > 0.6
    return torch.rand(rows, columns or rows, generator=generator) * there


def words(taken, own, rest=0.0, **about):
    terms = Term(q=Take(), k=Take(), values=ValueMap(taken, rest)), Term(values=ValueMap(own, 1.0 - rest))
    return rule(*terms, group="all", queries="image", **about)


def rule(*terms, **about):
    return Rule(about.pop("name", "a"), terms, **{"kinds": ("self", "cross", "joint"), **about})


def both(*branches):
    return Term(k=Join(branches), v=Join(branches))


def gathered(mask, where=None):
    return Term(k=Gather(SOURCE, mask), v=Gather(SOURCE, mask), where=where)


SWAP, STRUCTURE = Term(k=Take(), v=Take()), Term(q=Take(), k=Take())
KEEP = torch.tensor([0.0, 1, 0, 0.5, 1])
RULES = {
    "keys and values": [rule(SWAP)],
    "keys and values of all": [rule(SWAP, group="all")],
    "structure": [rule(STRUCTURE)],
    "values": [rule(Term(v=Take()))],
    "a share": [rule(SWAP, strength=0.3)],
    "masked": [rule(SWAP, mask=SOFT, strength=0.8)],
    "masked queries": [rule(STRUCTURE, mask=SOFT)],
    "mixed and added": [rule(Term(q=Mix(weight=0.3), k=Mix(weight=0.25), v=Add(scale=0.5)), strength=0.5)],
    "union": [rule(both(OWN, SOURCE))],
    "union, source first": [rule(both(SOURCE, OWN))],
    "a share of a union": [rule(both(OWN, SOURCE), strength=0.4)],
    "blended outputs": [rule(STRUCTURE, mask=SOFT, strength=0.6, blend="output")],
    "two operands of two rules": [rule(Term(q=Take())), rule(Term(v=Take()))],
}
NO_TEXT_KEYS = {
    "gathered": [rule(gathered(Mask(SOME * 0.5)))],
    "gathered from nowhere": [rule(gathered(Mask(0.0 * SOME)))],
    "fore- and background": [rule(gathered(Mask(SOME), SOFT), gathered(complement(Mask(SOME)), complement(SOFT)))],
}
TEXT_KEYS = {
    "words": [words(random_map(5), KEEP)],
    "words, image of the source": [words(random_map(5), KEEP, 1.0)],
    "every word taken": [words(random_map(5), 0.0 * KEEP)],
    "no word": [words(torch.zeros(5, 5), 0.0 * KEEP)],
    "a share of words": [words(random_map(5), KEEP, strength=0.3, mask=SOFT)],
    "words of mass one": [words(random_map(5), KEEP + 0.1, renormalise=True)],
    "weights": [rule(Term(values=ValueMap(torch.linspace(-1, 4, 5))), group="all", queries="image")],
    "swap, then weights": [rule(Term(q=Take())), rule(Term(values=ValueMap(KEEP)), group="all", queries="image")],
}
EVERY = {**RULES, **NO_TEXT_KEYS, **TEXT_KEYS}
WITHOUT = {"self": TEXT_KEYS, "cross": NO_TEXT_KEYS}
CASES = [(name, place) for name in EVERY for place in PLACES if name not in WITHOUT.get(place, ())]


def run(rules, site, q, k, v, rows=None, cache=None, mask=None, attention=attend, step=STEP):
    return Executor(rules).run(site, rows or pair(), step, Call(q, k, v, attention, mask), cache)
