"""Methods are found by their files and refuse wrong settings."""

from dataclasses import FrozenInstanceError, dataclass

import pytest

from retrace.inversion import METHODS, Parameter, SingleState, Step, all_settings, get_method, parameter


@dataclass(frozen=True)
class Damped(SingleState):
    """A method with one setting of each kind."""

    name = "damped"
    label = "Damped"
    description = "For tests."
    reference = "none"
    order = 1
    gain: float = parameter(0.5, "How much.", minimum=0.0, maximum=1.0, step=0.1)
    rounds: int = parameter(2, "How often.", minimum=1, maximum=9)
    eager: bool = parameter(True, "Whether at once.")
    kind: str = parameter("soft", "Which.", options=("soft", "hard"))

    def up(self):
        return lambda denoiser, x, sigma, sigma_next: Step(x, x)

    down = up

    def evaluations(self, level, rising=True):
        return 0


def test_settings_describe_themselves():
    assert Damped.parameters() == (
        Parameter("gain", float, 0.5, 0.0, 1.0, 0.1, "How much.", ()),
        Parameter("rounds", int, 2, 1, 9, None, "How often.", ()),
        Parameter("eager", bool, True, None, None, None, "Whether at once.", ()),
        Parameter("kind", str, "soft", None, None, None, "Which.", ("soft", "hard")),
    )
    assert Damped(gain=1).params == {"gain": 1.0, "rounds": 2, "eager": True, "kind": "soft"}
    assert type(Damped(gain=1).gain) is float
    with pytest.raises(FrozenInstanceError):
        Damped().gain = 0.1


@pytest.mark.parametrize(
    ("setting", "error", "sentence"),
    [
        ({"gain": 1.5}, ValueError, "gain of method damped must be at most 1.0, got 1.5; the default is 0.5."),
        ({"gain": -0.1}, ValueError, "gain of method damped must be at least 0.0, got -0.1"),
        ({"gain": float("nan")}, TypeError, "gain of method damped must be a finite float, got nan"),
        ({"gain": "1"}, TypeError, "gain of method damped must be a finite float, got '1'"),
        ({"rounds": 2.0}, TypeError, "rounds of method damped must be a finite int, got 2.0"),
        ({"rounds": True}, TypeError, "rounds of method damped must be a finite int, got True"),
        ({"rounds": 0}, ValueError, "rounds of method damped must be at least 1, got 0"),
        ({"kind": "mild"}, ValueError, "kind of method damped must be one of soft, hard, got 'mild'"),
    ],
)
def test_settings_out_of_range(setting, error, sentence):
    with pytest.raises(error, match=sentence):
        Damped(**setting)


def test_get_method(monkeypatch):
    monkeypatch.setitem(METHODS, "damped", Damped)
    assert get_method("damped", {"gain": 0.25}) == Damped(gain=0.25)
    with pytest.raises(ValueError, match="method must be one of .*euler.*, got 'newton'; check the spelling"):
        get_method("newton")
    with pytest.raises(ValueError, match=r"Settings of method damped must be among its own \(gain, .*\), got 'order'"):
        get_method("damped", {"order": 3})
    with pytest.raises(ValueError, match=r"Settings of method euler must be among its own \(none\), got 'gain'"):
        get_method("euler", {"gain": 0.1})


def with_settings(name, added, **settings):
    """A method of a version with float settings, each of the version given or of the method's own."""
    fields = {key: parameter(0.5, "Some.", added=version) for key, version in settings.items()}
    members = {"name": name, "added": added, "__annotations__": dict.fromkeys(settings, float), **fields}
    return dataclass(frozen=True)(type(name.title(), (Damped,), members))


def test_new_settings_come_after_old_ones(monkeypatch):
    # The values of a saved workflow are found by position: whatever a later version brings, these must not move.
    for name in list(METHODS):
        monkeypatch.delitem(METHODS, name)
    for cls in (with_settings("newton", (0, 1, 0), gain=None), with_settings("damped", (0, 1, 0), gain=None)):
        monkeypatch.setitem(METHODS, cls.name, cls)
    listed = [(name, setting.name) for name, setting in all_settings()]
    inherited = ["gain", "rounds", "eager", "kind"]
    assert listed == [(name, setting) for name in ("damped", "newton") for setting in inherited]
    # A younger method whose name comes first, and a younger setting of the first method.
    monkeypatch.setitem(METHODS, "aitken", with_settings("aitken", (0, 10, 0)))
    monkeypatch.setitem(METHODS, "damped", with_settings("damped", (0, 1, 0), depth=(0, 9, 0)))
    longer = [(name, setting.name) for name, setting in all_settings()]
    assert longer == [*listed, ("damped", "depth"), *(("aitken", setting) for setting in inherited)]


def test_all_settings_are_listed_once():
    listed = [(name, setting.name) for name, setting in all_settings()]
    assert sorted(listed) == sorted((name, s.name) for name, method in METHODS.items() for s in method.parameters())
    ages = [setting.added or METHODS[name].added for name, setting in all_settings()]
    assert listed and ages == sorted(ages)
