"""Methods by name, and their settings in an order that saved workflows can rely on."""

from dataclasses import dataclass

import pytest

from retrace.inversion import METHODS, all_settings, get_method, parameter
from retrace_tests.inversion.test_api import Scaled


def test_get_method(monkeypatch):
    monkeypatch.setitem(METHODS, "scaled", Scaled)
    assert get_method("scaled", {"gain": 0.25}) == Scaled(gain=0.25) and {"euler", "midpoint", "ddim"} <= set(METHODS)
    with pytest.raises(ValueError, match="method must be one of .*euler.*, got 'newton'; check the spelling"):
        get_method("newton")
    with pytest.raises(ValueError, match=r"Settings of method scaled must be among its own \(gain\), got 'order'"):
        get_method("scaled", {"order": 3})
    with pytest.raises(ValueError, match=r"Settings of method euler must be among its own \(none\), got 'gain'"):
        get_method("euler", {"gain": 0.1})


def with_settings(name, added, **settings):
    """A method of a version with float settings, each of the version given or of the method's own."""
    fields = {key: parameter(0.5, "Some.", added=version) for key, version in settings.items()}
    members = {"name": name, "added": added, "__annotations__": dict.fromkeys(settings, float), **fields}
    return dataclass(frozen=True)(type(name.title(), (Scaled,), members))


def test_new_settings_come_after_old_ones(monkeypatch):
    # The values of a saved workflow are found by position: whatever a later version brings, these must not move.
    listed = [(name, setting.name) for name, setting in all_settings()]
    assert sorted(listed) == sorted((name, s.name) for name, method in METHODS.items() for s in method.parameters())
    for name in list(METHODS):
        monkeypatch.delitem(METHODS, name)
    for name in ("newton", "damped"):
        monkeypatch.setitem(METHODS, name, with_settings(name, (0, 1, 0), depth=None))
    old = [("damped", "gain"), ("damped", "depth"), ("newton", "gain"), ("newton", "depth")]
    assert [(name, setting.name) for name, setting in all_settings()] == old
    # A younger method whose name comes first, and a younger setting of the first method.
    monkeypatch.setitem(METHODS, "aitken", with_settings("aitken", (0, 10, 0)))
    monkeypatch.setitem(METHODS, "damped", with_settings("damped", (0, 1, 0), depth=None, width=(0, 9, 0)))
    longer = [(name, setting.name) for name, setting in all_settings()]
    assert longer == [*old, ("damped", "width"), ("aitken", "gain")]
