"""Every preset there is: one class a file in methods/, found by its file."""

from __future__ import annotations

from ..core.registry import classes_by_name
from . import methods
from .preset import Preset

PRESETS: dict[str, type[Preset]] = classes_by_name(methods, Preset)


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}; check the spelling.")
    return PRESETS[name]()
