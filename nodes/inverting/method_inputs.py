"""Settings of the registered methods as node inputs: a range is written once, in the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...inversion import METHODS, all_settings
from ..host.inputs import setting_input


def parameter_inputs() -> list[Any]:
    """Return one optional input for every setting of every method, named ``<method>_<setting>``, oldest first."""
    return [
        setting_input(setting, f"{name}_{setting.name}", f"{METHODS[name].label}: {setting.tooltip}", advanced=True)
        for name, setting in all_settings()
    ]


def own_inputs(method: str) -> list[Any]:
    """Return one optional input for every setting of one method under its own name, oldest first."""
    return [setting_input(setting) for name, setting in all_settings() if name == method]


def settings_of(method: str, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a method among the values of a node's inputs, whose ids begin with the prefix."""
    names = [setting.name for setting in METHODS[method].parameters()] if method in METHODS else []
    return {name: values[prefix + name] for name in names if prefix + name in values}
