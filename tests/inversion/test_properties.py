"""Whatever shape, precision, grid, method and settings are given: finite latents, or one sentence that says why not."""

import functools
import math
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrace.inversion import (
    METHODS,
    Coupled,
    Denoiser,
    FlowEdit,
    InfEdit,
    Method,
    NegativePrompt,
    SingleState,
    blend,
    coupled_gradient,
    get_method,
    invert,
    meet,
    noise_optimize,
    null_text,
    relative_error,
    replay,
    strength_to_index,
    walk,
    walk_gradient,
)
from retrace.inversion.negative_prompt import PROX, slerp
from retrace_tests.inversion.problems import Mixture

# The same examples in every run, and no clock: a slow machine is no failure.
examples = functools.partial(
    settings, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
SPACES = st.sampled_from(["ve", "flow"])
HIGHEST = {"ve": 160.0, "flow": 1.0}


def mostly(usual, odd):
    """Nearly always the one, now and then the other."""
    # Not an end of the range, which is drawn more often.
    return st.integers(0, 9).flatmap(lambda roll: odd if roll == 6 else usual)


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
            level = math.sqrt(1.0 + sigma**2) if self.space == "ve" else 1.0
            seen = (x / level).to(self.dtype)
            out = self.weights[0] * seen
            for axis, weight in enumerate(self.weights[1:], 1):
                out = out + weight * seen.roll(1, axis)
            return scale * torch.tanh(out)

        return Denoiser(denoise, self.space)


@st.composite
def latents(draw):
    """A space, a latent of it, and the model that goes with it."""
    space = draw(SPACES)
    frames = draw(st.sampled_from([(), (), (1,), (3,)]))
    shape = (draw(st.integers(1, 4)), *frames, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    kind = draw(st.sampled_from(["mixture", "float32", "bfloat16", "float16"]))
    model = mixture(space, shape) if kind == "mixture" else Network(space, shape, getattr(torch, kind))
    clean = mixture(space, shape).sample(draw(st.integers(1, 3)), seed=draw(st.integers(0, 9)))
    return space, clean.to(dtype), model


@st.composite
def grids(draw, space, start=None):
    """Ascending levels, as a schedule or anything else gives them; now and then what is no grid at all."""
    steps = draw(mostly(st.integers(2, 12), st.integers(0, 2)))
    shape = draw(st.sampled_from(["even", "power", "any"]))
    top = HIGHEST[space] * draw(mostly(st.sampled_from([1.0, 0.09]), st.floats(0.0, 1.2)))
    low = draw(mostly(st.just(0.0), st.floats(0.0, 0.5))) if start is None else start
    if shape == "any":
        inner = st.floats(0.0, HIGHEST[space], allow_subnormal=False)
        levels = sorted(draw(st.lists(inner, min_size=steps, max_size=steps)))
        return [low, *levels]
    power = 1.0 if shape == "even" else 7.0
    return [low + (top - low) * (i / max(1, steps)) ** power for i in range(steps + 1)]


@st.composite
def methods(draw, kind=Method):
    """The name of a method of a kind and settings for it, each within its limits, now and then just outside."""
    name = draw(st.sampled_from(sorted(name for name, each in METHODS.items() if issubclass(each, kind))))
    params = {}
    for setting in METHODS[name].parameters():
        if not draw(st.booleans()):
            continue
        if setting.kind is bool:
            params[setting.name] = draw(st.booleans())
        elif setting.kind is str:
            params[setting.name] = draw(mostly(st.sampled_from(setting.options), st.just("nonsense")))
        elif setting.kind is int:
            # High counts only cost time.
            high = int(min(setting.maximum, setting.minimum + 6))
            inside = st.integers(int(setting.minimum), high)
            params[setting.name] = draw(mostly(inside, st.just(int(setting.minimum) - 1)))
        else:
            inside = st.floats(setting.minimum, setting.maximum)
            params[setting.name] = draw(mostly(inside, st.sampled_from([setting.maximum + 1.0, math.nan, math.inf])))
    return name, params


@examples(max_examples=250)
@given(st.data())
def test_there_and_back(data):
    """invert and replay, towards the source and towards a target, free and inside a mask."""
    space, clean, model = data.draw(latents())
    grid, (name, params) = data.draw(grids(space)), data.draw(methods())
    level = data.draw(mostly(st.integers(1, max(1, len(grid) - 1)), st.integers(-1, len(grid) + 1)))
    keep_path, cfg = data.draw(st.booleans()), data.draw(st.sampled_from([1.0, 3.0, 7.5]))
    states = data.draw(st.sampled_from([None, torch.float32]))
    before = clean.clone()
    method = refused(lambda: get_method(name, params))
    if method is None:
        return
    source, target = model.denoiser(), model.denoiser("target", cfg)
    # A pair may run away on a grid whose steps differ wildly; nothing else leaves the finite numbers.
    never = "\n" if isinstance(method, Coupled) else "inf or nan"
    record = refused(lambda: invert(source, clean, grid, level, method, keep_path=keep_path, dtype=states), never)
    assert torch.equal(clean, before)
    if record is None:
        return
    assert finite(record.x, record.x0) and record.shape == tuple(clean.shape)
    assert record.dtype == (states or torch.float64)
    for to in (None, target):
        out = replay(record, source, to)
        assert out.shape == clean.shape and out.dtype == record.dtype
        assert finite(out), (name, params, to)
    if to is not None:
        mask = torch.zeros(1, 1, *clean.shape[2:])
        mask[..., : clean.shape[-1] // 2] = 1.0
        kept = replay(record, source, target, after_step=blend(record, mask))
        outside = (mask == 0.0).expand_as(kept)
        assert finite(kept) and torch.equal(kept[outside], record.x0[outside])


@examples(max_examples=120)
@given(st.data())
def test_paired_edits(data):
    """InfEdit and FlowEdit: finite, in the latent's shape and precision, the source where both prompts are one."""
    space, clean, model = data.draw(latents())
    clean = clean.to(data.draw(st.sampled_from([torch.float32, torch.float64])))
    grid = data.draw(grids(space, start=data.draw(mostly(st.just(0.0), st.just(0.1)))))
    level = data.draw(mostly(st.integers(1, max(1, len(grid) - 1)), st.integers(-1, len(grid) + 1)))

    def rule():
        if data.draw(st.booleans()):
            return InfEdit(data.draw(mostly(st.floats(0.0, 1.0), st.sampled_from([-0.1, 1.5, math.nan]))))
        n_avg, n_min = (
            data.draw(mostly(st.integers(1, 3), st.just(0))),
            data.draw(mostly(st.just(0), st.integers(-1, 3))),
        )
        return FlowEdit(n_avg, n_min, data.draw(mostly(st.floats(0.0, 1.0), st.just(math.nan))))

    edit = refused(rule)
    if edit is None:
        return
    cfg, seed = data.draw(st.sampled_from([1.0, 3.0, 13.5])), data.draw(st.integers(0, 2**64))
    source, target = model.denoiser(), model.denoiser("target", cfg)
    out = refused(lambda: edit.edit(source, target, clean, grid, level, seed))
    if out is None:
        return
    assert out.shape == clean.shape and out.dtype == clean.dtype and finite(out)
    if getattr(edit, "n_min", 0) <= 0:
        same = edit.edit(source, model.denoiser(), clean, grid, level, seed)
        # An eta below 1 adds up rounding of states that are as large as their noise.
        size = float(clean.abs().max()) + max(grid[: level + 1])
        assert float((same - clean).abs().max()) <= 1e4 * torch.finfo(clean.dtype).eps * size


@examples(max_examples=20)
@given(st.data())
def test_null_text_fits(data):
    """Any guidance and any rate: no step ends worse, embeddings and their replay are finite."""
    space = data.draw(SPACES)
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
    model, steps = mixture(space, shape), data.draw(st.integers(2, 4))
    clean = model.sample(data.draw(st.integers(1, 2)))
    grid = [HIGHEST[space] * 0.09 * i / steps for i in range(steps + 1)]
    record = invert(model.denoiser(), clean, grid, steps, data.draw(st.sampled_from(["ddim", "euler"])), keep_path=True)
    null = model.embeddings["null"][None]
    unconditional = Denoiser(
        lambda x, s: model.denoise(x, s, null[0]),
        space,
        rebind=lambda e: lambda x, s: torch.cat([model.denoise(x[i : i + 1], s, e[i].double()) for i in range(len(x))]),
    )
    reports = []
    fitted = refused(
        lambda: null_text(
            record,
            model.denoiser(),
            unconditional,
            null,
            cfg=data.draw(mostly(st.floats(-2.0, 15.0), st.sampled_from([1.0, math.nan]))),
            inner_steps=data.draw(mostly(st.integers(0, 3), st.just(-1))),
            learning_rate=data.draw(mostly(st.floats(1e-4, 1.0), st.sampled_from([0.0, math.inf]))),
            on_step=reports.append,
        )
    )
    if fitted is None:
        return
    assert finite(*fitted.embeddings)
    for report in reports:
        assert all(last <= first for first, last in zip(report.first_loss, report.loss))


def test_negative_prompt_edits():
    """Any guidance, threshold and pull: finite; with the source as its own target the source's replay bit for bit."""
    whole = []

    @examples(max_examples=250)
    @given(st.data())
    def run(data):
        space, clean, model = data.draw(latents())
        grid, (name, params) = data.draw(grids(space)), data.draw(methods())
        share = mostly(st.floats(0.0, 1.0), st.sampled_from([-0.1, 1.5, math.nan]))
        wanted = {
            "cfg": data.draw(mostly(st.floats(-3.0, 15.0), st.sampled_from([math.nan, math.inf]))),
            "prox": data.draw(mostly(st.sampled_from(PROX), st.just("l2"))),
            "quantile": data.draw(share),
            "pull": data.draw(st.just(0.0) | share),
            "pull_steps": data.draw(share),
            "dilate": data.draw(mostly(st.integers(0, 9), st.just(-1))),
        }
        rule = refused(lambda: NegativePrompt(**wanted))
        method = refused(lambda: get_method(name, params))
        if rule is None or method is None:
            return
        source, target = model.denoiser(), model.denoiser("target")
        level = data.draw(st.integers(1, max(1, len(grid) - 1)))
        record = refused(lambda: invert(source, clean, grid, level, method))
        if record is None:
            return
        edited = replay(record, source, rule.denoiser(record, source, target))
        assert edited.shape == clean.shape and finite(edited), (name, params, wanted)
        if rule.pull == 0.0:
            # A pair may begin an edit in another way than a reconstruction; the plain target does too.
            same = replay(record, source, rule.denoiser(record, source, model.denoiser()))
            assert torch.equal(same, replay(record, source, model.denoiser()))
        whole.append(data)

    run()
    assert len(whole) >= 60, "most examples must not be refused before the end"


def test_embeddings_mix():
    """Any two embeddings, parallel, opposite and empty ones too: finite, in their dtype, of no more than their size."""
    whole = []

    @examples(max_examples=150)
    @given(st.data())
    def run(data):
        shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4)))
        dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
        low = (torch.randn(shape, generator=generator) * data.draw(st.sampled_from([0.0, 1e-3, 1.0, 50.0]))).to(dtype)
        other = torch.randn(shape, generator=generator).to(dtype)
        high = data.draw(st.sampled_from([other, low, -low, 2.0 * low, low + 1e-3 * other]))
        high = data.draw(mostly(st.just(high), st.just(other[:, :, :-1])))
        weight = data.draw(mostly(st.floats(0.0, 1.0), st.sampled_from([-0.5, 1.5, math.nan])))
        mixed = refused(lambda: slerp(low, high, weight))
        if mixed is None:
            return
        assert mixed.shape == low.shape and mixed.dtype == dtype and finite(mixed)
        rows = [each.double().flatten(1) for each in (low, high, mixed)]
        # Between opposites the arc is as long as one likes.
        near = (rows[0] * rows[1]).sum(1) >= 0.0
        lengths = [row.norm(dim=1) for row in rows]
        assert (lengths[2] <= 1.5 * torch.maximum(*lengths[:2]) + 1e-6)[near].all()
        whole.append(data)

    run()
    assert len(whole) >= 100, "most examples must not be refused before the end"


def test_noise_optimize_descends():
    """Any loss, rate and pull, whole or masked, through a network of any precision: no row ends worse."""
    whole = []

    @examples(max_examples=300)
    @given(st.data())
    def run(data):
        space, clean, model = data.draw(latents())
        grid, (name, params) = data.draw(grids(space)), data.draw(mostly(methods(SingleState), methods()))
        method = refused(lambda: get_method(name, params))
        if method is None:
            return
        level = data.draw(st.integers(1, max(1, len(grid) - 1)))
        record = refused(lambda: invert(model.denoiser(), clean, grid, level, method, dtype=torch.float32))
        if record is None:
            return
        rows = data.draw(mostly(st.sampled_from([1, len(clean)]), st.just(len(clean) + 1)))
        reference = clean[:1].expand(rows, *clean.shape[1:]) * data.draw(st.sampled_from([0.0, 1.0, -3.0, 1e4]))
        mask = torch.zeros(1, 1, *clean.shape[2:])
        width = data.draw(mostly(st.integers(1, 6), st.just(0)))
        mask[..., :width] = data.draw(mostly(st.floats(0.05, 1.0), st.just(2.0)))
        mask = data.draw(st.sampled_from([None, None, mask, mask, mask, mask[..., :-1]]))
        norm = data.draw(mostly(st.sampled_from(["L1", "L2"]), st.just("L3")))
        loss = refused(lambda: meet(reference, mask, norm))
        if loss is None:
            return
        pull = data.draw(mostly(st.floats(0.0, 10.0), st.sampled_from([-1.0, math.inf])))
        told = []
        found = refused(
            lambda: noise_optimize(
                record,
                model.denoiser("target", data.draw(st.sampled_from([1.0, 3.0]))),
                loss,
                data.draw(mostly(st.integers(0, 3), st.just(-1))),
                data.draw(mostly(st.floats(0.0, 0.5), st.sampled_from([-0.1, math.nan, 1e3]))),
                pull,
                told.append,
            )
        )
        if found is None:
            return
        assert finite(found.x) and found.x.shape == record.x.shape and torch.equal(found.x0, record.x0)
        for row, first in enumerate(told[0].loss):
            tried = [each.loss[row] + pull * each.distance[row] ** 2 for each in told]
            assert all(math.isfinite(each) for each in tried)
            assert told[-1].best_loss[row] <= first * (1.0 + 1e-6), "a row ends worse than it began"
        whole.append(data)

    run()
    assert len(whole) >= 50, "most examples must not be refused before the end"


def test_gradients_of_walks():
    """Up and down by any stepper, through a network of any precision: finite, on exact models those of autograd."""
    whole = []

    @examples(max_examples=200)
    @given(st.data())
    def run(data):
        space, clean, model = data.draw(latents())
        grid, (name, params) = data.draw(grids(space)), data.draw(methods(SingleState))
        method = refused(lambda: get_method(name, params))
        if method is None:
            return
        rising = data.draw(st.booleans())
        sigmas, stepper = (grid, method.up) if rising else (grid[::-1], method.down)
        x = clean.double() + (0.0 if rising else grid[-1]) * torch.randn(
            clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        weights = torch.tensor([1.0, data.draw(st.sampled_from([1.0, 0.0, 1e-8, 1e8])), -1.0]).double()[: len(x)]
        size = data.draw(mostly(st.sampled_from([1.0, 1e-12, 1e12]), st.sampled_from([0.0, math.nan, math.inf])))

        def loss(end):
            return size * (weights * end.square().flatten(1).mean(1)).sum()

        found = refused(lambda: walk_gradient(model.denoiser(), x, sigmas, stepper, loss))
        if found is None:
            return
        assert found.start.shape == x.shape and found.start.dtype == x.dtype
        assert finite(found.start, found.end) and math.isfinite(found.loss)
        leaf = x.clone().requires_grad_(True)
        end = walk(model.denoiser(), leaf, sigmas, stepper())
        assert torch.equal(found.end, end)
        if isinstance(model, Mixture):
            wanted = torch.autograd.grad(loss(end), leaf)[0]
            for ours, theirs in zip(found.start, wanted, strict=True):
                assert float((ours - theirs).norm()) <= 1e-6 * float(theirs.norm())
        whole.append(data)

    run()
    assert len(whole) >= 80, "most examples must not be refused before the end"


def test_gradients_of_pairs():
    """The same through the invertible chain of a pair."""
    whole = []

    @examples(max_examples=200)
    @given(st.data())
    def run(data):
        space, clean, model = data.draw(latents())
        grid, (name, params) = data.draw(grids(space)), data.draw(methods(Coupled))
        method = refused(lambda: get_method(name, params))
        if method is None:
            return
        level = data.draw(st.integers(2, max(2, len(grid) - 1)) | st.integers(-1, len(grid) + 1))
        record = refused(lambda: invert(model.denoiser(), clean, grid, level, method))
        size = data.draw(mostly(st.sampled_from([1.0, 1e-12, 1e12]), st.sampled_from([0.0, math.nan])))
        x, mate = (clean.double(), clean.double() + 0.1) if record is None else (record.x, record.mate)
        found = refused(
            lambda: coupled_gradient(
                method, model.denoiser(), x, mate, grid, level, lambda end: size * end.square().mean()
            )
        )
        if found is None:
            return
        assert found.start.shape == found.mate.shape == x.shape
        assert finite(found.start, found.mate, found.end) and math.isfinite(found.loss)
        if record is not None:
            assert relative_error(found.end, replay(record, model.denoiser())) < 1e-6
        whole.append(data)

    run()
    assert len(whole) >= 50, "most examples must not be refused before the end"


@examples(max_examples=200)
@given(st.floats() | st.floats(0.0, 1.0), st.integers(-2, 200))
def test_strength_is_a_level(strength, steps):
    level = refused(lambda: strength_to_index(strength, steps))
    if level is not None:
        assert 1 <= level <= steps and abs(level - strength * steps) <= max(0.5, 1.0 - strength * steps) + 1e-9


@examples(max_examples=200)
@given(st.sampled_from(sorted(METHODS)), st.data())
def test_settings_are_taken_or_refused(name, data):
    """Values of every type at every setting."""
    value = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    known = [setting.name for setting in METHODS[name].parameters()]
    params = data.draw(st.dictionaries(st.sampled_from([*known, "nonsense"]), value, max_size=2))
    method = refused(lambda: get_method(name, params))
    if method is not None:
        assert method.params.keys() == set(known) and all(method.params[key] == params[key] for key in params)


def test_the_sentence_is_looked_at():
    """What these tests would let through if they did not look."""

    def broken(text):
        raise ValueError(text)

    for text in ("index out of range", "x must be 1\nTraceback, got 2.", "x must be 1.", "x must be 1, got 2"):
        with pytest.raises(AssertionError):
            refused(lambda t=text: broken(t))
    with pytest.raises(IndexError):
        refused(lambda: [][0])
