"""Settings of the registered methods as node inputs: a range is written once, in the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...inversion import METHODS, Method, all_settings, get_method
from ..host.inputs import setting_input


def method_names() -> list[str]:
    """Return the names of all methods, in the registry's order."""
    return list(METHODS)


def parameter_inputs() -> list[Any]:
    """Return one optional input for every setting of every method, named ``<method>_<setting>``, oldest first."""
    return [
        setting_input(setting, f"{name}_{setting.name}", f"{METHODS[name].label}: {setting.tooltip}", advanced=True)
        for name, setting in all_settings()
    ]


def own_inputs(method: str) -> list[Any]:
    """Return one optional input for every setting of one method under its own name, oldest first."""
    return [setting_input(setting) for name, setting in all_settings() if name == method]


def chosen_method(name: str, values: Mapping[str, Any]) -> Method:
    """Return the method of that name with its settings picked from the node's inputs.

    Args:
        name: A name in the registry.
        values: The node's inputs by id; those of other methods are ignored.

    Returns:
        The method.

    Raises:
        ValueError: If the method is unknown or a setting is out of range.
    """
    if name not in METHODS:
        return get_method(name)
    settings = {setting.name: values.get(f"{name}_{setting.name}") for setting in METHODS[name].parameters()}
    return get_method(name, {key: value for key, value in settings.items() if value is not None})
