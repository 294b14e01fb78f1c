"""Classes found by the files of a folder: whoever adds one adds a file and touches nothing else."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

Base = TypeVar("Base")


def classes_of(module: ModuleType, base: type[Base]) -> list[type[Base]]:
    """The concrete classes of a base that a module itself defines, in its order."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]


def modules_of(package: ModuleType) -> list[ModuleType]:
    """The modules of a package, imported, by name."""
    stems = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{stem}") for stem in stems]


def all_classes(package: ModuleType, base: type[Base]) -> list[type[Base]]:
    """The concrete classes of a base in a package's modules, any number in each, by file."""
    return [cls for module in modules_of(package) for cls in classes_of(module, base)]


def one_class(module: ModuleType, base: type[Base], key: str = "name") -> type[Base]:
    """The one concrete class of a base that a module defines, whose `key` is the file's name.

    Raises:
        ImportError: If it defines none or several, or one of another name.
    """
    folder, stem = module.__name__.split(".")[-2:]
    classes, kind = classes_of(module, base), base.__name__
    if len(classes) != 1:
        raise ImportError(f"{folder}/{stem}.py must define one {kind}, got {len(classes)}; give each its own file.")
    name = getattr(classes[0], key, None)
    if name != stem:
        raise ImportError(f"The {kind} in {folder}/{stem}.py must be named {stem!r}, got {name!r}; rename one.")
    return classes[0]


def classes_by_name(package: ModuleType, base: type[Base], key: str = "name") -> dict[str, type[Base]]:
    """The class of a base in each module of a package, by its name, which is that of its file.

    Raises:
        ImportError: As in one_class.
    """
    return {module.__name__.rpartition(".")[2]: one_class(module, base, key) for module in modules_of(package)}
