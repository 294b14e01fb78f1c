"""SD1.x and SD2.x: UNets, where marker patches run just before each attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ....attention.sites import Grid, Kind, Site
from ..resolver import Options, Resolver, Slot


class SD15(Resolver):
    """UNets without pooled text."""

    family = "sd15"
    label = "SD1.x, SD2.x"
    networks = ("modules.diffusionmodules.openaimodel.UNetModel",)

    # The call that comes next, and its grid.
    _pending: Slot | None
    _grid: Grid

    @classmethod
    def of_family(cls, network: Any) -> bool:
        return network.num_classes is None

    def mark(self, options: Options) -> Options:
        patches = dict(options.get("patches", {}))
        patches["attn1_patch"] = [*patches.get("attn1_patch", ()), self._marker("self")]
        patches["attn2_patch"] = [*patches.get("attn2_patch", ()), self._marker("cross")]
        return {**options, "patches": patches}

    def site(self, queries: int, keys: int, options: Options) -> Site | None:
        slot, self._pending = self._pending, None
        if slot is None or slot not in self._numbers:
            return None
        return self._site_at(slot, (0, queries), (0, keys) if slot.kind == "cross" else None, self._grid)

    def end(self) -> None:
        self._skipped()

    def grid_of(self, slot: Slot, shape: Sequence[int]) -> Grid:
        # Strided convolutions with padding round a side up; the way up meets the same sizes in reverse.
        size, sizes = tuple(shape[-2:]), []
        for block in self.network.input_blocks:
            if any(type(layer).__name__ == "Downsample" for layer in block):
                size = tuple((side + 1) // 2 for side in size)
            sizes.append(size)
        rows, columns = sizes[{"input": slot.index, "middle": -1, "output": -1 - slot.index}[slot.stack]]
        return 1, rows, columns

    def _read(self) -> Iterator[Slot]:
        network = self.network
        yield from self._stack("input", network.input_blocks)
        yield from self._stack("middle", [] if network.middle_block is None else [network.middle_block])
        yield from self._stack("output", network.output_blocks)

    def _stack(self, stack: str, blocks: Any) -> Iterator[Slot]:
        for index, layer in ((index, layer) for index, block in enumerate(blocks) for layer in block):
            if type(layer).__name__ == "SpatialVideoTransformer":
                raise ValueError(
                    "model must attend within one picture to have its attention controlled, got a UNet with attention "
                    "over time; leave attention out."
                )
            if type(layer).__name__ != "SpatialTransformer":
                continue
            for inner, transformer in enumerate(layer.transformer_blocks):
                if not transformer.disable_self_attn:
                    yield Slot(stack, index, inner, "self")
                if transformer.attn2 is not None and not transformer.switch_temporal_ca_to_sa:
                    yield Slot(stack, index, inner, "cross")

    def _restart(self) -> None:
        self._pending = None
        self._grid = (1, 1, 1)

    def _marker(self, kind: Kind) -> Callable[..., Any]:
        def mark(n: Any, context: Any, value: Any, extra: Options) -> Any:
            self._skipped()
            stack, index = extra["block"]
            self._pending = Slot(stack, index, extra.get("block_index", 0), kind)
            rows, columns = extra["activations_shape"][-2:]
            self._grid = (1, int(rows), int(columns))
            return n, context, value

        return mark

    def _skipped(self) -> None:
        if self._pending is not None and self._pending in self._numbers:
            self.bypassed.add(self._pending)
        self._pending = None
