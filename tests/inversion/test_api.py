"""Invert and replay refuse what does not fit, in one sentence, before any work."""

import re
from dataclasses import dataclass, replace

import pytest
import torch

from retrace.inversion import (
    METHODS,
    Denoiser,
    MisfitError,
    SingleState,
    adopt,
    check_fit,
    get_method,
    invert,
    parameter,
    replay,
    strength_to_index,
)
from retrace_tests.inversion.problems import Mixture, full_grid

GRID = full_grid("ve", 8)
MARKS = {"model": "a" * 64, "source": "b" * 64}


@pytest.fixture
def mixture():
    return Mixture("ve")


@pytest.fixture
def record(mixture):
    return invert(mixture.denoiser(), mixture.sample(2), GRID, 6, "euler").marked(MARKS, {"pack": "0.1.0"})


def one_sentence(caught):
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and " must " in text and ", got " in text and ";" in text
    return text


def test_record_of_an_inversion(mixture, record):
    assert (record.space, record.index, record.method, record.params) == ("ve", 6, "euler", {})
    assert record.sigmas == tuple(GRID) and record.path is None and record.dtype == torch.float64
    assert torch.equal(record.x0, mixture.sample(2))
    assert record.meta["pack"] == "0.1.0" and record.meta["evaluations"] == 6 and record.meta["seconds"] > 0
    assert {**record.fingerprints, "solver": ""} == {**MARKS, "solver": ""}


def test_reconstruction_is_replay_without_a_target(mixture, record):
    assert torch.equal(replay(record, mixture.denoiser()), replay(record, mixture.denoiser(), mixture.denoiser()))


def test_everything_that_fits_is_accepted(mixture, record):
    rounded = torch.tensor(GRID, dtype=torch.float32)
    marks = {**MARKS, "host": "x"}
    check_fit(record, mixture.denoiser(), sigmas=rounded, method="euler", shape=(2, 4, 3, 5), fingerprints=marks)
    # Only the levels up to k are walked; what lies above may differ.
    check_fit(record, mixture.denoiser(), sigmas=[*GRID[:7], 99.0])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"sigmas": full_grid("ve", 9)}, "sigmas must be the inversion's"),
        ({"sigmas": GRID[:6]}, "sigmas must be the inversion's"),
        ({"sigmas": GRID[::-1]}, "sigmas must be the inversion's"),
        ({"sigmas": [*GRID[:6], GRID[6] * (1 + 1e-5), *GRID[7:]]}, "sigmas must be the inversion's"),
        ({"method": "midpoint"}, "method must be the inversion's euler, got midpoint"),
        ({"shape": (2, 4, 5, 3)}, r"latent must have the inversion's shape (2, 4, 3, 5), got (2, 4, 5, 3)"),
        ({"shape": (1, 4, 3, 5)}, r"latent must have the inversion's shape"),
        (
            {"fingerprints": {"model": "c" * 64}},
            "The model must be the one that made the inversion (aaaaaaaaaaaa), got ccc",
        ),
        ({"fingerprints": {"source": "c" * 64}}, "The source conditioning must be the one that made the inversion"),
    ],
)
def test_misfits(mixture, record, given, sentence):
    denoiser = mixture.denoiser()
    with pytest.raises(MisfitError, match=re.escape(sentence)) as caught:
        check_fit(record, denoiser, **given)
    one_sentence(caught)
    assert denoiser.evaluations == 0


def test_another_space(mixture, record):
    flow = Mixture("flow").denoiser()
    for denoisers in ((flow,), (mixture.denoiser(), flow)):
        with pytest.raises(MisfitError, match="model must be of the inversion's space 've', got 'flow'") as caught:
            replay(record, *denoisers)
        one_sentence(caught)
        assert flow.evaluations == 0


def test_another_source_is_no_matter_for_an_edit(mixture, record):
    check_fit(record, mixture.denoiser(), mixture.denoiser("target"), fingerprints={"source": "c" * 64})


@dataclass(frozen=True)
class Scaled(SingleState):
    """Euler with a setting that does nothing."""

    name = "scaled"
    label = "Scaled"
    description = "For tests."
    reference = "none"
    order = 1
    gain: float = parameter(0.5, "Nothing.", minimum=0.0, maximum=1.0, step=0.1)

    def up(self):
        return METHODS["euler"]().up()

    down = up

    def evaluations(self, level, rising=True):
        return level


def test_other_settings(mixture, monkeypatch):
    monkeypatch.setitem(METHODS, "scaled", Scaled)
    record = invert(mixture.denoiser(), mixture.sample(1), GRID, 4, Scaled(gain=0.25))
    assert record.params == {"gain": 0.25}
    check_fit(record, mixture.denoiser(), method=Scaled(gain=0.25))
    with pytest.raises(MisfitError, match="gain of method scaled must be the inversion's 0.25, got 0.5") as caught:
        check_fit(record, mixture.denoiser(), method="scaled")
    one_sentence(caught)
    with pytest.raises(MisfitError, match="got: gain of method scaled must be at most 1.0, got 7.0"):
        replay(replace(record, params={"gain": 7.0}), mixture.denoiser())
    with pytest.raises(MisfitError, match="must come from method scaled in revision 1 with the settings it names"):
        replay(replace(record, params={"gain": 0.75}), mixture.denoiser())
    monkeypatch.setattr(Scaled, "revision", 2)
    with pytest.raises(MisfitError, match="must come from method scaled in revision 2"):
        replay(record, mixture.denoiser())


@dataclass(frozen=True)
class ScaledLater(Scaled):
    """The same method in a later version, with one setting more."""

    offset: float = parameter(0.0, "Nothing.", minimum=0.0, maximum=1.0, step=0.1, added=(9, 0, 0))


def test_a_record_outlives_a_setting_that_joins_its_method(mixture, monkeypatch):
    monkeypatch.setitem(METHODS, "scaled", Scaled)
    record = invert(mixture.denoiser(), mixture.sample(1), GRID, 4, Scaled(gain=0.25))
    before = replay(record, mixture.denoiser())
    monkeypatch.setitem(METHODS, "scaled", ScaledLater)
    assert torch.equal(replay(record, mixture.denoiser()), before)
    with pytest.raises(MisfitError, match="must come from method scaled in revision 1 with the settings it names"):
        replay(replace(record, params={"gain": 0.75}), mixture.denoiser())
    # Nor may a setting be taken away or put in by hand.
    for params in ({}, {"gain": 0.25, "offset": 0.0}):
        with pytest.raises(MisfitError, match="must come from method scaled in revision 1"):
            replay(replace(record, params=params), mixture.denoiser())


def test_a_method_that_is_no_more(mixture, record):
    with pytest.raises(MisfitError, match="must name a method of this version .* got 'newton'"):
        replay(replace(record, method="newton"), mixture.denoiser())


def test_adopt(mixture, record):
    other = adopt(record, "midpoint")
    assert other.method == "midpoint" and torch.equal(other.x, record.x) and record.method == "euler"
    denoiser = mixture.denoiser()
    check_fit(other, denoiser, method="midpoint")
    replay(other, denoiser)
    assert denoiser.evaluations == 12


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"index": 0}, ValueError, "index must lie between 1 and the number of steps 8, got 0"),
        ({"index": 9}, ValueError, "index must lie between 1 and the number of steps 8, got 9"),
        ({"index": 0.5}, TypeError, "index must be a whole number, got 0.5"),
        ({"sigmas": GRID[::-1]}, ValueError, "sigmas must strictly rise from the clean end"),
        ({"sigmas": [0.0]}, ValueError, "sigmas must be at least two, got 1"),
        ({"method": "newton"}, ValueError, "method must be one of"),
        ({"x0": torch.zeros(1, 4, 3, 5, dtype=torch.int64)}, TypeError, "x0 must be a floating-point latent"),
        (
            {"x0": torch.zeros(4, 3, 5)},
            ValueError,
            r"x0 must be a latent of shape .*, got \(4, 3, 5\); encode the picture",
        ),
        ({"dtype": torch.float16}, ValueError, "dtype of the states must be float32 or float64, got torch.float16"),
    ],
)
def test_invert_refuses(mixture, change, error, sentence):
    denoiser = mixture.denoiser()
    given = {"x0": mixture.sample(1), "sigmas": GRID, "index": 4, "method": "euler", **change}
    with pytest.raises(error, match=sentence) as caught:
        invert(denoiser, **given)
    assert denoiser.evaluations == 0 and "\n" not in str(caught.value)


def test_an_inversion_that_blows_up():
    denoiser = Denoiser(lambda x, sigma: -1e200 * x, "ve")
    with pytest.raises(ValueError, match="x must be finite, got inf or nan; use more steps, a lower cfg"):
        invert(denoiser, torch.ones(1, 1, 2, 2), GRID, 8, "euler")


def test_no_gradients_are_kept(mixture):
    clean = mixture.sample(1).requires_grad_()
    record = invert(mixture.denoiser(), clean, GRID, 4, get_method("midpoint"), keep_path=True)
    assert not record.x.requires_grad and not record.path[0].requires_grad and not record.x0.requires_grad
    assert not replay(record, mixture.denoiser()).requires_grad


def test_gradients_flow_through_the_walk(mixture):
    # Methods that optimise walk by themselves; nothing on the way may cut the graph.
    from retrace.inversion import Midpoint, walk

    x = mixture.noise(1).requires_grad_()
    walk(mixture.denoiser(), x, GRID[::-1], Midpoint()).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("strength", "steps", "level"),
    [(1.0, 20, 20), (0.8, 50, 40), (0.5, 5, 3), (0.25, 2, 1), (0.001, 20, 1), (1.0, 1, 1)],
)
def test_strength_to_level(strength, steps, level):
    assert strength_to_index(strength, steps) == level


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_strength_out_of_range(strength):
    with pytest.raises(ValueError, match="strength must lie above 0 and not above 1"):
        strength_to_index(strength, 20)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        strength_to_index(0.5, 0)
