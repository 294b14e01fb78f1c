"""A plan: the rules of an edit as data; a run: the state of one use of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ..core.walk import AfterStep
from .cache import Cache, EvaluationCache
from .calls import Call
from .executor import Executor
from .rows import Rows
from .rules import SOURCE, TARGET, FeatureRule, Probe, Rule
from .sites import Site
from .timing import Step

Origin = Literal["pinned", "free"]
Serves = Literal["cond", "both", "shared", "each"]


class LatentRule(Protocol):
    """An edit of the target's latent after a step, such as a blend by a word map."""

    def after(self, run: AttentionRun, step: Step, states: Mapping[str, Tensor]) -> Tensor:
        """The target's new state.

        Args:
            run: The run, whose `maps` hold the readings of its probes.
            step: The step that was just done.
            states: Latents of the branches after it.
        """


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What an edit does inside attention. Data only: a plan may be used any number of times.

    Attributes:
        rules: Edits of attention, in the order in which they compose.
        features: Edits of residual features.
        probes: Readings.
        latent_rules: Edits of the latent after a step.
        branches: Branches beyond "source" and "target", such as "mutual".
        text: The token map of the prompts, for whoever asks for words; None without one.
        source: "pinned": the source is at its recorded state of each step; "free": it runs along from the noise.
        source_for: Which chunks read from the source: "cond" only, "both" each from its own, "shared" both from "cond";
            "each": as each rule says itself, in chained plans that differ.
    """

    rules: tuple[Rule, ...] = ()
    features: tuple[FeatureRule, ...] = ()
    probes: tuple[Probe, ...] = ()
    latent_rules: tuple[LatentRule, ...] = ()
    branches: tuple[str, ...] = ()
    text: Any = None
    source: Origin = "pinned"
    source_for: Serves = "shared"

    def plus(self, other: AttentionPlan) -> AttentionPlan:
        """Both plans as one; the other's rules come after. Each rule reads from the source as its own plan said.

        Raises:
            ValueError: If both have a token map and these differ, or two probes share a name.
        """
        if self.text is not None and other.text is not None and self.text is not other.text:
            raise ValueError(
                "Chained attention plans must share one token map, got two; take both prompts from one node."
            )
        names = [probe.name for probe in (*self.probes, *other.probes)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"Probes of chained plans must have names of their own, got {twice[0]!r} twice; rename one."
            )
        blank, one = AttentionPlan(), self
        serves = self.source_for if other._reads_nothing() else other.source_for
        if not (self._reads_nothing() or other._reads_nothing() or self.source_for == other.source_for):
            one, other, serves = self._settled(), other._settled(), "each"
        return AttentionPlan(
            one.rules + other.rules,
            one.features + other.features,
            self.probes + other.probes,
            self.latent_rules + other.latent_rules,
            tuple(dict.fromkeys((*self.branches, *other.branches))),
            other.text if self.text is None else self.text,
            self.source if other.source == blank.source else other.source,
            serves,
        )

    @property
    def reads_uncond(self) -> bool:
        """Whether a rule reads the source's own uncond chunk."""
        rules = (_served(rule, self.source_for) for rule in self.rules if rule.reads())
        features = (_served(feature, self.source_for) for feature in self.features)
        return any(rule.source_for == "both" and "uncond" in rule.chunks for rule in rules) or any(
            feature.source_for == "both" and "uncond" in feature.chunks for feature in features
        )

    def _reads_nothing(self) -> bool:
        return not self.features and not any(rule.reads() for rule in self.rules)

    def _settled(self) -> AttentionPlan:
        """The plan with its choice of who reads written into its rules."""
        return replace(
            self,
            rules=tuple(_served(rule, self.source_for) for rule in self.rules),
            features=tuple(_served(rule, self.source_for) for rule in self.features),
            source_for="each",
        )

    def start(self) -> AttentionRun:
        """A fresh run."""
        return AttentionRun(self)


class AttentionRun:
    """One use of a plan: its executor, the cache of an evaluation, the readings so far, the sites that were met.

    Attributes:
        plan: The plan.
        branches: All branches, "source" and "target" first.
        maps: Accumulators of the probes by name.
        cache: What forwards of one evaluation leave for each other.
    """

    def __init__(self, plan: AttentionPlan, cache: Cache | None = None):
        self.plan = plan
        self.branches = tuple(dict.fromkeys((SOURCE, TARGET, *plan.branches)))
        self.maps: dict[str, Any] = {probe.name: probe.make() for probe in plan.probes}
        self.cache: Cache = EvaluationCache() if cache is None else cache
        self._executor = Executor([_served(rule, plan.source_for) for rule in plan.rules], plan.probes, self.maps)
        self._met: list[dict[tuple[object, ...], str]] = [{} for _ in self._entries()]
        self._seen: dict[tuple[object, ...], Site] = {}

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules as they are carried out."""
        return self._executor.rules

    @property
    def chunks(self) -> tuple[str, ...]:
        """Parts of the guided call that an evaluation asks for; ("cond",) without guidance keeps less."""
        return self._executor.chunks

    @chunks.setter
    def chunks(self, chunks: tuple[str, ...]) -> None:
        self._executor.chunks = tuple(chunks)

    @property
    def features(self) -> tuple[FeatureRule, ...]:
        """The feature rules as they are carried out."""
        return tuple(_served(rule, self.plan.source_for) for rule in self.plan.features)

    def active(self, step: Step) -> bool:
        """Whether some rule or probe has its window open."""
        opened = any(entry.acts(step) for entry in self._entries())
        return opened or any(feature.acts(step) for feature in self.plan.features)

    def order(self, step: Step | None = None) -> tuple[str, ...] | None:
        """Branches so that each comes after those that it takes from, None if they take from each other.

        Args:
            step: Only the rules of this step; None for all rules of the run.
        """
        takes: dict[str, set[str]] = {branch: set() for branch in self.branches}
        for rule in self.rules:
            if step is None or rule.acts(step):
                takes.setdefault(rule.branch, set()).update(branch for branch, _ in rule.reads())
        for feature in self.plan.features:
            if step is None or feature.acts(step):
                takes.setdefault(feature.branch, set()).add(feature.take)
        done: list[str] = []
        while len(done) < len(takes):
            ready = [branch for branch in takes if branch not in done and takes[branch] <= set(done)]
            if not ready:
                return None
            done.append(ready[0])
        return tuple(done)

    def _entries(self) -> list[Rule | Probe]:
        return [*self.rules, *self.plan.probes]

    def needs(self, site: Site, step: Step) -> set[tuple[str, str]]:
        """Branches and operands that some rule reads at a site in a step."""
        return {(branch, str(name)) for branch, name in self._executor.needs(site, step)}

    def run(self, site: Site, rows: Rows, step: Step, call: Call) -> Tensor:
        """One attention call with the run's rules; see Executor.run."""
        if site.key not in self._seen:
            self._seen[site.key] = site
            for entry, met in zip(self._entries(), self._met, strict=True):
                if entry.covers(site):
                    met[site.key] = site.label
        return self._executor.run(site, rows, step, call, self.cache)

    def blend(self, step: Step, states: Mapping[str, Tensor]) -> Tensor:
        """The target's latent after a step: all latent rules of the plan, in their order.

        Args:
            step: The step that was just done.
            states: Latents of the branches after it.
        """
        target = states[TARGET]
        for rule in self.plan.latent_rules:
            target = rule.after(self, step, {**states, TARGET: target})
        return target

    def after_step(
        self,
        sigmas: Sequence[float],
        source: Callable[[float, torch.device], Tensor] | None,
        then: AfterStep | None = None,
    ) -> AfterStep | None:
        """The hook that carries out the latent rules in a walk.

        Args:
            sigmas: Noise levels of the walk, falling.
            source: State of the source at a noise level, on a device, as Inversion.state_at tells it; None where the
                walk carries the source's rows before the target's.
            then: A hook that follows, such as that of a mask.

        Returns:
            The hook; without latent rules it is `then`.
        """
        if not self.plan.latent_rules:
            return then
        total = len(sigmas) - 1

        def hook(x: Tensor, index: int) -> Tensor:
            done = total - 1 - index
            beside, target = x.chunk(2) if source is None else (source(sigmas[done + 1], x.device).to(x), x)
            blended = self.blend(Step(done, total, sigmas[done]), {SOURCE: beside, TARGET: target})
            x = torch.cat([beside, blended]) if source is None else blended
            return x if then is None else then(x, index)

        return hook

    def clear(self) -> None:
        """Forget what forwards left for each other: the next evaluation begins."""
        if isinstance(self.cache, EvaluationCache):
            self.cache.clear()

    def check(self) -> None:
        """After the first forward: that every rule and probe met a site.

        Raises:
            ValueError: If one did not.
        """
        for entry, met in zip(self._entries(), self._met, strict=True):
            if not met:
                offered = _offered(self._seen.values())
                raise ValueError(
                    f"layers of {entry.name} must match an attention layer of kind {' or '.join(entry.kinds)}, got "
                    f"{entry.layers.text!r} on a model with {offered}; AttentionSites lists what it has."
                )

    def report(self) -> str:
        """Rules and the sites that they met, one a line."""
        lines = []
        for entry, places in zip(self._entries(), self._met, strict=True):
            met = list(places.values())
            between = "" if len(met) < 2 else f", {met[0]} .. {met[-1]}"
            lines.append(
                f"{entry.name}: {len(met)} sites{between if len(met) != 1 else f', {met[0]}'}; steps from "
                f"{entry.window.start:.0%} to {entry.window.end:.0%}"
            )
        return "\n".join(lines)


def _offered(sites: Iterable[Site]) -> str:
    counts: dict[str, list[int]] = {}
    for site in sites:
        counts.setdefault(f"{site.stack}:", []).append(site.index)
    if not counts:
        return "no attention that passes through the host's attention function"
    return ", ".join(f"{name}{min(numbers)}-{max(numbers)}" for name, numbers in counts.items())


_Entry = TypeVar("_Entry", Rule, FeatureRule)


def _served(rule: _Entry, serves: Serves) -> _Entry:
    """A rule under the plan's choice of who reads from the source."""
    if serves == "each" or (isinstance(rule, Rule) and not rule.reads()):
        return rule
    if serves == "cond":
        return replace(rule, chunks=("cond",), source_for="both")
    return replace(rule, source_for=serves)
