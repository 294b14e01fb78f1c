"""Whatever shape, precision, grid, method and settings are given: finite latents, or one sentence that says why not.

Examples are drawn from seeds, so that they are the same on every machine. At most one value of an example is odd.
"""

import functools
import math
import random
import re

import torch

from retrace.inversion import (
    METHODS,
    Coupled,
    Denoiser,
    blend,
    get_method,
    invert,
    replay,
)
from retrace_tests.inversion.problems import Mixture

HIGHEST = {"ve": 160.0, "flow": 1.0}


class Draw(random.Random):
    """The values of one example; in half of the examples one of them is odd."""

    def __init__(self, seed):
        super().__init__(seed)
        self.odd_at, self.asked = self.choice([None, self.randrange(8)]), 0

    def mostly(self, usual, *odd):
        self.asked += 1
        return self.choice(odd) if self.asked - 1 == self.odd_at else usual


def examples(count, whole=0.4):
    """Run a test on so many examples, a share of which it must say not to have left before its end."""

    def decorate(test):
        @functools.wraps(test)
        def run():
            reached = 0
            for seed in range(count):
                try:
                    reached += bool(test(Draw(seed)))
                except Exception as error:
                    raise AssertionError(f"example {seed}") from error
            assert reached >= whole * count, f"{reached} of {count} examples were not refused before the end"

        del run.__wrapped__
        return run

    return decorate


def refused(call, never="\n"):
    """What the call gives, or None where it refuses in one sentence: what must hold, and what it got.

    A sentence that holds `never` is a failure too.
    """
    try:
        return call()
    except (ValueError, TypeError) as error:
        text = str(error)
        assert re.fullmatch(r"[A-Z_a-z][^\n]+\.", text) and " must " in text, text
        assert "got" in text and never not in text, text
        return None


def finite(*tensors):
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


@functools.cache
def mixture(space, shape):
    return Mixture(space, shape)


class Network:
    """An untrained network in one precision: seeded weights on a cell and its neighbours along every axis, then tanh.

    By hand and not by a convolution: those of half precision do not answer the same input with the same bits.
    """

    def __init__(self, space, shape, dtype):
        generator = torch.Generator().manual_seed(len(shape))
        self.weights = torch.randn(len(shape) + 1, generator=generator).tolist()
        self.space, self.dtype = space, dtype

    def denoiser(self, prompt="source", cfg=1.0):
        scale = cfg * {"source": 1.0, "target": -0.5}[prompt]

        def denoise(x, sigma):
            size = math.sqrt(1.0 + sigma**2) if self.space == "ve" else 1.0
            seen = (x / size).to(self.dtype)
            out = self.weights[0] * seen
            for axis, weight in enumerate(self.weights[1:], 1):
                out = out + weight * seen.roll(1, axis)
            return scale * torch.tanh(out)

        return Denoiser(denoise, self.space)


def latent(draw):
    """A space, a latent of it, and the model that goes with it."""
    space = draw.choice(["ve", "flow"])
    frames = draw.choice([(), (), (1,), (3,)])
    shape = (draw.randint(1, 4), *frames, draw.randint(1, 6), draw.randint(1, 6))
    kind = draw.choice(["mixture", "float32", "bfloat16", "float16"])
    model = mixture(space, shape) if kind == "mixture" else Network(space, shape, getattr(torch, kind))
    clean = mixture(space, shape).sample(draw.randint(1, 3), seed=draw.randrange(10))
    return space, clean.to(draw.choice([torch.float64, torch.float32, torch.bfloat16, torch.float16])), model


def grid_of(draw, space):
    """An ascending grid, as a schedule or anything else gives it; now and then what is no grid at all."""
    steps = draw.mostly(draw.randint(2, 12), 0, 1, 2)
    low = draw.mostly(0.0, draw.uniform(0.0, 0.5))
    if draw.random() < 0.3:
        return [low, *sorted(draw.uniform(0.0, HIGHEST[space]) for _ in range(steps))]
    top = HIGHEST[space] * draw.mostly(draw.choice([1.0, 0.09]), draw.uniform(0.0, 1.2))
    power = draw.choice([1.0, 7.0])
    return [low + (top - low) * (i / max(1, steps)) ** power for i in range(steps + 1)]


def method_of(draw):
    """A method with settings within their limits or just outside; None where they are refused."""
    name = draw.choice(sorted(METHODS))
    params = {}
    for setting in METHODS[name].parameters():
        if draw.random() < 0.5:
            continue
        if setting.kind is bool:
            value = draw.random() < 0.5
        elif setting.kind is str:
            value = draw.mostly(draw.choice(setting.options), "nonsense")
        elif setting.kind is int:
            low = int(setting.minimum)
            # High counts only cost time.
            value = draw.mostly(draw.randint(low, int(min(setting.maximum, low + 6))), low - 1)
        else:
            inside = draw.choice([setting.minimum, setting.maximum, draw.uniform(setting.minimum, setting.maximum)])
            value = draw.mostly(inside, setting.maximum + 1.0, math.nan, math.inf)
        params[setting.name] = value
    return refused(lambda: get_method(name, params))


def index_of(draw, grid, lowest=1):
    return draw.mostly(draw.randint(lowest, max(lowest, len(grid) - 1)), -1, 0, len(grid), len(grid) + 1)


@examples(250)
def test_there_and_back(draw):
    """invert and replay, towards the source and towards a target, free and inside a mask."""
    space, clean, model = latent(draw)
    grid, method = grid_of(draw, space), method_of(draw)
    if method is None:
        return False
    index, states, before = index_of(draw, grid, method.min_index), draw.choice([None, torch.float32]), clean.clone()
    source, target = model.denoiser(), model.denoiser("target", draw.choice([1.0, 3.0, 7.5]))
    # A pair may run away on a grid whose steps differ wildly; nothing else leaves the finite numbers.
    never = "\n" if isinstance(method, Coupled) else "inf or nan"
    keep_path = draw.random() < 0.5
    record = refused(lambda: invert(source, clean, grid, index, method, keep_path, dtype=states), never)
    assert torch.equal(clean, before)
    if record is None:
        return False
    assert finite(record.x, record.x0) and record.shape == tuple(clean.shape)
    assert record.dtype == (states or torch.float64)
    mask = torch.zeros(1, 1, *clean.shape[2:])
    mask[..., : clean.shape[-1] // 2] = 1.0
    for out in (replay(record, source), replay(record, source, target)):
        assert out.shape == clean.shape and out.dtype == record.dtype and finite(out), method
    kept = replay(record, source, target, after_step=blend(record, mask))
    outside = (mask == 0.0).expand_as(kept)
    assert finite(kept) and torch.equal(kept[outside], record.x0[outside])
    return True
