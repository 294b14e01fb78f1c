"""Rules inside a forward of the host: set for one call on a copy of its options, gone when the call is over.

An APPLY_MODEL wrapper stands around each forward. It marks a copy of the transformer_options, puts the pack's override
into the one slot that the host has for it, and chains whatever another pack had put there. Nothing of the MODEL is
changed; a hook on a module, which one kind of rule needs, is taken off in a ``finally``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import torch

from ...attention import AttentionRun, Call, Rows, Step, place
from ..host.compat import Uncopied
from .resolver import Resolver
from .unet_features import features_in

_KEY = "retrace_attention"
_OVERRIDE = "optimized_attention_override"
# Arguments that some models pass by position behind the number of heads, in the host's order.
_POSITIONAL = ("mask", "attn_precision", "skip_reshape", "skip_output_reshape")
# Places of the encoded text and of transformer_options among the arguments of the host's apply_model, behind the
# latent.
_TEXT, _OPTIONS = 2, 4


@dataclass(frozen=True)
class Layout:
    """What the rows of a forward are.

    Attributes:
        branches: Branches in the order of their rows.
        chunk: "cond" or "uncond".
        items: Pictures of each branch.
        size: Rows and columns of the whole latent.
    """

    branches: tuple[str, ...]
    chunk: str
    items: int
    size: tuple[int, ...]


class Forwards(Uncopied):
    """The forwards of one evaluation of some branches; opaque to the host, which copies lists and dicts.

    Args:
        run: The rules and what they remember.
        resolver: Finds the sites of the network.
        layout: What the rows are.
        step: When it is.
        features: What feature rules keep of one forward for another of the same evaluation.
    """

    def __init__(
        self, run: AttentionRun, resolver: Resolver, layout: Layout, step: Step, features: dict[Any, torch.Tensor]
    ) -> None:
        self._run = run
        self._resolver = resolver
        self._layout = layout
        self._step = step
        self._features = features
        self._entries: Counter[tuple[int, ...]] = Counter()

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """Return model_options under which the forwards follow the rules."""
        options: dict[str, Any] = comfy.model_patcher.create_model_options_clone(model_options)
        comfy.patcher_extension.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.APPLY_MODEL, _KEY, self._around, options, is_model_options=True
        )
        return options

    def _around(self, executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        places = list(args)
        theirs = places[_OPTIONS] if len(places) > _OPTIONS else kwargs.get("transformer_options", {})
        resolver = self._resolver
        text = places[_TEXT] if len(places) > _TEXT else kwargs.get("c_crossattn")
        resolver.begin(x.shape, {**kwargs, "c_crossattn": text})

        def ask(x: torch.Tensor, text: torch.Tensor | None, override: Callable[..., Any]) -> None:
            shown, named, options = list(args), dict(kwargs), {**theirs, _OVERRIDE: override}
            for number, name, value in ((_TEXT, "c_crossattn", text), (_OPTIONS, "transformer_options", options)):
                if len(shown) > number:
                    shown[number] = value
                elif value is not None:
                    named[name] = value
            executor(x, *shown, **named)

        resolver.prepare(ask, x, text)
        options = resolver.mark(dict(theirs))
        rows = self._rows(x.shape[0], tuple(x.shape[-2:]))
        options[_OVERRIDE] = _Override(self, rows, theirs.get(_OVERRIDE))
        if len(places) > _OPTIONS:
            places[_OPTIONS] = options
        else:
            kwargs = {**kwargs, "transformer_options": options}
        try:
            with features_in(self._run, resolver.network, rows, self._step, self._features):
                answer = executor(x, *places, **kwargs)
            resolver.complete()
            return answer
        finally:
            resolver.end()

    def _rows(self, rows: int, size: tuple[int, ...]) -> Rows:
        """Name the rows; where the host asks for several conditionings of one kind, each is a chunk of its own.

        Prompts for parts of the picture are told apart by the size of the part and their order, which is the same for
        every branch: the host gives each branch the parts of all others.
        """
        layout = self._layout
        each = len(layout.branches) * layout.items
        branches: list[str] = []
        chunks: list[str] = []
        items: list[int] = []
        for _ in range(rows // each):
            number, whole = self._entries[size], size == layout.size
            self._entries[size] += 1
            chunk = layout.chunk if whole and number == 0 else f"{layout.chunk}:{'x'.join(map(str, size))}.{number}"
            branches += [branch for branch in layout.branches for _ in range(layout.items)]
            chunks += [chunk] * each
            items += list(range(layout.items)) * len(layout.branches)
        if len(items) != rows:
            raise ValueError(
                f"the host must ask for {each} rows or a multiple at once, got {rows}; "
                "connect the MODEL from before the node that changes how it is evaluated."
            )
        return Rows(tuple(branches), tuple(chunks), tuple(items))

    def attention(
        self,
        rows: Rows,
        attend: Callable[..., torch.Tensor],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        heads: int,
        arguments: dict[str, Any],
    ) -> torch.Tensor:
        """Make one attention call of the host, edited or as it is.

        Args:
            rows: What the rows are.
            attend: The host's call: (q, k, v, arguments), in the host's layout.
            q: Queries as the host has them.
            k: Keys.
            v: Values.
            heads: Heads of the queries.
            arguments: The host's arguments by name.

        Returns:
            The answer in the host's layout.
        """
        split = bool(arguments.get("skip_reshape"))
        sequence = 2 if split else 1
        options = arguments.get("transformer_options") or {}
        site = self._resolver.site(q.shape[sequence], k.shape[sequence], options)
        if site is None:
            return attend(q, k, v, arguments)
        width = q.shape[-1] if split else q[0, 0].numel() // heads
        view = _HeadView(split, width)
        mask = arguments.get("mask")
        asked = view.split(q), view.split(k), view.split(v)
        asked_mask = None if mask is None else _four(mask, q.shape[0], heads)

        def run(
            queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, columns: torch.Tensor | None
        ) -> torch.Tensor:
            passed = arguments
            if columns is not asked_mask:
                passed = {**arguments, "mask": columns}
            # What no rule changed goes on as it came.
            tensors = (
                own if now is before else view.join(now)
                for own, before, now in zip((q, k, v), asked, (queries, keys, values), strict=True)
            )
            return view.split_output(attend(*tensors, passed), bool(arguments.get("skip_output_reshape")), heads)

        call = Call(*asked, run, asked_mask, arguments.get("scale"))
        answer = self._run.run(site, rows, self._step, call)
        return view.join_output(answer, bool(arguments.get("skip_output_reshape")))


class _Override:
    """What the host calls in the place of its attention function."""

    def __init__(self, forwards: Forwards, rows: Rows, previous: Callable[..., Any] | None) -> None:
        self._forwards = forwards
        self._rows = rows
        self._previous = previous

    def __deepcopy__(self, memo: dict[int, Any]) -> _Override:
        return self

    def __call__(self, func: Callable[..., Any], q: Any, k: Any, v: Any, heads: int, *args: Any, **kwargs: Any) -> Any:
        arguments = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, own: dict[str, Any]) -> Any:
            if self._previous is not None:
                return self._previous(func, q, k, v, heads, **own)
            return func(q, k, v, heads, **own)

        return self._forwards.attention(self._rows, attend, q, k, v, heads, arguments)


@dataclass(frozen=True)
class _HeadView:
    """Between the host's two layouts and (B, heads, N, d); views, so that what is not changed keeps its bits."""

    split_already: bool
    width: int

    def split(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.split_already:
            return tensor
        return tensor.reshape(tensor.shape[0], tensor.shape[1], -1, self.width).transpose(1, 2)

    def join(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.split_already else tensor.transpose(1, 2).flatten(2)

    def split_output(self, tensor: torch.Tensor, skipped: bool, heads: int) -> torch.Tensor:
        return tensor if skipped else tensor.reshape(tensor.shape[0], tensor.shape[1], heads, -1).transpose(1, 2)

    def join_output(self, tensor: torch.Tensor, skipped: bool) -> torch.Tensor:
        return tensor if skipped else tensor.transpose(1, 2).flatten(2)


def _four(mask: torch.Tensor, rows: int, heads: int) -> torch.Tensor:
    """Return the host's mask with four axes, (1 | rows, 1 | heads, 1 | queries, keys), as its kernels read it."""
    if mask.ndim == 2:
        return mask[None, None]
    if mask.ndim == 3:
        # One a row and head in older models, else one a row.
        if mask.shape[0] == rows * heads and heads > 1:
            return mask.reshape(rows, heads, *mask.shape[1:])
        return mask[:, None]
    return mask


def step_of(options: dict[str, Any], sigma: float) -> Step:
    """Return where a sigma stands in the run that is under way.

    Args:
        options: The transformer_options of the run.
        sigma: The sigma.

    Returns:
        The step. One between two of the run belongs to the step that began above it.
    """
    sigmas = [float(each) for each in options["sample_sigmas"]]
    return place(sigmas, sigma)
