"""A network that no resolver knows, read by moving what it is shown and looking which rows of its attention move.

Three more forwards at the first attended step, kept for the network: one as it is, one with the first, the last and a
middle cell of the latent moved, one with the text moved. In the first call whose queries move, three rows do, if each
patch has one row: they tell where the picture begins and ends, and so how many cells a patch has, and whether rows run
in the order of pictures. Deeper calls mix everything; they are told by their lengths.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ...attention.sites import Grid, Kind, Site, Span
from .resolver import Options, Resolver, Slot, frames_rows_columns

# Side of a patch, and frames of one, in cells.
_SIDES, _FRAMES = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8)
# What has moved by less than this share of the largest row is rounding.
_ROUNDING = 1e-6

# One forward with an attention override: (latent, text, override).
Ask = Callable[[torch.Tensor, torch.Tensor | None, Callable[..., Any]], None]


class _Seen(NamedTuple):
    """An attention call: a number for each row of its queries and keys, and whether its batch is that of the latent."""

    queries: torch.Tensor
    keys: torch.Tensor
    whole: bool


class _Place(NamedTuple):
    """What a call is: its slot, where the picture and the text lie, and its lengths."""

    slot: Slot
    image: Span
    text: Span | None
    lengths: tuple[int, int]


class _Reading(NamedTuple):
    """What was measured of a network: a place for each call or None, and the grid of the picture's rows."""

    places: tuple[_Place | None, ...]
    grid: Grid


# By the network, then by the shapes it was shown.
_READINGS: weakref.WeakKeyDictionary[Any, dict[Any, _Reading]] = weakref.WeakKeyDictionary()


class Measured(Resolver):
    """Follows the calls of any transformer in their order, once it has seen a forward.

    Its layers are called block:0, block:1, .. in the order of their calls; presets take them by their depth. Words are
    not looked for: which row of the text is which token is nothing that moves tell.
    """

    family = "measured"
    label = "others, measured"
    networks = ()
    measured = True

    def prepare(self, ask: Ask, x: torch.Tensor, text: torch.Tensor | None) -> None:
        """Measure, where these shapes are new; see Resolver."""
        readings = _READINGS.setdefault(self.network, {})
        extra = sorted((name, _shapes(value)) for name, value in self._extra.items())
        key = (tuple(x.shape[1:]), None if text is None else tuple(text.shape[1:]), str(extra))
        if key not in readings:
            with torch.no_grad():
                readings[key] = self._measure(ask, x, text)
        self._reading = readings[key]
        self.slots = tuple(dict.fromkeys(place.slot for place in self._reading.places if place is not None))
        self._number()

    def mark(self, options: Options) -> Options:
        """Return the options as they are: calls are counted."""
        return options

    def site(self, queries: int, keys: int, options: Options) -> Site | None:
        """Return the site of the next call."""
        places, number = self._reading.places, self._call
        self._call += 1
        place = places[number] if number < len(places) else None
        if place is None:
            return None
        if place.lengths != (queries, keys):
            rows, columns = place.lengths
            raise _changed(f"one of {queries} and {keys} rows in the place of one of {rows} and {columns}")
        return self._site_at(place.slot, place.image, place.text, self._reading.grid)

    def complete(self) -> None:
        """Refuse a forward of more or fewer calls than the measured one, whose sites stood in other places."""
        if self._call != len(self._reading.places):
            raise _changed(f"{self._call} in place of {len(self._reading.places)}")

    def grid_of(self, slot: Slot, shape: Sequence[int]) -> Grid:
        """Return the measured grid."""
        return self._reading.grid

    def _read(self) -> Iterator[Slot]:
        yield from ()

    def _restart(self) -> None:
        self._call = 0

    def _measure(self, ask: Ask, x: torch.Tensor, text: torch.Tensor | None) -> _Reading:
        size = frames_rows_columns(x.shape)
        cells = [(0, 0, 0), tuple(edge - 1 for edge in size), (size[0] // 2, size[1] // 3, 2 * size[2] // 3)]
        moved = x.clone(memory_format=torch.contiguous_format)
        for frame, row, column in cells:
            moved.reshape(*x.shape[:2], *size)[:, :, frame, row, column] += _step(x)
        before = _calls(ask, x, text, x.shape[0])
        if not before:
            raise self._unknown("does not call the host's attention")
        after = _calls(ask, moved, text, x.shape[0])
        worded = before if text is None else _calls(ask, x, _other(text), x.shape[0])
        if not len(before) == len(after) == len(worded):
            raise self._unknown("makes other calls for another picture or text")
        moves = [_rows(a.queries, b.queries) for a, b in zip(before, after, strict=True)]
        first = next((number for number, rows in enumerate(moves) if rows), None)
        if first is None or not before[first].whole:
            raise self._unknown("attends within windows, or along one axis at a time")
        start, stop = moves[first][0], moves[first][-1] + 1
        grid = _grid(size, cells, [row - start for row in moves[first]], stop - start)
        if grid is None:
            raise self._unknown("does not give each patch of the picture one row, in the order of the picture")
        texts = [_rows(a.keys, b.keys) for a, b in zip(before, worded, strict=True)]
        length = None if text is None else int(text.shape[1])
        places = _places(before, moves, texts, first, (start, stop), length)
        if not any(places):
            raise self._unknown("attends to the picture in calls that cannot be told apart")
        return _Reading(tuple(places), grid)

    def _unknown(self, why: str) -> ValueError:
        return ValueError(
            "model must give each patch of the picture one row of its attention to have that controlled, got "
            f"{type(self.network).__name__}, which {why}; leave attention out."
        )


def _changed(got: str) -> ValueError:
    return ValueError(
        f"model must make the same attention calls in every forward to have its attention controlled, got {got}; "
        "connect the MODEL from before the node that skips, adds or merges some, or leave attention out."
    )


def _calls(ask: Ask, x: torch.Tensor, text: torch.Tensor | None, batch: int) -> list[_Seen]:
    """The attention calls of one forward, first row of the batch."""
    seen: list[_Seen] = []

    def override(
        function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **own: Any
    ) -> Any:
        split = own.get("skip_reshape", args[2] if len(args) > 2 else False)
        seen.append(_Seen(_numbers(q, split), _numbers(k, split), q.shape[0] == batch))
        return function(q, k, v, heads, *args, **own)

    ask(x, text, override)
    return seen


def _numbers(tensor: torch.Tensor, split: bool) -> torch.Tensor:
    """One number a row of a sequence: a weighted sum of its features."""
    rows = tensor[0].transpose(0, 1).flatten(1) if split else tensor[0].flatten(1)
    weights = torch.linspace(0.5, 1.5, rows.shape[1], device=rows.device)
    return (rows.float() * weights).sum(1).cpu()


def _rows(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """Rows that moved, in order; none where the lengths differ."""
    if before.shape != after.shape:
        return []
    rows: list[int] = ((after - before).abs() > _ROUNDING * before.abs().max()).nonzero().flatten().tolist()
    return rows


def _grid(size: Grid, cells: Sequence[tuple[int, ...]], rows: Sequence[int], count: int) -> Grid | None:
    """The grid of patches in which just these rows hold the cells, None if there is none.

    Latents are padded to whole patches behind their last row and column, some in a circle, so that a first cell may
    stand there a second time.
    """
    for frames in _FRAMES:
        for side in _SIDES:
            patch = (frames, side, side)
            grid = tuple(-(-edge // cover) for edge, cover in zip(size, patch, strict=True))
            if math.prod(grid) != count:
                continue
            own, padded = set(), set()
            for cell in cells:
                places = [{place // cover} for place, cover in zip(cell, patch, strict=True)]
                own |= _numbered(places, grid)
                for places_of, place, edge, cover in zip(places, cell, size, patch, strict=True):
                    if place < -edge % cover:
                        places_of.add((edge + place) // cover)
                padded |= _numbered(places, grid)
            if own <= set(rows) <= padded:
                return grid[0], grid[1], grid[2]
    return None


def _numbered(places: Sequence[set[int]], grid: Sequence[int]) -> set[int]:
    frames, rows, columns = places
    return {(f * grid[1] + r) * grid[2] + c for f in frames for r in rows for c in columns}


def _places(
    before: Sequence[_Seen],
    moves: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    first: int,
    image: Span,
    length: int | None,
) -> list[_Place | None]:
    """A place for each call; where lengths are others, the picture is a block of rows that moves before the rest.

    None of all where most calls cannot be told.
    """
    tokens = image[1] - image[0]
    images = {tokens: (0, tokens), len(before[first].queries): image}
    places: list[_Place | None] = []
    blocks = untold = 0
    for seen, moved, worded in zip(before, moves, texts, strict=True):
        queries, keys = len(seen.queries), len(seen.keys)
        if queries not in images and _block(moved) and len(moved) in images:
            # A sequence from before stands in this one, with what filled it up.
            start, stop = images[len(moved)]
            images[queries] = moved[0] + start, moved[0] + stop
        span = images.get(queries)
        if not seen.whole or span is None or not moved:
            places.append(None)
            untold += seen.whole and len(moved) >= tokens
            continue
        # Rows beside the picture that the text moves are the text, or have read it.
        kind: Kind = "joint" if any(not span[0] <= row < span[1] for row in worded) else "self"
        if queries != keys:
            # Keys of the picture that were merged or kept from elsewhere are no picture's rows.
            if not _block(worded) or len(worded) != length:
                places.append(None)
                continue
            kind = "cross"
        text = (worded[0], worded[-1] + 1) if kind == "cross" else None
        blocks += kind != "cross" or not places
        places.append(_Place(Slot("block", max(0, blocks - 1), 0, kind), span, text, (queries, keys)))
    # Other streams, such as sound, may be as long as the picture, but no network has more of them than of it.
    return places if blocks >= untold else []


def _block(rows: Sequence[int]) -> bool:
    return bool(rows) and rows[-1] - rows[0] + 1 == len(rows)


def _step(tensor: torch.Tensor) -> torch.Tensor:
    """How far something is moved: as far as its entries lie apart."""
    return tensor.float().std().clamp(min=0.1).to(tensor)


def _other(text: torch.Tensor) -> torch.Tensor:
    """The text with every row moved."""
    return text + _step(text) * torch.linspace(-1.0, 1.0, text.shape[-1]).to(text)


def _shapes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape[1:])
    return [_shapes(item) for item in value] if isinstance(value, (list, tuple)) else type(value).__name__
