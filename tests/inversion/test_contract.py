"""What every method promises, run on every method that the registry finds."""

import functools
import re

import pytest
import torch

from retrace.inversion import (
    METHODS,
    Coupled,
    Denoiser,
    Inversion,
    MisfitError,
    SingleState,
    blend,
    get_method,
    invert,
    load,
    noise_std,
    relative_error,
    replay,
    save,
)
from retrace_tests.inversion.problems import CLIP_SHAPE, SHAPE, SMOOTH, Mixture, exact, full_grid, slope, smooth_grid

STEPS = (64, 128, 256)
NO_FLOOR = 1e-9
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

# Round trip at 50 steps and cfg 1 on the mixture: about twice the worst seen for the order (Euler .12, midpoint 2e-3).
# One that promises neither an order nor a way back still ends nearer to its source than to nothing.
ROUND_TRIP = {1: 0.25, 2: 5e-3, None: 1.0}
EXACT = 1e-12
# How far the measured order may be from the stated one, by the order.
ORDER = {1: 0.05, 2: 0.1}
# What a file holds beside its tensors: their names, the levels, the settings and the remarks.
HEADER = 8192

pytestmark = [pytest.mark.parametrize("name", METHODS), pytest.mark.parametrize("space", ["ve", "flow"])]


@functools.cache
def truth(space, rising):
    """Start and end of the exact path through the smooth interval."""
    mixture = Mixture(space)
    low, high = SMOOTH[space]
    noise = mixture.noise(3)
    if rising:
        clean = mixture.sample(3)
        start = clean + low * noise if space == "ve" else (1 - low) * clean + low * noise
    else:
        start = high * noise
    grid = smooth_grid(space, 600)
    end = exact(mixture.denoiser(sigma_floor=NO_FLOOR), start, grid if rising else grid[::-1])
    return start, end


def bits(*tensors):
    """Contents of tensors, to compare before and after."""
    return [tensor.detach().clone() for tensor in tensors]


def same(before, *tensors):
    return all(torch.equal(old, new) for old, new in zip(before, tensors, strict=True))


def tensors_of(inversion):
    lists = (inversion.path, inversion.residuals, inversion.embeddings)
    listed = [part for parts in lists for part in parts or ()]
    return [inversion.x0, inversion.x, *([] if inversion.mate is None else [inversion.mate]), *listed]


def order_of(name):
    """The order that a method states, and how far off it may be; skips for one that follows no ODE."""
    order = METHODS[name].order
    if order is None:
        pytest.skip(f"{name} follows no ODE and states no order")
    # What stops at a tolerance adds an error that is no power of the step.
    return pytest.approx(order, abs=0.15 if METHODS[name].stops_early else ORDER[order])


def test_order_up(name, space):
    order = order_of(name)
    start, end = truth(space, True)
    denoiser = Mixture(space).denoiser(sigma_floor=NO_FLOOR)
    # A tolerance must be met in all steps alike for the order to show.
    steps = tuple(2 * n for n in STEPS) if METHODS[name].stops_early else STEPS
    errors = [relative_error(invert(denoiser, start, smooth_grid(space, n), n, name).x, end) for n in steps]
    assert slope(errors, steps) == order, errors


def test_order_down(name, space):
    order = order_of(name)
    method = get_method(name)
    start, end = truth(space, False)
    denoiser = Mixture(space).denoiser(sigma_floor=NO_FLOOR)
    errors = []
    for n in STEPS:
        grid = smooth_grid(space, n)
        mate = method.mate(denoiser, start, grid, n) if isinstance(method, Coupled) else None
        record = Inversion(space, grid, n, torch.zeros_like(start), start, mate, method=name, params=method.params)
        errors.append(relative_error(replay(record, denoiser), end))
    assert slope(errors, STEPS) == order, errors


@pytest.mark.parametrize("level", [6, 10])
def test_evaluations(name, space, level):
    mixture, method = Mixture(space), get_method(name)
    denoiser = mixture.denoiser()
    record = invert(denoiser, mixture.sample(1), full_grid(space, 10), level, method)
    assert denoiser.evaluations == record.meta["evaluations"]
    if method.stops_early:
        assert level < denoiser.evaluations <= method.evaluations(level)
    else:
        assert denoiser.evaluations == method.evaluations(level)
    source = mixture.denoiser()
    replay(record, source)
    assert source.evaluations == method.evaluations(level, rising=False)


def test_the_lowest_index(name, space):
    mixture, method, grid = Mixture(space), get_method(name), full_grid(space, 10)
    denoiser, lowest = mixture.denoiser(), method.min_index
    with pytest.raises(ValueError, match=f"must lie between {lowest} and the number of steps 10, got {lowest - 1}"):
        invert(denoiser, mixture.sample(1), grid, lowest - 1, method)
    assert denoiser.evaluations == 0
    assert torch.isfinite(replay(invert(denoiser, mixture.sample(1), grid, lowest, method), denoiser)).all()


def test_round_trip(name, space):
    mixture, method = Mixture(space), get_method(name)
    clean, denoiser = mixture.sample(4), mixture.denoiser()
    record = invert(denoiser, clean, full_grid(space, 50), 50, method)
    error = relative_error(replay(record, denoiser), clean)
    assert error <= (EXACT if method.reversible else ROUND_TRIP[method.order])
    # Solved to the end, Euler's inverse comes out up to 1.27 times too strong at this number of steps.
    assert noise_std(record.x, record.x0, record.sigma, space) == pytest.approx(1.0, abs=0.3)


def test_what_is_saved(name, space, tmp_path):
    """It plays back bit for bit, and is as large as its latents: source, state, and what its kind cannot do without."""
    mixture, kind, level = Mixture(space), METHODS[name], 6
    # One that puts each step right holds a latent a step.
    most = 0 if issubclass(kind, SingleState) else 1 if issubclass(kind, Coupled) else level
    for keep_path in (False, True):
        record = invert(mixture.denoiser(), mixture.sample(2), full_grid(space, 8), level, name, keep_path=keep_path)
        path = 0 if record.path is None else level + 1
        # Only one that comes down along its path keeps it unasked.
        assert bool(path) >= keep_path and (not path or keep_path or most == level)
        assert len(tensors_of(record)) <= 2 + most + path
        assert record.embeddings is None and all(tensor.shape == record.x0.shape for tensor in tensors_of(record))
        latent = record.x0.numel()
        for half, size in ((False, 8), (True, 2)):
            file = tmp_path / f"{half}{keep_path}.safetensors"
            save(record, file, half=half)
            whole = latent * (8 + size * (len(tensors_of(record)) - 1))
            assert whole <= file.stat().st_size <= whole + HEADER
            if not half:
                denoisers = mixture.denoiser(), mixture.denoiser("target", 2.0)
                assert torch.equal(replay(record, *denoisers), replay(load(file), *denoisers))


def test_a_model_of_the_other_space_is_refused(name, space):
    """One sentence, before any call."""
    mixture = Mixture(space)
    record, denoiser = invert(mixture.denoiser(), mixture.sample(2), full_grid(space, 8), 6, name), mixture.denoiser()
    other = Mixture("flow" if space == "ve" else "ve").denoiser()
    for denoisers in ((other,), (denoiser, other)):
        with pytest.raises(MisfitError, match="model must be of the inversion's space"):
            replay(record, *denoisers)
    assert denoiser.evaluations == other.evaluations == 0


@pytest.mark.parametrize("keep_path", [False, True])
def test_purity(name, space, keep_path):
    mixture = Mixture(space)
    clean, grid = mixture.sample(2), full_grid(space, 8)
    before, levels = bits(clean), list(grid)
    record = invert(mixture.denoiser(), clean, grid, 8, name, keep_path=keep_path)
    assert same(before, clean) and grid == levels
    kept = bits(*tensors_of(record))
    # What the caller does to its latent afterwards must not reach the record.
    clean.zero_()
    assert same(kept, *tensors_of(record))
    mask = torch.ones(1, 1, *SHAPE[1:], dtype=torch.float64)
    out = replay(record, mixture.denoiser(), mixture.denoiser("target"), after_step=blend(record, mask))
    out.zero_()
    assert same(kept, *tensors_of(record))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(name, space, dtype):
    mixture, seen = Mixture(space), set()
    denoiser = mixture.denoiser()
    clean, grid = mixture.sample(2).half(), full_grid(space, 6)
    record = invert(denoiser, clean, grid, 6, name, dtype=dtype, on_step=lambda r: seen.add(r.x.dtype))
    out = replay(record, denoiser, on_step=lambda r: seen.add(r.x.dtype))
    assert seen == {dtype} == {record.dtype} == {out.dtype} == {tensor.dtype for tensor in tensors_of(record)}
    assert grid[0] == 0.0 and (space == "ve" or grid[-1] == 1.0) and bool(torch.isfinite(out).all())


@pytest.mark.parametrize("device", DEVICES)
def test_device_is_kept(name, space, device):
    seen = set()
    variance = 0.3

    def denoise(x, sigma):
        seen.add(x.device.type)
        scale = 1.0 if space == "ve" else 1.0 - sigma
        return scale * variance / (scale**2 * variance + sigma**2) * x

    denoiser = Mixture(space).denoiser()
    denoiser._denoise = denoise
    record = invert(denoiser, torch.randn(1, 4, 6, 2, device=device), full_grid(space, 6), 6, name, keep_path=True)
    assert seen == {device} and all(tensor.device.type == "cpu" for tensor in tensors_of(record))
    out = replay(record, denoiser, device=device)
    assert seen == {device} and out.device.type == device
    # Numbers do not count here: nothing that is not moved along can meet a tensor of this device.
    assert replay(record, denoiser, denoiser, device="meta").device.type == "meta"


@pytest.mark.parametrize("shape", [SHAPE, CLIP_SHAPE], ids=["picture", "clip"])
def test_batch_rows_do_not_meet(name, space, shape):
    mixture = Mixture(space, shape)
    clean, grid = mixture.sample(3), full_grid(space, 8)

    def there_and_back(latent):
        record = invert(mixture.denoiser(), latent, grid, 6, name)
        return record.x, replay(record, mixture.denoiser(), mixture.denoiser("target", 2.0))

    together = there_and_back(clean)
    alone = [there_and_back(clean[row : row + 1]) for row in range(3)]
    for both, rows in zip(together, zip(*alone, strict=True), strict=True):
        assert both.shape == clean.shape
        # Not bit for bit: sums over a batch of another size may be grouped otherwise.
        torch.testing.assert_close(both, torch.cat(rows), rtol=1e-9, atol=1e-9)


def test_path(name, space):
    mixture = Mixture(space)
    clean, grid = mixture.sample(2), full_grid(space, 9)
    bare = invert(mixture.denoiser(), clean, grid, 5, name)
    with torch.inference_mode():
        record = invert(mixture.denoiser(), clean, grid, 5, name, keep_path=True)
        replay(record, mixture.denoiser())
    assert not any(tensor.is_inference() for tensor in tensors_of(record))
    assert len(record.path) == 6
    assert torch.equal(record.path[0], clean) and torch.equal(record.path[5], record.x)
    assert torch.equal(bare.x, record.x)
    if issubclass(METHODS[name], SingleState):
        for level in (1, 3):
            assert torch.equal(invert(mixture.denoiser(), clean, grid, level, name).x, record.path[level])


def test_target_is_followed(name, space):
    mixture = Mixture(space)
    record = invert(mixture.denoiser(), mixture.sample(2), full_grid(space, 12), 12, name)
    target = mixture.denoiser("target", 3.0)
    edited = replay(record, mixture.denoiser(), target)
    assert target.evaluations > 0
    assert relative_error(edited, replay(record, mixture.denoiser())) > 0.1


@pytest.mark.parametrize("keep_path", [False, True])
def test_mask_keeps_the_source_bit_for_bit(name, space, keep_path):
    mixture = Mixture(space)
    record = invert(mixture.denoiser(), mixture.sample(2), full_grid(space, 10), 7, name, keep_path=keep_path)
    mask = torch.zeros(1, 1, *SHAPE[1:], dtype=torch.float64)
    mask[..., 1:, :3] = 1.0
    mask[..., 1:, 2] = 0.4
    hook, offered = blend(record, mask), []

    def after_step(x, index):
        offered.append(index)
        return hook(x, index)

    edited = replay(record, mixture.denoiser(), mixture.denoiser("target", 4.0), after_step)
    # Every state below the start is offered, a pair's two of each where it needs that.
    assert sorted(offered, reverse=True) == offered and set(offered) == set(range(7))
    outside = (mask == 0.0).expand_as(edited)
    assert torch.equal(edited[outside], record.x0[outside])
    assert relative_error(edited[~outside], record.x0[~outside]) > 0.05


def test_reports(name, space):
    mixture, up, down = Mixture(space), [], []
    clean, denoiser = mixture.sample(1), mixture.denoiser()
    record = invert(denoiser, clean, full_grid(space, 40), 30, name, on_step=up.append)
    out = replay(record, denoiser, on_step=down.append)
    for reports in (up, down):
        assert [report.index for report in reports] == list(range(reports[0].total))
    assert torch.equal(up[-1].x, record.x) and torch.equal(down[-1].x, out)
    assert up[-1].sigma_next == record.sigma and down[0].sigma == record.sigma and down[-1].sigma_next == 0.0
    # A true clean latent, not the state: about what the model says of the state that was reached.
    for start, reports in ((record.x0, up), (record.x, down)):
        left = start
        for report in reports:
            predictions = [denoiser(report.x, report.sigma_next)]
            if METHODS[name].order is None:
                # Neighbouring states of a drawn path have different noises: there it may be the state that was left.
                predictions.append(denoiser(left, report.sigma))
            assert min(relative_error(report.denoised, each) for each in predictions) < 0.2
            left = report.x


def test_an_interrupt_ends_the_walk_and_harms_nothing(name, space):
    mixture = Mixture(space)
    clean, grid, denoiser = mixture.sample(1), full_grid(space, 8), mixture.denoiser()
    before = bits(clean)
    whole = invert(denoiser, clean, grid, 8, name)
    kept = bits(*tensors_of(whole), replay(whole, denoiser))

    def stop(report):
        if report.index == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        invert(denoiser, clean, grid, 8, name, on_step=stop)
    with pytest.raises(InterruptedError):
        replay(whole, denoiser, on_step=stop)
    # Nor does anything stay behind: the next walks are those before.
    assert same(before, clean) and same(kept, *tensors_of(whole), replay(whole, denoiser))
    again = invert(denoiser, clean, grid, 8, name)
    assert torch.equal(again.x, whole.x) and again.meta["evaluations"] == whole.meta["evaluations"]


def test_every_setting_at_its_ends_gives_finite_latents_or_says_why_not(name, space):
    """There and back through a model of half precision, on an uneven grid that starts above 0."""
    mixture, grid = Mixture(space), [full_grid(space, 12)[index] for index in (1, 2, 3, 6, 8, 12)]
    exact, clean, made = mixture.denoiser(cfg=3.0), mixture.sample(1).bfloat16(), 0
    source = Denoiser(lambda x, sigma: exact(x, sigma).bfloat16(), space)
    for setting in METHODS[name].parameters():
        # High counts only cost time.
        most = setting.maximum if setting.kind is not int else min(setting.maximum, setting.minimum + 6)
        for value in (False, True) if setting.kind is bool else setting.options or (setting.minimum, most):
            try:
                record = invert(source, clean, grid, 5, get_method(name, {setting.name: value}), dtype=torch.float32)
            except ValueError as refusal:
                assert re.fullmatch(r"[A-Za-z][^\n]+ must [^\n]+, got [^\n]+\.", str(refusal))
                continue
            made += 1
            for target in (None, mixture.denoiser("target", 7.5)):
                assert bool(replay(record, source, target).isfinite().all()), (setting.name, value)
    # One end of each at least was not refused.
    assert made >= len(METHODS[name].parameters())


def test_facts_and_settings_are_filled_in(name, space):
    method = METHODS[name]
    for fact in (method.label, method.description, method.reference):
        assert isinstance(fact, str) and fact
    # A checkout may be ahead of its last release, so nothing is said about the version of the pack.
    assert [type(part) for part in method.added] == [int] * 3
    for setting in method.parameters():
        assert setting.added is None or method.added < setting.added
        assert setting.kind in (bool, int, float, str) and setting.tooltip.endswith(".")
        if setting.kind in (int, float):
            assert setting.minimum <= setting.default <= setting.maximum
        if setting.kind is str:
            assert setting.default in setting.options
