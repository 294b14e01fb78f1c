"""Settings as dataclass fields, which nodes and the command line show and which are checked as they come in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

Scalar = str | int | float | bool
Version = tuple[int, int, int]


class Parameter(NamedTuple):
    """A setting, as nodes and the command line show it.

    Attributes:
        name: Name of the dataclass field.
        kind: bool, int, float or str.
        default: Its default.
        minimum: Lowest value, or None.
        maximum: Highest value, or None.
        step: Step of a number box, or None.
        tooltip: One sentence.
        options: Choices of a text, or empty.
        added: Version of the pack in which it appeared, None if with what it belongs to.
        shown: What else a node's input is declared with, such as `advanced` or `round`.
    """

    name: str
    kind: type
    default: Scalar
    minimum: float | None
    maximum: float | None
    step: float | None
    tooltip: str
    options: tuple[str, ...]
    added: Version | None = None
    shown: Mapping[str, Any] = MappingProxyType({})


def parameter(
    default: Any,
    tooltip: str,
    minimum: float | None = None,
    maximum: float | None = None,
    step: float | None = None,
    options: Sequence[str] = (),
    added: Version | None = None,
    **shown: Any,
) -> Any:
    """A dataclass field that is a setting.

    Args:
        default: Default; its type (bool, int, float, str) is the type of the setting.
        tooltip: One sentence on what it does.
        minimum: Lowest value of a number.
        maximum: Highest value of a number.
        step: Step of a number box.
        options: Choices of a text.
        added: Version of the pack, for a setting that is newer than what it belongs to.
        shown: What else a node's input is declared with, such as `advanced` or `round`.
    """
    metadata = {
        "min": minimum,
        "max": maximum,
        "step": step,
        "tooltip": tooltip,
        "options": tuple(options),
        "added": added,
        "shown": shown,
    }
    return dataclasses.field(default=default, metadata=metadata)


def link(kind: str, tooltip: str, optional: bool = False) -> Any:
    """A dataclass field that no widget can hold, which comes over a link.

    Args:
        kind: "mask" (N, H, W), "image" (N, 3, H, W) in [-1, 1], or another name that its node knows.
        tooltip: One sentence.
        optional: Whether it may be None.
    """
    metadata = {"link": kind, "tooltip": tooltip}
    return dataclasses.field(default=None, metadata=metadata) if optional else dataclasses.field(metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Settings of one thing: a frozen dataclass whose fields are made by `parameter`, and checked as they come in."""

    def __post_init__(self) -> None:
        for setting in self.parameters():
            value = getattr(self, setting.name)
            if setting.kind is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, setting.name, value)
            _check_value(self._called(setting.name), setting, value)

    @classmethod
    def parameters(cls) -> tuple[Parameter, ...]:
        """The settings in the order of their fields; fields that `parameter` has not made are none."""
        return tuple(
            Parameter(
                name=entry.name,
                kind=type(entry.default),
                default=cast(Scalar, entry.default),
                minimum=entry.metadata["min"],
                maximum=entry.metadata["max"],
                step=entry.metadata["step"],
                tooltip=entry.metadata["tooltip"],
                options=entry.metadata["options"],
                added=entry.metadata["added"],
                shown=entry.metadata["shown"],
            )
            for entry in dataclasses.fields(cls)
            if "options" in entry.metadata
        )

    @property
    def params(self) -> dict[str, Scalar]:
        """Settings as plain values."""
        return {setting.name: getattr(self, setting.name) for setting in self.parameters()}

    @classmethod
    def _called(cls, name: str) -> str:
        """What an error calls a setting."""
        return name


def _check_value(what: str, setting: Parameter, value: Any) -> None:
    hint = f"got {value!r}; the default is {setting.default!r}."
    right = type(value) is setting.kind and (not isinstance(value, float) or math.isfinite(value))
    if not right:
        raise TypeError(f"{what} must be a finite {setting.kind.__name__}, {hint}")
    if setting.options and value not in setting.options:
        raise ValueError(f"{what} must be one of {', '.join(setting.options)}, {hint}")
    if setting.minimum is not None and value < setting.minimum:
        raise ValueError(f"{what} must be at least {setting.minimum}, {hint}")
    if setting.maximum is not None and value > setting.maximum:
        raise ValueError(f"{what} must be at most {setting.maximum}, {hint}")
