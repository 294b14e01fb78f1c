"""Which attention call of the host's network is this? What every architecture answers.

The host tells a hook of an attention call little and differently in every release. A network is therefore read once
for the calls that it will make, and while it runs its resolver follows where it stands. resolvers/ has one file for
each family of architectures.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...attention.sites import Grid, Kind, Site, Span

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

    @property
    def block(self) -> tuple[str, int, int]:
        """The block, or the transformer inside a UNet's block, that makes the call."""
        return self.stack, self.index, self.inner


def frames_rows_columns(shape: Sequence[int]) -> Grid:
    """Return frames, rows and columns of a latent; a picture has one frame, sound one row."""
    return (int(shape[2]) if len(shape) == 5 else 1), (int(shape[-2]) if len(shape) > 3 else 1), int(shape[-1])


class Resolver(ABC):
    """Follows a network through its forwards; one object for one run. One family a file in resolvers/, found by it.

    Args:
        network: The diffusion model of a loaded MODEL.

    Attributes:
        family: Name of the family, equal to the name of the file.
        label: Its models, for people.
        networks: Classes of the host that it serves, below comfy.ldm. Subclasses of a network move tokens about, so
            that each is named.
        since: Version of the host that first has them; the floor of the pack where it is not said.
        preset_layers: Layer text by preset, or by "preset variant", where the preset's authors give none for this
            family and its layers for every other family do not suit.
        word_layers: Layers that show where words are.
        measured: Whether its sites are known only once the network has run, and words not at all.
        slots: Every attention call of a forward that rules can reach, in order.
        bypassed: Slots whose attention another pack replaced, so that no call was seen.
    """

    family: ClassVar[str]
    label: ClassVar[str]
    networks: ClassVar[tuple[str, ...]]
    since: ClassVar[tuple[int, int, int]] = (0, 8, 0)
    preset_layers: ClassVar[Mapping[str, str]] = {}
    word_layers: ClassVar[str] = "all"
    measured: ClassVar[bool] = False

    def __init__(self, network: Any) -> None:
        self.network = network
        self.slots = tuple(self._read())
        self.bypassed: set[Slot] = set()
        self._shape: tuple[int, ...] = ()
        self._extra: dict[str, Any] = {}
        self._number()

    def _number(self) -> None:
        """Number the slots by their kind and their depth."""
        counts: dict[str, int] = {}
        self._numbers: dict[Slot, int] = {}
        for slot in self.slots:
            self._numbers[slot] = counts.setdefault(slot.kind, 0)
            counts[slot.kind] += 1
        # By the block: the second attention of SD3.5-M's first blocks stands as deep as the first.
        order = {block: place for place, block in enumerate(dict.fromkeys(slot.block for slot in self.slots))}
        self._depths = {slot: order[slot.block] / max(1, len(order) - 1) for slot in self.slots}

    @classmethod
    def serves(cls, network: Any) -> bool:
        """Whether a network is of this family."""
        kind = type(network)
        name = f"{kind.__module__}.{kind.__name__}".removeprefix("comfy.ldm.")
        return name in cls.networks and cls.of_family(network)

    @classmethod
    def of_family(cls, network: Any) -> bool:
        """Whether a network of one of these classes is of this family, where families share a class."""
        return True

    @classmethod
    def may_share(cls, model_conds: Sequence[Mapping[str, Any]]) -> bool:
        """Whether conditionings of equal shapes may be rows of one forward.

        Args:
            model_conds: What the host's model made of each conditioning, with the same names in all.
        """
        return True

    def begin(self, shape: Sequence[int], extra: dict[str, Any]) -> None:
        """A forward begins.

        Args:
            shape: Shape of the latent that the network is given.
            extra: Further arguments of the network by name, "c_crossattn" among them: the text as it was encoded.
        """
        self._shape, self._extra = tuple(shape), extra
        self._restart()

    def prepare(  # noqa: B027 - only what is measured needs it
        self, ask: Callable[..., None], x: torch.Tensor, text: torch.Tensor | None
    ) -> None:
        """Look at the network before a forward.

        Args:
            ask: Makes a forward of (latent, text, attention override).
            x: The latent that the network will be given.
            text: The encoded text, None without one.
        """

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

    def complete(self) -> None:  # noqa: B027 - as prepare
        """The forward was made without an error."""

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
        grids = [(slot, self.grid_of(slot, shape)) for slot in self.slots]
        return tuple(self._site_at(slot, (0, math.prod(grid)), None, grid) for slot, grid in grids)

    @abstractmethod
    def _read(self) -> Iterator[Slot]:
        """List the slots of the network."""

    @abstractmethod
    def _restart(self) -> None:
        """Forget the last forward."""

    def _site_at(self, slot: Slot, image: Span, text: Span | None, grid: Grid) -> Site:
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
