"""What differs between the hosts that the pack supports, in one place.

The host's schema and input classes grow new keyword arguments with every release, and an unknown one raises a
TypeError at registration, which makes the whole pack vanish. Everything the pack declares goes through
:func:`schema` and :func:`declare`, which drop what this host does not know.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from comfy_api.latest import io

T = TypeVar("T")


def schema(**values: Any) -> io.Schema:
    """Build an ``io.Schema`` from the keywords that this host knows.

    Args:
        values: Keywords of the newest host's ``io.Schema``.

    Returns:
        The schema without the keywords that this host would refuse.
    """
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{key: value for key, value in values.items() if key in known})


def declare(factory: Callable[..., T], name: str | None = None, **values: Any) -> T:
    """Build an input or an output from the keywords that this host knows.

    Args:
        factory: An ``Input`` or ``Output`` class of the host, for example ``io.Int.Input``.
        name: The id. None for an output that needs none.
        values: Keywords of the newest host's class; ``advanced`` among them exists from host 0.10.0 on.

    Returns:
        The instance without the keywords that this host would refuse.
    """
    known = inspect.signature(factory.__init__).parameters  # type: ignore[misc]
    kept = {key: value for key, value in values.items() if key in known}
    return factory(name, **kept) if name is not None else factory(**kept)


def host_version() -> str:
    """Return the host's version string, "unknown" where it has none."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return "unknown"
    return str(__version__)


def show_progress_text(node_id: str | None, text: str) -> None:
    """Show a line of text below a running node, where there is a front end."""
    # A process without the host's server, such as a script, has no such module and no front end.
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if node_id is not None and instance is not None:
        instance.send_progress_text(text, node_id)
