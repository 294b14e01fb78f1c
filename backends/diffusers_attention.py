"""Rules of attention inside the networks of diffusers.

The forward hooks of a network's attention modules say which site is at work, and a torch function mode stands where its
processor calls `scaled_dot_product_attention`: there q, k and v are behind norm and rotation, whatever the processor.
Both exist for one forward; no processor is exchanged, so that nothing is left on a pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..attention import (
    SOURCE,
    TARGET,
    AttentionPlan,
    AttentionRun,
    Call,
    Kind,
    Rows,
    Settings,
    Site,
    Step,
    get_preset,
    place,
)
from ..inversion import AfterStep, Denoiser, Inversion, replay
from .diffusers import Cond, DiffusersModel

# Layer text by family and preset where the preset's authors give none, as in ComfyUI's resolvers.
PRESET_LAYERS: dict[str, dict[str, str]] = {
    "sdxl": {"structure": "output:0-5", "reference replace": "self#4-69"},
    "sd3": {"masactrl": "all"},
    "flux": {"reference replace": "0.01-1.0"},
}
_ATTEND = nn.functional.scaled_dot_product_attention
# Arguments of it behind q, k and v, in torch's order.
_ARGUMENTS = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True)
class Slot:
    """One attention module of a network; attributes as in Site, `halved` counts how often a UNet halved its grid."""

    stack: str
    index: int
    inner: int
    kind: Kind
    number: int
    depth: float
    halved: int


def family_of(network: nn.Module) -> str:
    """Name of a network's family in presets.

    Raises:
        ValueError: If nothing is known of its attention.
    """
    name = type(network).__name__
    if name == "UNet2DConditionModel":
        return "sd15" if network.config.addition_embed_type is None else "sdxl"  # type: ignore[union-attr]
    known = {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux"}
    if name not in known:
        raise ValueError(f"network must be of SD1.5, SDXL, SD3 or Flux type to control attention, got {name}.")
    return known[name]


def preset_plan(name: str, settings: Settings, network: nn.Module) -> AttentionPlan:
    """A preset for a network, in the layers that its family has for it.

    Raises:
        ValueError: As in family_of and in the preset itself.
    """
    family = family_of(network)
    return get_preset(name).build(settings, family, PRESET_LAYERS.get(family, {}))


def slots_of(network: nn.Module) -> dict[nn.Module, Slot]:
    """Attention modules that rules reach, in the order in which they are called."""
    places = list(_unet(network) if family_of(network) in ("sd15", "sdxl") else _blocks(network))
    counts: dict[str, int] = {}
    numbers = []
    for _, (_, _, _, kind, _) in places:
        numbers.append(counts.get(kind, 0))
        counts[kind] = numbers[-1] + 1
    blocks = list(dict.fromkeys(block[:3] for _, block in places))
    depths = {block: depth / max(1, len(blocks) - 1) for depth, block in enumerate(blocks)}
    return {
        module: Slot(stack, index, inner, kind, number, depths[stack, index, inner], halved)
        for (module, (stack, index, inner, kind, halved)), number in zip(places, numbers, strict=True)
    }


_Place = tuple[str, int, int, Kind, int]


def _unet(network: Any) -> Iterator[tuple[nn.Module, _Place]]:
    """Blocks are numbered as in the network's first code, which all layer lists of papers refer to."""

    def inside(stack: str, index: int, halved: int, transformer: Any) -> Iterator[tuple[nn.Module, _Place]]:
        for inner, block in enumerate(transformer.transformer_blocks):
            yield block.attn1, (stack, index, inner, "self", halved)
            if block.attn2 is not None:
                yield block.attn2, (stack, index, inner, "cross", halved)

    # Block 0 is the first convolution.
    index = 1
    for halved, block in enumerate(network.down_blocks):
        for number, _ in enumerate(block.resnets):
            if getattr(block, "attentions", None):
                yield from inside("input", index + number, halved, block.attentions[number])
        # The convolution that halves the grid is a block of its own.
        index += len(block.resnets) + 1
    last = len(network.down_blocks) - 1
    for transformer in getattr(network.mid_block, "attentions", None) or ():
        yield from inside("middle", 0, last, transformer)
    index = 0
    for number, block in enumerate(network.up_blocks):
        for position, _ in enumerate(block.resnets):
            if getattr(block, "attentions", None):
                yield from inside("output", index + position, last - number, block.attentions[position])
        index += len(block.resnets)


def _blocks(network: Any) -> Iterator[tuple[nn.Module, _Place]]:
    stacks: tuple[tuple[str, Any], ...] = (("block", network.transformer_blocks),)
    if family_of(network) == "flux":
        stacks = (("double", network.transformer_blocks), ("single", network.single_transformer_blocks))
    for stack, blocks in stacks:
        for index, block in enumerate(blocks):
            yield block.attn, (stack, index, 0, "joint", 0)
            # The first blocks of SD3.5-M attend a second time, to the image alone.
            if getattr(block, "attn2", None) is not None:
                yield block.attn2, (stack, index, 0, "self", 0)


class Attention:
    """The rules of one run of a network.

    Args:
        network: The denoising network of a diffusers pipeline.
        plan: The rules.
        size: Height and width of the latent.

    Raises:
        ValueError: If nothing is known of the network's attention, or the plan needs more than attention.
    """

    def __init__(self, network: nn.Module, plan: AttentionPlan, size: tuple[int, int]) -> None:
        if plan.features:
            raise ValueError(
                "attention must be a plan of rules of attention here, got one with features of residual blocks; "
                "run it in ComfyUI."
            )
        self.network = network
        self.run: AttentionRun = plan.start()
        self._family = family_of(network)
        self._slots = slots_of(network)
        self._size = size
        self._checked = False

    @contextmanager
    def forward(self, branch: str, chunk: str, items: int, step: Step) -> Iterator[None]:
        """The rules act on what the network attends to inside this context.

        Args:
            branch: Branch of all rows of the forward.
            chunk: "cond" or "uncond".
            items: Rows.
            step: When it is.
        """
        rows = Rows((branch,) * items, (chunk,) * items, tuple(range(items)))
        at_work: list[Slot] = []

        def begin(module: nn.Module, _: Any) -> None:
            at_work[:] = [self._slots[module]]

        def end(module: nn.Module, _: Any, __: Any) -> None:
            at_work.clear()

        hooks = []
        try:
            for module in self._slots:
                hooks.append(module.register_forward_pre_hook(begin))
                hooks.append(module.register_forward_hook(end, always_call=True))
            with _Calls(self, rows, step, at_work):
                yield
        finally:
            for hook in hooks:
                hook.remove()
        if not self._checked:
            self._checked = True
            self.run.check()

    def site(self, slot: Slot, queries: int, keys: int) -> Site:
        """The site of a call at a slot."""
        rows, columns = self._grid(slot)
        tokens = rows * columns
        image, text = (0, tokens), None
        if slot.kind == "cross":
            text = (0, keys)
        elif slot.kind == "joint" and self._family == "flux":
            image, text = (keys - tokens, keys), (0, keys - tokens)
        elif slot.kind == "joint":
            text = (tokens, keys)
        return Site(
            slot.stack,
            slot.index,
            slot.inner,
            slot.kind,
            slot.number,
            slot.depth,
            image,
            text,
            (1, rows, columns),
            (1, *self._size),
        )

    def _grid(self, slot: Slot) -> tuple[int, int]:
        if self._family in ("sd15", "sdxl"):
            # Strided convolutions with padding round a side up.
            rows, columns = (math.ceil(side / 2**slot.halved) for side in self._size)
            return rows, columns
        patch = 2 if self._family == "flux" else int(self.network.config.patch_size)  # type: ignore[union-attr, arg-type]
        return self._size[0] // patch, self._size[1] // patch


class _Calls(TorchFunctionMode):
    """Hands the attention calls of known modules to the rules; torch leaves the mode while it is at work."""

    def __init__(self, attention: Attention, rows: Rows, step: Step, at_work: list[Slot]) -> None:
        super().__init__()
        self._attention = attention
        self._rows = rows
        self._step = step
        self._at_work = at_work

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = dict(kwargs or {})
        if func is not _ATTEND or not self._at_work:
            return func(*args, **arguments)
        arguments.update(zip(_ARGUMENTS, args[3:], strict=False))
        q, k, v = (*args[:3], *(arguments.pop(name) for name in ("query", "key", "value")[len(args[:3]) :]))
        mask = arguments.pop("attn_mask", None)
        four = None if mask is None else mask.reshape(*(1,) * (4 - mask.ndim), *mask.shape)

        def attend(queries: Tensor, keys: Tensor, values: Tensor, columns: Tensor | None) -> Tensor:
            answer: Tensor = _ATTEND(queries, keys, values, attn_mask=mask if columns is four else columns, **arguments)
            return answer

        site = self._attention.site(self._at_work[0], q.shape[2], k.shape[2])
        call = Call(q, k, v, attend, four, arguments.get("scale"))
        return self._attention.run.run(site, self._rows, self._step, call)


@dataclass(frozen=True)
class Prompts:
    """Conditionings of an edit.

    Attributes:
        source: That of the inversion or of the clean latent.
        target: That of the edit.
        uncond: The negative prompt; may be left out at cfg 1.
        cfg: Guidance strength of the target.
    """

    source: Cond
    target: Cond
    uncond: Cond | None = None
    cfg: float = 1.0


def attended_denoiser(model: DiffusersModel, inversion: Inversion, plan: AttentionPlan, prompts: Prompts) -> Denoiser:
    """A target's denoiser whose attention reads from the source, which stands where the inversion says.

    At every sigma where a rule acts the network sees the source's state under its own prompt first, and what the rules
    read waits for the target's forwards.

    Args:
        model: The model.
        inversion: The inversion; best with its path.
        plan: What the target reads.
        prompts: Conditionings of source and target.

    Raises:
        ValueError: As in Attention and the model's own denoiser, and if the plan blends latents or adds branches.
    """
    if plan.latent_rules:
        raise ValueError("attention must hold no local blend for a denoiser alone, got one; use attended_replay.")
    return _attended(model, inversion, plan, prompts)[0]


def attended_replay(
    model: DiffusersModel,
    inversion: Inversion,
    plan: AttentionPlan,
    prompts: Prompts,
    after_step: AfterStep | None = None,
) -> Tensor:
    """Play an inversion back under attended_denoiser, with the plan's blends of the latent after each step.

    Args:
        model: The model.
        inversion: The inversion; best with its path.
        plan: What the target reads, and its blends.
        prompts: Conditionings of source and target.
        after_step: Maps each state and its index to the one to go on from, after the plan's own blends.

    Returns:
        Latent of the edit, as from replay.

    Raises:
        ValueError: As in attended_denoiser and replay.
    """
    denoiser, run = _attended(model, inversion, plan, prompts)
    hook = run.after_step(inversion.falling, inversion.state_at, after_step)
    return replay(inversion, denoiser, denoiser, after_step=hook)


def _attended(
    model: DiffusersModel, inversion: Inversion, plan: AttentionPlan, prompts: Prompts
) -> tuple[Denoiser, AttentionRun]:
    """The denoiser of attended_denoiser, and the run whose maps its blends read."""
    if plan.branches:
        raise ValueError(
            f"attention must stay between source and target here, got the further branch {plan.branches[0]!r}; use it "
            "with InfEdit."
        )
    branches = Branches(model, plan, inversion.x0, prompts)
    plain = model.denoiser(inversion.x0, prompts.target, prompts.uncond, prompts.cfg)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        step = place(inversion.falling, sigma)
        if not branches.run.active(step):
            return plain(x, sigma)
        state = inversion.state_at(sigma, x.device).to(x)
        return branches({SOURCE: state, TARGET: x}, sigma, step, (TARGET,))[TARGET]

    return plain.answering(denoise), branches.run


class Branches:
    """A network under several prompts at one sigma, whose attention reads from each other.

    Args:
        model: The model.
        plan: What they read; its further branches run under the source's prompt.
        latent: Any latent of the shape to come.
        prompts: Conditionings; the target alone is guided.

    Raises:
        ValueError: As in Attention and in the model's own denoiser.
    """

    def __init__(self, model: DiffusersModel, plan: AttentionPlan, latent: Tensor, prompts: Prompts) -> None:
        guided = prompts.uncond is not None and prompts.cfg != 1.0
        self._cfgs = {TARGET: prompts.cfg} if guided else {}
        self._attention = Attention(model.network, plan, (int(latent.shape[2]), int(latent.shape[3])))
        self._denoisers = {
            branch: model.denoiser(latent, prompts.target if branch == TARGET else prompts.source)
            for branch in self.run.branches
        }
        self._negative = None if prompts.uncond is None else model.denoiser(latent, prompts.uncond)
        # What a guided branch may read in its uncond part.
        read = [rule.reads() for rule in self.run.rules] if plan.reads_uncond and guided else []
        self._negatives = set(self._cfgs).union(branch for entries in read for branch, _ in entries)

    @property
    def run(self) -> AttentionRun:
        """The run of the plan."""
        return self._attention.run

    def __call__(
        self, states: Mapping[str, Tensor], sigma: float, step: Step, wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        """Clean predictions of branches.

        Args:
            states: State of every branch, shape (B, C, H, W).
            sigma: Their noise level.
            step: When it is.
            wanted: Branches that are asked for; the others are only read, and only where a rule does.

        Raises:
            ValueError: If branches read from each other in a circle.
        """
        order = self.run.order(step)
        if order is None:
            raise ValueError("attention must let one branch come before the other here, got a circle; use base source.")
        self.run.clear()
        answers: dict[str, Tensor] = {}
        try:
            for branch in order:
                x = states[branch]
                with self._attention.forward(branch, "cond", x.shape[0], step):
                    answers[branch] = self._denoisers[branch](x, sigma)
                if self._negative is None or branch not in self._negatives:
                    continue
                with self._attention.forward(branch, "uncond", x.shape[0], step):
                    base = self._negative(x, sigma)
                answers[branch] = base + self._cfgs.get(branch, 1.0) * (answers[branch] - base)
        finally:
            self.run.clear()
        return {branch: answers[branch] for branch in wanted}
