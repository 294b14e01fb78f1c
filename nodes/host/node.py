"""What every node of the pack is: its schema with the room's category, and one check of its widgets."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from comfy_api.latest import io

from .compat import schema, show_progress_text

# Choices that a sentence lists; of more it says so.
_MOST_CHOICES = 12


class _Validator:
    """`validate_inputs` of a node, whose parameters are the widgets that its rules are about.

    The host reads from the signature what it hands over. That it leaves unchecked itself, and it repeats a complaint
    at each: so those that a range or a list tells all about are left to the host, and are checked once more when the
    node runs. A value that comes over a link is None here.
    """

    def __get__(self, instance: Any, node: type[Node]) -> types.MethodType:
        def validate_inputs(cls: type[Node], **values: Any) -> bool | str:
            return cls.complaint(values) or True

        names = ["cls", *node.asked()]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind, default=None) for name in names])
        validate_inputs.__signature__ = signature  # type: ignore[attr-defined]
        return types.MethodType(validate_inputs, node)


class Node(io.ComfyNode):
    """A node: a subclass in a file of a room is found by itself, under its own name as its id.

    Its widgets are checked against their declaration, and then against its rules, before anything runs and once more
    with the values that came over links.

    Attributes:
        ABSTRACT: Set by a class that only others build on; it is no node itself.
        RULES: What no declaration of one widget tells: functions that raise ValueError, whose parameters are ids of
            widgets. Each is asked once all its values are known; one with a default need not be connected.
        OPEN: Ids of choices that may name more than their list, such as a file that came after it; a rule checks them.
    """

    ABSTRACT: ClassVar[bool] = True
    RULES: ClassVar[Sequence[Callable[..., Any]]] = ()
    OPEN: ClassVar[frozenset[str]] = frozenset()

    validate_inputs = _Validator()

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the values before a node's own `execute`."""
        super().__init_subclass__(**options)
        run = vars(cls).get("execute")
        # The host makes classes of a node's own for each run, which bring the checked one along.
        if run is not None and not hasattr(run.__func__, "__wrapped__"):
            cls.execute = classmethod(_checked(run.__func__))

    @classmethod
    def schema(
        cls,
        title: str,
        description: str,
        *,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        aliases: Sequence[str] = (),
        is_output: bool = False,
        shows_text: bool = False,
    ) -> io.Schema:
        """Describe the node to the host.

        Args:
            title: Name on the node.
            description: What the node does.
            inputs: Its inputs.
            outputs: Its outputs.
            aliases: Further words that a search finds it by.
            is_output: Whether it runs for its own sake.
            shows_text: Whether `show` has a line to show below the node.
        """
        return schema(
            node_id=cls.__name__,
            display_name=f"{title} (Retrace)",
            category=f"Retrace/{cls.room()}",
            description=description,
            search_aliases=list(aliases),
            inputs=list(inputs),
            outputs=list(outputs),
            hidden=[io.Hidden.unique_id] if shows_text else [],
            is_output_node=is_output,
        )

    @classmethod
    def room(cls) -> str:
        """Return the folder that the node lies in, which is its category."""
        return cls.__module__.split(".")[-2]

    @classmethod
    def show(cls, text: str) -> None:
        """Show a line of text below the running node."""
        if cls.hidden is not None:
            show_progress_text(cls.hidden.unique_id, text)

    @classmethod
    def widgets(cls) -> list[Any]:
        """Return the inputs that are widgets."""
        return [each for each in cls.define_schema().inputs if isinstance(each, io.WidgetInput)]

    @classmethod
    def asked(cls) -> list[str]:
        """Return the ids of the widgets that rules are about."""
        of_rules = {name for rule in cls.RULES for name in inspect.signature(rule).parameters} | cls.OPEN
        return [widget.id for widget in cls.widgets() if widget.id in of_rules] if of_rules else []

    @classmethod
    def complaint(cls, values: Mapping[str, Any]) -> str | None:
        """Return what is wrong with the values of widgets in a sentence that names one, None if all is well.

        Args:
            values: By id; None is not known yet.
        """
        for widget in cls.widgets():
            value = values.get(widget.id)
            if value is not None and widget.id not in cls.OPEN:
                condition = broken_condition(widget, value)
                if condition is not None:
                    remedy = "change it" if widget.default is None else f"{_shown(widget.default)} is its default"
                    return f"{widget.display_name or widget.id} must {condition}, got {_shown(value)}; {remedy}."
        for rule in cls.RULES:
            parameters = inspect.signature(rule).parameters.values()
            needed = {each.name: values.get(each.name, each.default) for each in parameters}
            if not any(value is None or value is inspect.Parameter.empty for value in needed.values()):
                try:
                    rule(**needed)
                except (TypeError, ValueError) as error:
                    return str(error)
        return None


def broken_condition(widget: Any, value: Any) -> str | None:
    """Return what a value must do to fit the declaration of a widget, None if it does."""
    if isinstance(widget, io.Combo.Input):
        options = widget.options
        listed = ", ".join(map(str, options)) if len(options) <= _MOST_CHOICES else "the names in its list"
        return None if value in options else f"be one of {listed}"
    if isinstance(widget, io.Boolean.Input):
        return None if isinstance(value, bool) else "be true or false"
    if isinstance(widget, io.String.Input):
        return None if isinstance(value, str) else "be text"
    whole = isinstance(widget, io.Int.Input)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
        return "be a whole number" if whole else "be a number"
    if not math.isfinite(value):
        return "be finite"
    if widget.min is not None and value < widget.min:
        return f"be at least {_shown(widget.min)}"
    return f"be at most {_shown(widget.max)}" if widget.max is not None and value > widget.max else None


def _checked(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def execute(cls: type[Node], **values: Any) -> Any:
        defaults = {widget.id: widget.default for widget in cls.widgets() if widget.default is not None}
        complaint = cls.complaint(defaults | values)
        if complaint is not None:
            raise ValueError(complaint)
        return run(cls, **values)

    return execute


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
