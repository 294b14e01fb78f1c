"""Every method there is: one class a file in methods/, found by its file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from types import ModuleType

from . import methods
from .inversion import Scalar
from .method import Method, Parameter


def method_in(module: ModuleType) -> type[Method]:
    """The one method that a module defines.

    Raises:
        ImportError: If it defines none or several, or one whose name is not the file's.
    """
    stem = module.__name__.rpartition(".")[2]
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        raise ImportError(f"methods/{stem}.py must define one method, got {len(found)}; give each its own file.")
    if found[0].name != stem:
        raise ImportError(f"The method in methods/{stem}.py must be named {stem!r}, got {found[0].name!r}; rename one.")
    return found[0]


def _discover() -> dict[str, type[Method]]:
    stems = sorted(module.name for module in pkgutil.iter_modules(methods.__path__))
    return {stem: method_in(importlib.import_module(f"{methods.__name__}.{stem}")) for stem in stems}


METHODS: dict[str, type[Method]] = _discover()


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
    given = dict(params or {})
    known = [setting.name for setting in cls.parameters()]
    for key in given:
        if key not in known:
            listed = ", ".join(known) if known else "none"
            raise ValueError(f"Settings of method {name} must be among its own ({listed}), got {key!r}; remove it.")
    return cls(**given)
