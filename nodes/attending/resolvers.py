"""Which attention call of the host's network is this? A resolver for each family of architectures.

The host tells a hook of an attention call little and differently in every release. A network is therefore read once
for the calls that it will make, and while it runs the resolver follows where it stands: on UNets by marker patches,
which run just before each attention, on transformers by wrapping their blocks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...attention.sites import Grid, Kind, Site, Span
from ..host.compiled import refuse_compiled

Options = dict[str, Any]


@dataclass(frozen=True)
class Slot:
    """An attention call that a network makes in every forward.

    Attributes:
        stack: "input", "middle", "output", "double", "single" or "block".
        index: Number of the block in its stack.
        inner: Number of the transformer in its block.
        kind: "self", "cross" or "joint".
    """

    stack: str
    index: int
    inner: int
    kind: Kind


def _block(slot: Slot) -> tuple[str, int, int]:
    return slot.stack, slot.index, slot.inner


def frames_rows_columns(shape: Sequence[int]) -> Grid:
    """Return frames, rows and columns of a latent; a picture has one frame."""
    return (int(shape[2]) if len(shape) == 5 else 1), int(shape[-2]), int(shape[-1])


class Resolver(ABC):
    """Follows a network through its forwards; one object for one run.

    Args:
        network: The diffusion model of a loaded MODEL.

    Attributes:
        family: Name of the family, which the defaults of the rules are listed under.
        slots: Every attention call of a forward that rules can reach, in order.
        bypassed: Slots whose attention another pack replaced, so that no call was seen.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.slots = tuple(self._read())
        self.bypassed: set[Slot] = set()
        self._places = {slot: place for place, slot in enumerate(self.slots)}
        counts: dict[str, int] = {}
        self._numbers: dict[Slot, int] = {}
        for slot in self.slots:
            self._numbers[slot] = counts.setdefault(slot.kind, 0)
            counts[slot.kind] += 1
        # By the block: the second attention of SD3.5-M's first blocks stands as deep as the first.
        blocks = {place: depth for depth, place in enumerate(dict.fromkeys(map(_block, self.slots)))}
        self._depths = {slot: blocks[_block(slot)] / max(1, len(blocks) - 1) for slot in self.slots}
        self._shape: tuple[int, ...] = ()
        self._extra: dict[str, Any] = {}

    @property
    @abstractmethod
    def family(self) -> str:
        """Name of the family."""

    def begin(self, shape: Sequence[int], extra: dict[str, Any]) -> None:
        """A forward begins.

        Args:
            shape: Shape of the latent that the network is given.
            extra: Further arguments of the network by name, "c_crossattn" among them: the text as it was encoded.
        """
        self._shape, self._extra = tuple(shape), extra
        self._restart()

    @abstractmethod
    def mark(self, options: Options) -> Options:
        """Return transformer_options with what the resolver needs; what other packs put there stays."""

    @abstractmethod
    def site(self, queries: int, keys: int, options: Options) -> Site | None:
        """Return the site of the attention call that is being made, None for a call that rules do not reach.

        Args:
            queries: Tokens of the query sequence.
            keys: Tokens of the key sequence.
            options: The transformer_options of the call.
        """

    def end(self) -> None:  # noqa: B027 - only markers leave something open
        """The forward is over."""

    @abstractmethod
    def grid_of(self, slot: Slot, shape: Sequence[int]) -> Grid:
        """Return frames, rows and columns of the image tokens at a slot, for a latent of this shape."""

    def sites(self, shape: Sequence[int]) -> tuple[Site, ...]:
        """Return all sites as they will be for a latent of this shape, with the text left out.

        Args:
            shape: Shape of the latent, (B, C, [T,] H, W).
        """
        self._shape = tuple(shape)
        found = (self._site(slot, (0, math.prod(grid)), None, grid) for slot, grid in self._grids(shape))
        return tuple(site for site in found if site is not None)

    def _grids(self, shape: Sequence[int]) -> Iterator[tuple[Slot, Grid]]:
        return ((slot, self.grid_of(slot, shape)) for slot in self.slots)

    @abstractmethod
    def _read(self) -> Iterator[Slot]:
        """List the slots of the network."""

    @abstractmethod
    def _restart(self) -> None:
        """Forget the last forward."""

    def _site(self, slot: Slot, image: Span, text: Span | None, grid: Grid) -> Site | None:
        if slot not in self._places:
            return None
        return Site(
            stack=slot.stack,
            index=slot.index,
            inner=slot.inner,
            kind=slot.kind,
            number=self._numbers[slot],
            depth=self._depths[slot],
            image=image,
            text=text,
            grid=grid,
            latent=frames_rows_columns(self._shape),
        )


class _UNet(Resolver):
    """SD1.x, SD2.x and SDXL."""

    @property
    def family(self) -> str:
        return "sd15" if getattr(self.network, "num_classes", None) is None else "sdxl"

    def _read(self) -> Iterator[Slot]:
        network = self.network
        for stack, blocks in (
            ("input", network.input_blocks),
            ("middle", [network.middle_block] if network.middle_block is not None else []),
            ("output", network.output_blocks),
        ):
            for index, block in enumerate(blocks):
                for layer in block:
                    kind = type(layer).__name__
                    if kind == "SpatialVideoTransformer":
                        raise ValueError(_unknown("a UNet with attention over time"))
                    if kind != "SpatialTransformer":
                        continue
                    for inner, transformer in enumerate(layer.transformer_blocks):
                        if not transformer.disable_self_attn:
                            yield Slot(stack, index, inner, "self")
                        if transformer.attn2 is not None and not transformer.switch_temporal_ca_to_sa:
                            yield Slot(stack, index, inner, "cross")

    def _restart(self) -> None:
        self._pending: Slot | None = None
        self._grid: Grid = (1, 1, 1)

    def mark(self, options: Options) -> Options:
        patches = dict(options.get("patches", {}))
        for name, kind in (("attn1_patch", "self"), ("attn2_patch", "cross")):
            patches[name] = [*patches.get(name, ()), self._marker(kind)]
        return {**options, "patches": patches}

    def _marker(self, kind: Any) -> Callable[..., Any]:
        def mark(n: Any, context: Any, value: Any, extra: Options) -> Any:
            self._skipped()
            stack, index = extra["block"]
            self._pending = Slot(stack, index, extra.get("block_index", 0), kind)
            self._grid = (1, *(int(side) for side in extra["activations_shape"][-2:]))
            return n, context, value

        return mark

    def _skipped(self) -> None:
        if self._pending is not None and self._pending in self._places:
            self.bypassed.add(self._pending)
        self._pending = None

    def site(self, queries: int, keys: int, options: Options) -> Site | None:
        slot, self._pending = self._pending, None
        if slot is None:
            return None
        return self._site(slot, (0, queries), (0, keys) if slot.kind == "cross" else None, self._grid)

    def end(self) -> None:
        self._skipped()

    def grid_of(self, slot: Slot, shape: Sequence[int]) -> Grid:
        # Strided convolutions with padding round a side up; the way up meets the same sizes in reverse.
        side, sizes = tuple(shape[-2:]), []
        for block in self.network.input_blocks:
            if any(type(layer).__name__ == "Downsample" for layer in block):
                side = tuple((length + 1) // 2 for length in side)
            sizes.append(side)
        if slot.stack == "middle":
            rows, columns = sizes[-1]
        else:
            rows, columns = sizes[slot.index if slot.stack == "input" else len(sizes) - 1 - slot.index]
        return 1, rows, columns


class _Blocks(Resolver):
    """Transformers whose blocks the host lets be replaced one by one."""

    name = ""
    # Stack, attribute of the network, key of the host's replacement.
    stacks: tuple[tuple[str, str, str], ...] = (("block", "transformer_blocks", "double_block"),)

    @property
    def family(self) -> str:
        return self.name

    def kinds_of(self, block: Any) -> tuple[Kind | None, ...]:
        """Kinds of the calls of a block in order, None for one that rules do not reach."""
        return ("joint",)

    def patch(self) -> tuple[int, int, int]:
        """Latent cells that a token covers: frames, rows, columns."""
        size = int(self.network.patch_size)
        return 1, size, size

    def _read(self) -> Iterator[Slot]:
        self._calls: dict[tuple[str, int], tuple[Kind | None, ...]] = {}
        for stack, attribute, _ in self.stacks:
            for index, block in enumerate(getattr(self.network, attribute)):
                kinds = self.kinds_of(block)
                self._calls[stack, index] = kinds
                for kind in kinds:
                    if kind is not None:
                        yield Slot(stack, index, 0, kind)

    def _restart(self) -> None:
        self._place: tuple[str, int] | None = None
        self._made = 0
        self._text = 0

    def mark(self, options: Options) -> Options:
        replace = dict(options.get("patches_replace", {}))
        blocks = dict(replace.get("dit", {}))
        for stack, attribute, key in self.stacks:
            for index in range(len(getattr(self.network, attribute))):
                blocks[key, index] = self._around(stack, index, blocks.get((key, index)))
        replace["dit"] = blocks
        return {**options, "patches_replace": replace}

    def _around(self, stack: str, index: int, other: Callable[..., Any] | None) -> Callable[..., Any]:
        def block(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            self._place, self._made = (stack, index), 0
            # Single blocks get text and image in one; their text is that of the double blocks before them.
            if args.get("txt") is not None:
                self._text = int(args["txt"].shape[1])
            try:
                return extra["original_block"](args) if other is None else other(args, extra)
            finally:
                if self._made == 0:
                    self.bypassed.update(s for s in self.slots if (s.stack, s.index) == (stack, index))
                self._place = None

        return block

    def site(self, queries: int, keys: int, options: Options) -> Site | None:
        if self._place is None:
            return None
        stack, index = self._place
        kinds, made = self._calls[stack, index], self._made
        self._made += 1
        if made >= len(kinds) or kinds[made] is None:
            return None
        slot = Slot(stack, index, 0, kinds[made])
        grid = self.grid_of(slot, self._shape)
        image, text = self.parts(slot.kind, queries, keys, math.prod(grid))
        return self._site(slot, image, text, grid)

    def parts(self, kind: Kind, queries: int, keys: int, tokens: int) -> tuple[Span, Span | None]:
        """Return where the image tokens lie among the queries, and the text tokens among the keys."""
        if kind == "self":
            return (0, tokens), None
        if kind == "cross":
            return (0, tokens), (0, keys)
        return (self._text, self._text + tokens), (0, self._text)

    def grid_of(self, slot: Slot, shape: Sequence[int]) -> Grid:
        sizes = frames_rows_columns(shape)
        # Latents are padded to whole patches.
        frames, rows, columns = (-(-size // patch) for size, patch in zip(sizes, self.patch(), strict=True))
        return frames, rows, columns


_DOUBLE_SINGLE = (("double", "double_blocks", "double_block"), ("single", "single_blocks", "single_block"))


class _Flux(_Blocks):
    stacks = _DOUBLE_SINGLE

    @property
    def family(self) -> str:
        # Published layer lists are of Flux.1, which Chroma descends from. Flux.2 and LongCat-Image have other blocks,
        # and no pooled text.
        return "flux" if getattr(self.network, "vector_in", self.network) is not None else "flux2"


class _SD3(_Blocks):
    name = "sd3"
    stacks = (("block", "joint_blocks", "double_block"),)

    def kinds_of(self, block: Any) -> tuple[Kind | None, ...]:
        # The first blocks of SD3.5-M attend a second time, to the image alone.
        return ("joint", "self") if getattr(block.x_block, "x_block_self_attn", False) else ("joint",)


class _Aura(_Blocks):
    name = "aura"
    stacks = (("double", "double_layers", "double_block"), ("single", "single_layers", "single_block"))

    def parts(self, kind: Kind, queries: int, keys: int, tokens: int) -> tuple[Span, Span | None]:
        # Learnt tokens stand in front of the text.
        return (queries - tokens, queries), (int(self.network.register_tokens.shape[1]), keys - tokens)


class _Qwen(_Blocks):
    name = "qwen"


class _Wan(_Blocks):
    name = "wan"
    stacks = (("block", "blocks", "double_block"),)

    def kinds_of(self, block: Any) -> tuple[Kind | None, ...]:
        # Image-to-video blocks look at CLIP's picture before the text.
        return ("self", None, "cross") if hasattr(block.cross_attn, "k_img") else ("self", "cross")

    def patch(self) -> tuple[int, int, int]:
        frames, rows, columns = self.network.patch_size
        return frames, rows, columns

    def parts(self, kind: Kind, queries: int, keys: int, tokens: int) -> tuple[Span, Span | None]:
        # A reference frame stands in front of the clip; subjects and other references come behind it.
        reference = self._extra.get("reference_latent")
        start = 0
        if reference is not None and getattr(self.network, "ref_conv", None) is not None:
            _, rows, columns = self.patch()
            start = (reference.shape[-2] // rows) * (reference.shape[-1] // columns)
        return (start, start + tokens), (0, keys) if kind == "cross" else None


class _HunyuanVideo(_Blocks):
    stacks = _DOUBLE_SINGLE

    @property
    def family(self) -> str:
        # Version 1.5 has double blocks alone.
        return "hunyuan_video" if len(self.network.single_blocks) else "hunyuan_video_15"

    def patch(self) -> tuple[int, int, int]:
        patch = tuple(self.network.patch_size)
        return (1, *patch) if len(patch) == 2 else patch  # type: ignore[return-value]

    def parts(self, kind: Kind, queries: int, keys: int, tokens: int) -> tuple[Span, Span | None]:
        if getattr(self.network.double_blocks[0], "flipped_img_txt", False):
            # Host 0.3.64: picture first. A reference stands in front of it.
            end = queries - self._text
            return (end - tokens, end), (keys - self._text, keys)
        return (queries - tokens, queries), (0, self._text)


class _LTX(_Blocks):
    name = "ltx"

    def kinds_of(self, block: Any) -> tuple[Kind | None, ...]:
        return ("self", "cross")

    def patch(self) -> tuple[int, int, int]:
        return 1, 1, 1


_REFINERS = ("context_refiner", "siglip_refiner", "noise_refiner")


class _Lumina(_Blocks):
    """Lumina 2 and Z-Image: no block can be replaced, so calls are counted past the refiners in front of them."""

    name = "lumina"
    stacks = (("block", "layers", ""),)

    def mark(self, options: Options) -> Options:
        return options

    def _restart(self) -> None:
        super()._restart()
        self._seen = 0
        self._refiners = sum(len(getattr(self.network, name, None) or ()) for name in _REFINERS)

    def site(self, queries: int, keys: int, options: Options) -> Site | None:
        # Hosts from 0.5 on number the blocks; older ones have no further refiners.
        index = options.get("block_index", self._seen - self._refiners)
        self._seen += 1
        if not 0 <= index < len(self.network.layers):
            return None
        slot = Slot("block", index, 0, "joint")
        grid = self.grid_of(slot, self._shape)
        tokens = math.prod(grid)
        multiple = getattr(self.network, "pad_tokens_multiple", None) or 1
        start = keys - -(-tokens // multiple) * multiple
        # Z-Image fills the text up to a multiple too.
        context = self._extra.get("c_crossattn")
        text = start if context is None else min(start, int(context.shape[1]))
        return self._site(slot, (start, start + tokens), (0, text), grid)


# Module of the host below comfy.ldm, class: its subclasses move tokens about, so each is named.
_RESOLVERS: dict[tuple[str, str], type[Resolver]] = {
    ("modules.diffusionmodules.openaimodel", "UNetModel"): _UNet,
    ("modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper"): _SD3,
    ("flux.model", "Flux"): _Flux,
    ("chroma.model", "Chroma"): _Flux,
    ("aura.mmdit", "MMDiT"): _Aura,
    ("qwen_image.model", "QwenImageTransformer2DModel"): _Qwen,
    ("wan.model", "WanModel"): _Wan,
    ("wan.model", "VaceWanModel"): _Wan,
    ("wan.model", "CameraWanModel"): _Wan,
    ("hunyuan_video.model", "HunyuanVideo"): _HunyuanVideo,
    ("lightricks.model", "LTXVModel"): _LTX,
    ("lumina.model", "NextDiT"): _Lumina,
}
_KNOWN = "SD1.x, SD2.x, SDXL, SD3, Flux, Chroma, AuraFlow, Qwen-Image, Wan, HunyuanVideo, LTX, Lumina 2 and Z-Image"


def resolver_for(network: Any) -> Resolver:
    """Return a resolver for a network.

    Args:
        network: The diffusion model of a MODEL.

    Raises:
        ValueError: If nothing is known of the architecture's attention, or the network is compiled.
    """
    refuse_compiled(network)
    kind = type(network)
    found = _RESOLVERS.get((kind.__module__.removeprefix("comfy.ldm."), kind.__name__))
    if found is None:
        raise ValueError(_unknown(kind.__name__))
    return found(network)


def _unknown(name: str) -> str:
    return (
        f"model must be of a kind whose attention is known ({_KNOWN}), got {name}; "
        "leave attention out, everything else works with this model."
    )
