"""Invert and replay refuse what does not fit, in one sentence, before any work. Every method: test_contract.py."""

import re
from dataclasses import dataclass, replace

import pytest
import torch

from retrace.inversion import METHODS, Denoiser, MisfitError, SingleState, adopt, check_fit, invert, parameter, replay
from retrace_tests.inversion.problems import Mixture, full_grid

GRID = full_grid("ve", 8)
MARKS = {"model": "a" * 64, "source": "b" * 64}


@pytest.fixture
def mixture():
    return Mixture("ve")


@pytest.fixture
def inversion(mixture):
    return invert(mixture.denoiser(), mixture.sample(2), GRID, 6, "euler").marked(MARKS)


def misfit(sentence, call):
    with pytest.raises(MisfitError, match=re.escape(sentence)) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and " must " in text and ", got" in text


def test_what_comes_of_it(mixture, inversion):
    assert (inversion.space, inversion.index, inversion.method, inversion.params) == ("ve", 6, "euler", {})
    assert inversion.sigmas == tuple(GRID) and inversion.path is None and inversion.dtype == torch.float64
    assert torch.equal(inversion.x0, mixture.sample(2))
    assert inversion.meta["evaluations"] == 6 and inversion.meta["seconds"] > 0
    source = mixture.denoiser()
    assert torch.equal(replay(inversion, source), replay(inversion, source, source))


def test_what_was_hashed_must_agree(mixture, inversion):
    source, target = mixture.denoiser(), mixture.denoiser("target")
    check_fit(inversion, source, fingerprints={**MARKS, "host": "x", "solver": "c" * 64})
    # Another source is no matter for an edit.
    check_fit(inversion, source, target, fingerprints={"source": "c" * 64})
    for kind, what in (("model", "model"), ("source", "source conditioning")):
        misfit(
            f"The {what} must be the one that made the inversion ({MARKS[kind][:12]}), got cccccccccccc;",
            lambda kind=kind: check_fit(inversion, source, fingerprints={kind: "c" * 64}),
        )
    assert source.evaluations == 0


@dataclass(frozen=True)
class Scaled(SingleState):
    """Euler with a setting that does nothing."""

    name = "scaled"
    order = 1
    added = (0, 1, 0)
    gain: float = parameter(0.5, "Nothing.", minimum=0.0, maximum=1.0, step=0.1)

    def up(self):
        return METHODS["euler"]().up()

    down = up

    def evaluations(self, index, rising=True):
        return index


@dataclass(frozen=True)
class ScaledLater(Scaled):
    """The same method in a later version, with one setting more."""

    offset: float = parameter(0.0, "Nothing.", minimum=0.0, maximum=1.0, step=0.1, added=(9, 0, 0))


def test_settings_and_versions_of_its_method(mixture, monkeypatch):
    monkeypatch.setitem(METHODS, "scaled", Scaled)
    denoiser = mixture.denoiser()
    inversion = invert(denoiser, mixture.sample(1), GRID, 4, Scaled(gain=0.25))
    before = replay(inversion, denoiser)
    for change, sentence in (
        ({"params": {"gain": 7.0}}, "got: gain of method scaled must be at most 1.0, got 7.0"),
        ({"method": "newton"}, "must name a method of this version with its settings, got: method must be one of"),
    ):
        misfit(sentence, lambda change=change: replay(replace(inversion, **change), denoiser))
    # It outlives a setting that joins its method; none may be changed, taken away or put in by hand.
    monkeypatch.setitem(METHODS, "scaled", ScaledLater)
    assert torch.equal(replay(inversion, denoiser), before)
    for params in ({"gain": 0.75}, {}, {"gain": 0.25, "offset": 0.0}):
        changed = replace(inversion, params=params)
        misfit("in revision 1 with the settings it names", lambda changed=changed: replay(changed, denoiser))
    monkeypatch.setattr(ScaledLater, "revision", 2)
    misfit("must come from method scaled in revision 2", lambda: replay(inversion, denoiser))


def test_adopt(mixture, inversion):
    other, denoiser = adopt(inversion, "midpoint"), mixture.denoiser()
    assert other.method == "midpoint" and torch.equal(other.x, inversion.x) and inversion.method == "euler"
    replay(other, denoiser)
    assert denoiser.evaluations == 12


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"index": 9}, ValueError, "index must lie between 1 and the number of steps 8, got 9"),
        ({"method": "newton"}, ValueError, "method must be one of"),
        ({"x0": torch.zeros(1, 4, 3, 5, dtype=torch.int64)}, TypeError, "x0 must be a floating-point latent"),
        ({"x0": torch.zeros(3, 5)}, ValueError, r"x0 must be a latent of shape .*, got \(3, 5\); encode the"),
        ({"dtype": torch.float16}, ValueError, "dtype of the states must be float32 or float64, got torch.float16"),
    ],
)
def test_invert_refuses(mixture, change, error, sentence):
    denoiser = mixture.denoiser()
    with pytest.raises(error, match=sentence) as caught:
        invert(denoiser, **{"x0": mixture.sample(1), "sigmas": GRID, "index": 4, "method": "euler", **change})
    assert denoiser.evaluations == 0 and "\n" not in str(caught.value)


def test_an_inversion_that_blows_up():
    denoiser = Denoiser(lambda x, sigma: -1e200 * x, "ve")
    with pytest.raises(ValueError, match="x must be finite, got inf or nan; use more steps, a lower cfg"):
        invert(denoiser, torch.ones(1, 1, 2, 2), GRID, 8, "euler")


def test_gradients_are_not_kept(mixture):
    clean = mixture.sample(1).requires_grad_()
    inversion = invert(mixture.denoiser(), clean, GRID, 4, "midpoint", keep_path=True)
    for tensor in (inversion.x, inversion.path[0], inversion.x0, replay(inversion, mixture.denoiser())):
        assert not tensor.requires_grad
