"""A procedural world of captioned pictures: one shape on a coloured background, with its exact mask.

A `Scene` says in words what a picture shows; `render` draws scenes. The nuisances (shade of the
colours, gradient of the background, place within its fifth of the picture, a little noise) come from
a seed, so the same scene and seed give the same bits everywhere.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

SIZE = 64  # pixels, both sides
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {  # sRGB; chosen at least 100 apart (Euclidean)
    "red": (215, 40, 40),
    "yellow": (245, 220, 50),
    "green": (40, 160, 60),
    "cyan": (60, 205, 225),
    "blue": (35, 60, 205),
    "purple": (150, 50, 190),
    "white": (240, 240, 240),
    "black": (30, 30, 30),
}
POSITIONS: dict[str, tuple[int, int]] = {  # direction of the offset from the centre: x right, y down
    "middle": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
}
SIZES: dict[str, tuple[float, float]] = {  # half extent in pixels, offset of an off-centre place in pixels
    "big": (17.0, 11.0),
    "small": (9.5, 17.0),
}
_PLACE = {
    "middle": "on",
    "left": "on the left of",
    "right": "on the right of",
    "top": "at the top of",
    "bottom": "at the bottom of",
}
# One (shape, colour, background) triple in ten is never trained on, in any size or place.
_HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in the words of the caption."""

    size: str
    colour: str
    shape: str
    position: str
    background: str

    def __post_init__(self) -> None:
        for name, value, known in (
            ("size", self.size, SIZES),
            ("colour", self.colour, COLOURS),
            ("shape", self.shape, SHAPES),
            ("position", self.position, POSITIONS),
            ("background", self.background, COLOURS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}; use one of these words.")
        if self.colour == self.background:
            raise ValueError(
                f"colour must differ from the background, got {self.colour!r} for both; change one of them."
            )

    @property
    def caption(self) -> str:
        """The caption, such as "a big red circle on the left of a blue background"."""
        return f"a {self.size} {self.colour} {self.shape} {_PLACE[self.position]} a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether this combination of shape and colours is kept from training."""
        triple = f"{self.shape} {self.colour} {self.background}"
        return zlib.crc32(triple.encode()) % _HELD_OUT_EVERY == 0

    def changed(self, **words: str) -> Scene:
        """The same scene with some words changed, such as `scene.changed(colour="green")`."""
        return replace(self, **words)


def parse(caption: str) -> Scene:
    """Read a caption of this world back into its scene.

    Raises:
        ValueError: If a word is missing or unknown.
    """
    found = re.fullmatch(
        rf"an? (\w+) (\w+) (\w+) ({'|'.join(_PLACE.values())}) an? (\w+) background",
        caption.strip().lower(),
    )
    if not found:
        raise ValueError(
            f"caption must read like 'a big red circle on a blue background', got {caption!r}; write it that way."
        )
    size, colour, shape, place, background = found.groups()
    position = next(word for word, phrase in _PLACE.items() if phrase == place)
    return Scene(size, colour, shape, position, background)


def scenes(held_out: bool | None = None) -> Iterator[Scene]:
    """Every scene of the world; only the held-out or only the trained ones when asked."""
    for shape in SHAPES:
        for colour in COLOURS:
            for background in COLOURS:
                if colour == background:
                    continue
                for size in SIZES:
                    for position in POSITIONS:
                        scene = Scene(size, colour, shape, position, background)
                        if held_out is None or scene.held_out == held_out:
                            yield scene


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance-like field of a shape of half extent 1, negative inside; x right, y down."""
    radius = np.hypot(x, y)
    if shape == "circle":
        return radius - 1.0
    if shape == "ring":
        return np.abs(radius - 0.76) - 0.24
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88
    if shape == "cross":
        upright = np.maximum(np.abs(x) - 0.32, np.abs(y) - 1.0)
        across = np.maximum(np.abs(x) - 1.0, np.abs(y) - 0.32)
        return np.minimum(upright, across)
    if shape == "triangle":  # isosceles, apex up, from y = -0.95 to y = 0.85
        slope = np.hypot(1.0, 1.8)
        side = (np.abs(x) * 1.8 - (y + 0.95)) / slope
        return np.maximum(side, y - 0.85)
    # Five-pointed star: the inner radius 0.5 keeps the arms wider than two pixels at the small size.
    angle = np.mod(np.arctan2(x, -y), 2 * np.pi / 5)
    angle = np.minimum(angle, 2 * np.pi / 5 - angle)
    tip, notch = np.array([1.0, 0.0]), 0.5 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = notch - tip
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (radius * np.cos(angle) - tip[0]) * normal[0] + (radius * np.sin(angle) - tip[1]) * normal[1]


def coverage(shape: str, centre: tuple[float, float], half: float, size: int = SIZE) -> np.ndarray:
    """Share of each pixel that a shape covers, shape (size, size), 0 to 1, antialiased over one pixel."""
    grid = np.arange(size, dtype=np.float64) + 0.5
    y, x = np.meshgrid(grid, grid, indexing="ij")
    distance = _distance(shape, (x - centre[0]) / half, (y - centre[1]) / half) * half
    return np.clip(0.5 - distance, 0.0, 1.0)


def render(batch: Sequence[Scene], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes.

    Args:
        batch: Scenes, B of them.
        seed: Seed of the nuisances; picture i depends on (seed, i) alone.

    Returns:
        Pictures, uint8, shape (B, 64, 64, 3), and coverage masks of the objects, float32, shape (B, 64, 64).
    """
    grid = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    y, x = np.meshgrid(grid, grid, indexing="ij")
    pictures = np.empty((len(batch), SIZE, SIZE, 3), np.uint8)
    masks = np.empty((len(batch), SIZE, SIZE), np.float32)
    for i, scene in enumerate(batch):
        rng = np.random.default_rng((seed, i))
        half, offset = SIZES[scene.size]
        half *= rng.uniform(0.94, 1.06)
        direction = POSITIONS[scene.position]
        x_centre, y_centre = (SIZE / 2 + offset * d + rng.uniform(-1.5, 1.5) for d in direction)
        mask = coverage(scene.shape, (x_centre, y_centre), half)
        angle = rng.uniform(0, 2 * np.pi)
        gradient = 1.0 + rng.uniform(0.0, 0.16) * (np.cos(angle) * x + np.sin(angle) * y)
        ground = (np.array(COLOURS[scene.background]) + rng.uniform(-8, 8, 3)) * gradient[..., None]
        paint = np.array(COLOURS[scene.colour]) + rng.uniform(-8, 8, 3)
        picture = ground * (1 - mask[..., None]) + paint * mask[..., None]
        picture = picture + rng.normal(0.0, 2.0, picture.shape)
        pictures[i] = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
        masks[i] = mask
    return pictures, masks
