"""Every method there is: one class a file in methods/, found by its file."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.registry import classes_by_name
from ..core.settings import Parameter, Scalar
from . import methods
from .method import Method

METHODS: dict[str, type[Method]] = classes_by_name(methods, Method)


def all_settings() -> list[tuple[str, Parameter]]:
    """The settings of all methods with their methods' names, oldest first.

    A saved workflow keeps the values of a node's inputs by their position, so a new setting may only come after those
    of older versions: they are ordered by the version that brought them, then by method, then as the method has them.
    """
    listed = [(name, setting) for name in sorted(METHODS) for setting in METHODS[name].parameters()]
    # Sorting keeps the order of equals.
    return sorted(listed, key=lambda entry: entry[1].added or METHODS[entry[0]].added)


def get_method(name: str, params: Mapping[str, Scalar] | None = None) -> Method:
    """A method by name, with settings other than its defaults where given.

    Args:
        name: Key of METHODS.
        params: Settings by name.

    Raises:
        ValueError: If the method or a setting is unknown, or a value out of range.
        TypeError: If a value has the wrong type.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}; check the spelling.")
    cls = METHODS[name]
    settings = dict(params or {})
    known = [setting.name for setting in cls.parameters()]
    for key in settings:
        if key not in known:
            listed = ", ".join(known) if known else "none"
            raise ValueError(f"Settings of method {name} must be among its own ({listed}), got {key!r}; remove it.")
    return cls(**settings)
