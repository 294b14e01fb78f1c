"""Every preset there is: one class a file in methods/, found by its file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

from . import methods
from .preset import Preset


def preset_in(module: ModuleType) -> type[Preset]:
    """The one preset that a module defines.

    Raises:
        ImportError: If it defines none or several, or one whose name is not the file's.
    """
    stem = module.__name__.rpartition(".")[2]
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Preset)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        raise ImportError(f"methods/{stem}.py must define one preset, got {len(found)}; give each its own file.")
    if found[0].name != stem:
        raise ImportError(f"The preset in methods/{stem}.py must be named {stem!r}, got {found[0].name!r}; rename one.")
    return found[0]


def _discover() -> dict[str, type[Preset]]:
    stems = sorted(module.name for module in pkgutil.iter_modules(methods.__path__))
    return {stem: preset_in(importlib.import_module(f"{methods.__name__}.{stem}")) for stem in stems}


PRESETS: dict[str, type[Preset]] = _discover()


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}; check the spelling.")
    return PRESETS[name]()
