"""Rules of a plan inside the calls of a guider: which branches share a forward, and in which order the others come.

Where the conditionings of branches fit into one forward they share it, so that one branch reads the attention of
another as it happens; where they do not (other text lengths, ControlNet, areas, LoRA hooks, too little memory), each
branch has a forward of its own, in an order in which every branch comes after those that it reads from.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import comfy.model_management
import torch

from ...attention import AttentionPlan, AttentionRun, Cache, Step
from ..host.compiled import refuse_compiled_model
from ..host.prompts import warn_of_other_prompts
from ..host.session import CHUNKS, Branch, Call, Forward, Guider
from .override import Forwards, Layout, step_of
from .plan_masks import on_grid_of
from .resolver import Resolver
from .resolvers import resolver_for

# Parts of a conditioning that act on a forward as a whole.
ALONE = ("control", "gligen", "area", "mask", "hooks", "timestep_start", "timestep_end", "default")
# The host asks for this much more than it reckons with before it puts rows into one forward.
_RESERVE = 1.5

_logger = logging.getLogger(__name__)


def attended_guider(
    model: Any,
    branches: Mapping[str, Branch],
    plan: AttentionPlan,
    cache: Cache | None = None,
) -> Guider:
    """Return a guider whose branches read from each other; arguments and errors as in Attended."""
    return Guider(model, branches, Attended(model, branches, plan, cache))


class Attended:
    """The rules of a plan in the runs of one guider; see host.session.Attention.

    Args:
        model: The MODEL.
        branches: Branches of the guider by name, "target" among them.
        plan: What they do to each other.
        cache: What holds operands of a branch that is not evaluated again; None for one of each evaluation.

    Attributes:
        together: Whether branches share forwards; None decides by what fits, False never does.
        plan: The plan.
        run: The rules in use while a run is under way, else None.

    Raises:
        ValueError: If the plan names a branch that is not there, nothing is known of the network's attention, or the
            model is compiled.
    """

    together: bool | None = None

    def __init__(
        self,
        model: Any,
        branches: Mapping[str, Branch],
        plan: AttentionPlan,
        cache: Cache | None = None,
    ) -> None:
        unknown = [name for name in plan.start().branches if name not in branches]
        if unknown:
            raise ValueError(
                f"attention must take from {' and '.join(branches)} here, got a plan with {', '.join(unknown)}; "
                "use the node that its rules were made for."
            )
        refuse_compiled_model(model)
        self.plan = plan
        self.run: AttentionRun | None = None
        self._network = model.model.diffusion_model
        self._resolver: Resolver = resolver_for(self._network)
        self._cache = cache
        self._met = False
        warn_of_other_prompts(plan, {name: branch.positive for name, branch in branches.items()})

    def begin(self, shape: torch.Size) -> None:
        """A run begins; see Attention."""
        self.run = AttentionRun(on_grid_of(self.plan, shape), self._cache)
        self._resolver = resolver_for(self._network)
        self._met = False

    def end(self) -> None:
        """The run is over; see Attention."""
        self.run = None

    @property
    def running(self) -> AttentionRun:
        """The rules in use."""
        assert self.run is not None
        return self.run

    def step(self, options: dict[str, Any], sigma: float) -> Step:
        """Return where a sigma stands in the run, whose transformer_options are given."""
        return step_of(options, sigma)

    def acts(self, options: dict[str, Any], sigma: float) -> bool:
        """Whether a rule acts at a sigma; see Attention."""
        return self.running.active(self.step(options, sigma))

    def reads(self, branch: str) -> bool:
        """Whether a branch has to be evaluated to be read from; see Attention."""
        return self._cache is None

    def forwards(
        self,
        guider: Guider,
        call: Call,
        states: Mapping[str, torch.Tensor],
        sigmas: torch.Tensor,
        options: dict[str, Any],
        answers: dict[tuple[str, str], torch.Tensor],
    ) -> Generator[Forward, None, None]:
        """Yield the forwards of a call one after the other; see Attention."""
        run, step = self.running, self.step(options["transformer_options"], float(sigmas[0]))
        chunks = {name: self._chunks(guider, call, name, options) for name in states}
        run.chunks = max(chunks.values(), key=len)
        run.clear()
        features: dict[Any, torch.Tensor] = {}
        try:
            for chunk in CHUNKS:
                names = [name for name in states if chunk in chunks[name]]
                side = guider.positive if chunk == CHUNKS[0] else guider.negative
                for group, cond in self._groups(guider, names, [side(name) for name in names], states, step):
                    x = torch.cat([states[name] for name in group])
                    layout = Layout(group, chunk, sigmas.shape[0], tuple(x.shape[-2:]))
                    own = Forwards(run, self._resolver, layout, step, features).options(options)
                    # The host numbers what it is asked for: 0 is the positive side, 1 the negative.
                    conds = [cond] if chunk == CHUNKS[0] else [None, cond]
                    forward = Forward(conds, x, sigmas.repeat(len(group)), own)
                    yield forward
                    assert forward.answer is not None
                    parts = forward.answer.chunk(len(group))
                    answers.update({(name, chunk): part for name, part in zip(group, parts, strict=True)})
                    self._tell_once()
        finally:
            run.clear()

    def _chunks(self, guider: Guider, call: Call, name: str, options: dict[str, Any]) -> tuple[str, ...]:
        """What of a branch has to be evaluated."""

        def guided(each: str) -> bool:
            plain = math.isclose(guider.branches[each].cfg, 1.0) and not options.get("disable_cfg1_optimization", False)
            return each in call.branches and call.guided and not plain and guider.has_negative(each)

        read = self.plan.reads_uncond and guider.has_negative(name) and any(map(guided, guider.branches))
        return CHUNKS if guided(name) or read else CHUNKS[:1]

    def _groups(
        self, guider: Guider, names: Sequence[str], conds: Sequence[Any], states: Mapping[str, torch.Tensor], step: Step
    ) -> list[tuple[tuple[str, ...], Any]]:
        """Branches that share a forward with its conditioning, in the order of the forwards."""
        if not names:
            return []
        shared = self._shared(guider, conds, states[names[0]])
        if shared is not None:
            return [(tuple(names), shared)]
        order = self.running.order(step)
        if order is None:
            raise ValueError(
                "branches that read from each other must share one forward, got prompts or patches that need "
                "one each; use prompts of one length, without ControlNet, areas and LoRA hooks."
            )
        own = dict(zip(names, conds, strict=True))
        return [((name,), own[name]) for name in order if name in own]

    def _shared(self, guider: Guider, conds: Sequence[Any], like: torch.Tensor) -> Any | None:
        """The conditionings as one for the rows of all of them, None where they do not go together."""
        if self.together is False or len(conds) == 1:
            return None
        if self.together is None:
            shape = (like.shape[0] * len(conds), *like.shape[1:])
            free = comfy.model_management.get_free_memory(like.device)
            if guider.inner_model.memory_required(shape) * _RESERVE > free:
                return None
        return rowwise(conds, like.shape[0], self._resolver)

    def _tell_once(self) -> None:
        """After the first forward: what was matched, and what other packs have taken."""
        if self._met:
            return
        self._met = True
        self.running.check()
        for line in self.running.report().splitlines():
            _logger.info("Retrace: attention, %s", line)
        taken = sorted(f"{slot.stack}:{slot.index} ({slot.kind})" for slot in self._resolver.bypassed)
        if taken:
            _logger.warning(
                "Retrace: another pack has replaced the attention of %d sites, where no rule acts, among them %s.",
                len(taken),
                ", ".join(taken[:4]),
            )


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
