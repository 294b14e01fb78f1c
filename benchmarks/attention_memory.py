"""What a cache of attention holds, counted from outside of it: bytes on the device and in main memory, by its budget.

The tensors are those of a run at its real size, on a device that torch only pretends to have: every operator gives
tensors with a shape, a type and a device and without numbers. What is alive is counted by a mode that sees every tensor
that is made, and knows nothing of the cache.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from retrace.attention import (
    AttentionPlan,
    AttentionRun,
    Call,
    Executor,
    Rows,
    RunCache,
    Settings,
    Site,
    Step,
    estimate,
    get_preset,
)

DEVICE, MEMORY = "cuda", "cpu"
GIGABYTE = 2**30


class Alive(TorchDispatchMode):
    """Knows the bytes of all tensors that were made in it and are alive, by device; views of one storage count once.

    Attributes:
        bytes: By the kind of device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self._views: Counter[int] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                known = storage._cdata, each.device.type, storage.nbytes()
                self._count(*known, 1)
                weakref.finalize(each, self._count, *known, -1)
        return out

    def _count(self, storage: int, kind: str, size: int, views: int) -> None:
        before = self._views[storage]
        self._views[storage] = after = before + views
        if not before or not after:
            self.bytes[kind] += size * views


@dataclass(frozen=True)
class Case:
    """A run that keeps the attention of its source for a later one.

    Attributes:
        name: For people.
        plan: What the edit reads.
        sites: Attention of the network, in order.
        heads: Heads of each site.
        width: Channels of each site.
        steps: Evaluations of the run.
        rows: Batch rows of the source.
    """

    name: str
    plan: AttentionPlan
    sites: Sequence[Site]
    heads: Sequence[int]
    width: Sequence[int]
    steps: Sequence[Step]
    rows: int = 1


@dataclass
class Held:
    """What was found, in bytes.

    Attributes:
        cache: Most that is alive between two evaluations, by device: the cache's.
        peak: Most that is alive on the device in any call, beyond a run without rules.
        refused: What the cache said, if it did not take all.
    """

    cache: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    refused: str = ""


def wanted(case: Case) -> int:
    """Bytes that the rules of a case would ask a cache for, as they are told before a run."""
    run = AttentionRun(case.plan)
    read = [step for step in case.steps if run.active(step)]
    widths = dict(zip((site.stack for site in case.sites), case.width, strict=True))
    return estimate(Executor(run.rules), case.sites, read, widths, itemsize=2, rows=case.rows)


def held(case: Case, limit: int, on_device: int) -> Held:
    """Fill a cache with the source's attention and read it.

    Args:
        case: The run.
        limit: Largest total of the cache.
        on_device: Bytes of it that may stay on the device.
    """
    cache = RunCache(limit, on_device)
    run = AttentionRun(case.plan, cache)
    run.chunks = ("cond",)
    found = Held()
    with FakeTensorMode(), Alive() as alive, torch.no_grad():
        plain = _evaluate(AttentionRun(AttentionPlan()), case, "target", case.steps[0], alive)
        for branch in ("source", "target"):
            for step in case.steps:
                try:
                    found.peak = max(found.peak, _evaluate(run, case, branch, step, alive) - plain)
                except ValueError as error:
                    found.refused = str(error)
                found.cache = Counter({kind: max(alive.bytes[kind], found.cache[kind]) for kind in (DEVICE, MEMORY)})
                if found.refused:
                    return found
            cache.freeze()
    return found


def _evaluate(run: AttentionRun, case: Case, branch: str, step: Step, alive: Alive) -> int:
    """Make all calls of an evaluation; returns the most bytes that were alive on the device in one."""
    rows = Rows((branch,) * case.rows, ("cond",) * case.rows, tuple(range(case.rows)))
    most = 0

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        nonlocal most
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        most = max(most, alive.bytes[DEVICE])
        return out

    for site, heads, width in zip(case.sites, case.heads, case.width, strict=True):
        # Where no rule acts a call is the network's own.
        if run.rules and not any(rule.covers(site) for rule in run.rules):
            continue
        run.run(site, rows, step, Call(*_operands(case, site, heads, width), attend))
    return most


def _operands(case: Case, site: Site, heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    images = site.image[1] - site.image[0]
    words = 0 if site.text is None else site.text[1] - site.text[0]
    queries = images + (words if site.kind == "joint" else 0)

    def one(tokens: int) -> Tensor:
        shape = (case.rows, tokens, heads, width // heads)
        return torch.empty(shape, dtype=torch.float16, device=DEVICE).transpose(1, 2)

    keys = words if site.kind == "cross" else queries
    return one(queries), one(keys), one(keys)


def flux(size: int, text: int = 512, doubles: int = 19, singles: int = 38) -> list[Site]:
    """Joint attention of Flux for a picture of size x size pixels."""
    side = size // 16
    tokens, grid, latent = side * side, (1, side, side), (1, size // 8, size // 8)
    places = [("double", index) for index in range(doubles)] + [("single", index) for index in range(singles)]
    last = len(places) - 1
    return [
        Site(stack, index, 0, "joint", number, number / last, (text, text + tokens), (0, text), grid, latent)
        for number, (stack, index) in enumerate(places)
    ]


def rf_edit(size: int = 1024, steps: int = 25, inject: int = 5, width: int = 3072, heads: int = 24) -> Case:
    """RF-Edit on Flux: values of all tokens in single blocks 20 to 37, two evaluations a step."""
    sites = flux(size)
    plan = get_preset("rf_edit").build(Settings(end=inject / steps), "flux")
    asked = [Step(index, steps, 1.0 - index / steps, evaluation) for index in range(steps) for evaluation in range(2)]
    return Case(
        f"RF-Edit, Flux, {size} x {size}, {inject} of {steps} steps",
        plan,
        sites,
        [heads] * len(sites),
        [width] * len(sites),
        [step for step in asked if step.index <= inject],
    )


def masactrl(size: int = 1024, steps: int = 28, act: int = 8, width: int = 3072, heads: int = 24) -> Case:
    """Keys and values of the image tokens in the layers of FreeFlux, one evaluation a step, the first `act` of them."""
    sites = flux(size)
    asked = [Step(index, steps, 1.0 - index / steps, 0) for index in range(steps)]
    plan = get_preset("masactrl").build(Settings(start=0.0, end=act / steps), "flux")
    count = len(sites)
    return Case(
        f"masactrl k, v, Flux, {size} x {size}, {act} of {steps} steps",
        plan,
        sites,
        [heads] * count,
        [width] * count,
        asked[: act + 1],
    )


def rows_of(cases: Sequence[Case]) -> list[list[str]]:
    """A table of every case: all, a quarter and nothing of it on the device, and a limit of half of what it needs."""
    table = []
    for case in cases:
        need = wanted(case)
        for limit, on_device in ((need, need), (need, need // 4), (need, 0), (need // 2, need // 8)):
            table.append(_cells(case, held(case, limit, on_device), limit, on_device))
    return table


HEAD = ["run", "asked for", "limit", "may stay", "on the device", "in memory", "most in a call", "cache"]


def _cells(case: Case, found: Held, limit: int, on_device: int) -> list[str]:
    total = sum(found.cache.values())
    fits = total <= limit and found.cache[DEVICE] <= on_device
    numbers = (wanted(case), limit, on_device, found.cache[DEVICE], found.cache[MEMORY], found.peak)
    cells = [case.name, *(f"{number / GIGABYTE:.3f}" for number in numbers)]
    return [*cells, ("refused, " if found.refused else "") + ("within" if fits else "**beyond**")]
