"""The templates: every function of templates/ that makes one."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

from retrace_tests.workflows.graph import Graph


def workflows() -> list[Graph]:
    """All templates, freshly made."""
    made = []
    for path in sorted((Path(__file__).parent / "templates").glob("*.py")):
        module = import_module(f"retrace_tests.workflows.templates.{path.stem}")
        made += [
            each()
            for name, each in vars(module).items()
            if inspect.isfunction(each) and each.__module__ == module.__name__ and not name.startswith("_")
        ]
    return made
