"""A guider of several branches: each call evaluates all of them at once, under the rules of a plan.

The rows of a call are those of the first branch, then those of the second and so on. Where their conditionings fit
into one forward they share it, so that one branch reads the attention of another as it happens; where they do not
(other text lengths, ControlNet, areas, LoRA hooks, too little memory), each branch has a forward of its own, in an
order in which every branch comes after those that it reads from.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import node_helpers
import torch

from ...attention import AttentionPlan, AttentionRun, Cache, Step
from ..host.compiled import refuse_compiled_model
from ..host.guider import EVALUATE, SteadyGuider, completed
from ..host.prompts import warn_of_other_prompts
from .override import Forwards, Layout, step_of
from .plan_masks import on_grid_of
from .resolver import Resolver
from .resolvers import resolver_for

# Patches see it beside the host's own entries, so it carries the pack's name.
_ASKED = "retrace_branches"
# What the host takes to be the negative, also for conditioning of its own.
NEGATIVE = "negative"
CHUNKS = ("cond", "uncond")
# Parts of a conditioning that act on a forward as a whole.
ALONE = ("control", "gligen", "area", "mask", "hooks", "timestep_start", "timestep_end", "default")
# The host asks for this much more than it reckons with before it puts rows into one forward.
_RESERVE = 1.5

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Branch:
    """One trajectory through the network.

    Attributes:
        positive: CONDITIONING.
        negative: CONDITIONING, None where the scale is 1 and nobody reads it.
        cfg: Guidance scale.
    """

    positive: Any
    negative: Any = None
    cfg: float = 1.0


@dataclass(frozen=True)
class Asked:
    """What a call wants, beside its rows.

    Attributes:
        names: Branches in the order of the rows.
        outputs: Those whose answer is wanted; the others are only read from.
    """

    names: tuple[str, ...]
    outputs: tuple[str, ...]


class BranchGuider(SteadyGuider):
    """Named branches in one run, each with its own conditioning and guidance; see the module.

    Attributes:
        run: The rules in use while a run is under way, else None.
        cache: What holds operands for longer than an evaluation, or None.
    """

    def __init__(
        self,
        model: Any,
        branches: Mapping[str, Branch],
        plan: AttentionPlan,
        together: bool | None = None,
        cache: Cache | None = None,
    ) -> None:
        """Set up the branches.

        Args:
            model: The MODEL; it is not changed.
            branches: Branches by name, "target" among them.
            plan: What the branches do to each other.
            together: Whether branches share forwards; None decides by what fits, False never does.
            cache: What holds operands for longer than an evaluation; None for a cache of each evaluation.

        Raises:
            ValueError: If the plan names a branch that is not there, or nothing is known of the network's attention.
        """
        # Past SteadyGuider's, which takes one branch: under names of their own the host copies nothing between them.
        super(SteadyGuider, self).__init__(model)
        unknown = [name for name in plan.start().branches if name not in branches]
        if unknown:
            raise ValueError(
                f"attention must take from {' and '.join(branches)} here, got a plan with {', '.join(unknown)}; "
                "use the node that its rules were made for."
            )
        refuse_compiled_model(model)
        resolver_for(model.model.diffusion_model)
        warn_of_other_prompts(plan, {name: branch.positive for name, branch in branches.items()})
        self._branches = dict(branches)
        self._negatives = self._declare(self._branches)
        self.set_cfg(branches["target"].cfg)
        self._plan = plan
        self._together = together
        self._all = Asked(tuple(branches), tuple(branches))
        self.run: AttentionRun | None = None
        self.cache = cache
        self._resolver: Resolver | None = None

    def _declare(self, branches: Mapping[str, Branch]) -> dict[str, str]:
        """Give the host every conditioning under a name; returns the name of each branch's negative."""
        conds: dict[str, Any] = {name: branch.positive for name, branch in branches.items()}
        found: list[tuple[Any, str]] = []
        names: dict[str, str] = {}
        # The target's negative is the one that fitted embeddings replace.
        for name in sorted(branches, key=lambda each: each != "target"):
            negative = branches[name].negative
            if negative is None:
                negative = branches["target"].negative
            if negative is None:
                continue
            known = next((key for given, key in found if given is negative), None)
            if known is None:
                known = NEGATIVE if not found else f"{NEGATIVE} of {name}"
                conds[known] = node_helpers.conditioning_set_values(negative, {"prompt_type": "negative"})
                found.append((negative, known))
            names[name] = known
        self.inner_set_conds(conds)
        return names

    def sample(self, noise: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Sample with a fresh run of the rules; called by nodes and by the host's, arguments as there."""
        self.run = AttentionRun(on_grid_of(self._plan, self._pictures(noise.shape)), self.cache)
        self._resolver = resolver_for(self.model_patcher.model.diffusion_model)
        self._met = False
        try:
            return super().sample(noise, *args, **kwargs)
        finally:
            self.run = self._resolver = None

    def _pictures(self, shape: torch.Size) -> torch.Size:
        """Shape of the latent of one branch, where that of the run is given."""
        return shape

    @staticmethod
    def asking(model_options: dict[str, Any] | None, names: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
        """Return model_options for a call whose rows are those of some branches.

        Args:
            model_options: Those of the run.
            names: Branches in the order of their rows.
            outputs: Those whose answer is wanted.
        """
        options: dict[str, Any] = comfy.model_patcher.create_model_options_clone(model_options or {})
        options.setdefault("transformer_options", {})[_ASKED] = Asked(tuple(names), tuple(outputs))
        return options

    def active(self, model_options: dict[str, Any], sigma: float) -> bool:
        """Say whether a rule acts at a level of the run under way."""
        assert self.run is not None
        return self.run.active(self.step(model_options["transformer_options"], sigma))

    def step(self, options: dict[str, Any], sigma: float) -> Step:
        """Return where a level stands in the run under way, whose transformer_options are given."""
        return step_of(options, sigma)

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Return the guided denoised of every branch that the options name, rows in their order."""
        options: dict[str, Any] = comfy.model_patcher.create_model_options_clone(model_options or {})
        # Threads of several cards would meet in one resolver.
        options.pop("multigpu_clones", None)
        given = options.setdefault("transformer_options", {})
        asked = given.pop(_ASKED, self._all)
        states = dict(zip(asked.names, x.chunk(len(asked.names)), strict=True))
        items = x.shape[0] // len(asked.names)
        rows = timestep[:items]
        assert self.run is not None
        step = self.step(given, float(timestep[0]))
        if not self.run.active(step):
            answers = [self._view(name, options, states[name], rows, seed) for name in asked.names]
            return torch.cat(answers)
        if options.get(EVALUATE) is not None:
            raise ValueError(
                "model must let the pack evaluate its conditionings to control attention, got a patch of "
                f"{EVALUATE}; connect the MODEL from before that node."
            )
        self.run.clear()
        try:
            found = self._evaluate(asked, states, rows, options, step)
        finally:
            self.run.clear()
        return torch.cat([self._guided(name, asked, found, states[name], rows, options, seed) for name in asked.names])

    def _view(
        self, name: str, options: dict[str, Any], x: torch.Tensor, rows: torch.Tensor, seed: int | None
    ) -> torch.Tensor:
        """One branch by itself, as a guider of that branch alone would answer."""
        alone = copy.copy(self)
        alone.conds = {"positive": self.conds[name], NEGATIVE: self._uncond(name)}
        alone.cfg = self._branches[name].cfg
        return SteadyGuider.predict_noise(alone, x, rows, options, seed)

    def _uncond(self, name: str) -> Any:
        """The negative of one branch in a run, None where it has none."""
        return completed(self.conds[name], self.conds.get(self._negatives.get(name)))

    def _chunks(self, name: str, asked: Asked, options: dict[str, Any]) -> tuple[str, ...]:
        """What of a branch has to be evaluated."""

        def guided(each: str) -> bool:
            plain = math.isclose(self._branches[each].cfg, 1.0) and not options.get("disable_cfg1_optimization", False)
            return each in asked.outputs and not plain and each in self._negatives

        read = self._plan.reads_uncond and name in self._negatives and any(map(guided, asked.names))
        return CHUNKS if guided(name) or read else CHUNKS[:1]

    def _evaluate(
        self,
        asked: Asked,
        states: Mapping[str, torch.Tensor],
        rows: torch.Tensor,
        options: dict[str, Any],
        step: Step,
    ) -> dict[tuple[str, str], torch.Tensor]:
        """Answers by branch and chunk."""
        assert self.run is not None
        found: dict[tuple[str, str], torch.Tensor] = {}
        features: dict[Any, torch.Tensor] = {}
        wanted = [self._chunks(name, asked, options) for name in asked.names]
        self.run.chunks = max(wanted, key=len)
        for chunk in CHUNKS:
            names = [name for name in asked.names if chunk in self._chunks(name, asked, options)]
            if not names:
                continue
            conds = {name: self.conds[name] if chunk == "cond" else self._uncond(name) for name in names}
            items = rows.shape[0]
            shared = self._shared([conds[name] for name in names], items, states[names[0]])
            if shared is not None:
                groups = [(tuple(names), shared)]
            else:
                order = self.run.order(step)
                if order is None:
                    raise ValueError(
                        "branches that read from each other must share one forward, got prompts or patches that need "
                        "one each; use prompts of one length, without ControlNet, areas and LoRA hooks."
                    )
                groups = [((name,), conds[name]) for name in order if name in names]
            for group, cond in groups:
                x = torch.cat([states[name] for name in group])
                layout = Layout(group, chunk, items, tuple(x.shape[-2:]))
                answer = self._forward(layout, cond, x, rows.repeat(len(group)), options, step, features)
                found.update({(name, chunk): part for name, part in zip(group, answer.chunk(len(group)), strict=True)})
        return found

    def _forward(
        self,
        layout: Layout,
        cond: Any,
        x: torch.Tensor,
        rows: torch.Tensor,
        options: dict[str, Any],
        step: Step,
        features: dict[Any, torch.Tensor],
    ) -> torch.Tensor:
        assert self.run is not None and self._resolver is not None
        forwards = Forwards(self.run, self._resolver, layout, step, features)
        # The host numbers what it is asked for: 0 is the positive side, 1 the negative.
        conds = [cond] if layout.chunk == "cond" else [None, cond]
        answer: torch.Tensor = comfy.samplers.calc_cond_batch(
            self.inner_model, conds, x, rows, forwards.options(options)
        )[-1]
        if not self._met:
            self._met = True
            self.run.check()
            self._tell()
        return answer

    def _tell(self) -> None:
        """After the first forward: what was matched, and what other packs have taken."""
        assert self.run is not None and self._resolver is not None
        for line in self.run.report().splitlines():
            _logger.info("Retrace: attention, %s", line)
        taken = sorted(f"{slot.stack}:{slot.index} ({slot.kind})" for slot in self._resolver.bypassed)
        if taken:
            _logger.warning(
                "Retrace: another pack has replaced the attention of %d sites, where no rule acts, among them %s.",
                len(taken),
                ", ".join(taken[:4]),
            )

    def _shared(self, conds: Sequence[Any], items: int, like: torch.Tensor) -> Any | None:
        """The conditionings as one for the rows of all of them, None where they do not go together."""
        if self._together is False:
            return None
        if len(conds) == 1:
            return None
        if self._together is None:
            shape = (items * len(conds), *like.shape[1:])
            free = comfy.model_management.get_free_memory(like.device)
            if self.inner_model.memory_required(shape) * _RESERVE > free:
                return None
        assert self._resolver is not None
        return rowwise(conds, items, self._resolver)

    def _guided(
        self,
        name: str,
        asked: Asked,
        found: Mapping[tuple[str, str], torch.Tensor],
        x: torch.Tensor,
        rows: torch.Tensor,
        options: dict[str, Any],
        seed: int | None,
    ) -> torch.Tensor:
        """The answer of a branch, guided by the host's own function, so that patches of guidance act."""
        answer = found[name, "cond"]
        if name not in asked.outputs:
            return answer
        known = [answer, found.get((name, "uncond"), torch.zeros_like(answer))]
        own = {**options, EVALUATE: lambda args: known}
        guided: torch.Tensor = comfy.samplers.sampling_function(
            self.inner_model,
            x,
            rows,
            self._uncond(name),
            self.conds[name],
            self._branches[name].cfg,
            model_options=own,
            seed=seed,
        )
        return guided


def rowwise(conds: Sequence[Any], items: int, resolver: Resolver) -> Any | None:
    """Return one processed conditioning that holds several, row after row.

    Args:
        conds: Processed conditionings of a running guider.
        items: Pictures of each.
        resolver: Resolver of the network.

    Returns:
        A conditioning for items rows of each in turn, or None where they do not go together.
    """
    if any(len(cond) != 1 or any(cond[0].get(part) is not None for part in ALONE) for cond in conds):
        return None
    first, *others = [cond[0]["model_conds"] for cond in conds]
    if any(other.keys() != first.keys() for other in others) or not resolver.may_share((first, *others)):
        return None
    merged = {}
    for key in first:
        rows = [model_conds[key].process_cond(batch_size=items, area=None) for model_conds in (first, *others)]
        if not all(rows[0].can_concat(each) for each in rows[1:]):
            return None
        merged[key] = rows[0]._copy_with(rows[0].concat(rows[1:]))
    return [{**conds[-1][0], "model_conds": merged}]
