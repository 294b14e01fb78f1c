"""The pack's nodes: the only folder that knows the host."""

from __future__ import annotations

import importlib
import logging
import pkgutil

import nodes as host_nodes
from comfy_api.latest import ComfyExtension, io

from .host.node import Node

_logger = logging.getLogger(__name__)


def discover() -> tuple[type[Node], ...]:
    """Return the nodes that the files of the rooms define, by room and then by id."""
    for room in pkgutil.iter_modules(__path__, f"{__name__}."):
        for file in pkgutil.iter_modules(importlib.import_module(room.name).__path__, f"{room.name}."):
            importlib.import_module(file.name)
    found, bases = [], [Node]
    while bases:
        for each in bases.pop().__subclasses__():
            bases.append(each)
            if "ABSTRACT" not in vars(each):
                found.append(each)
    return tuple(sorted(found, key=lambda node: (node.room(), node.__name__)))


NODES = discover()


class RetraceExtension(ComfyExtension):
    """What the host asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the nodes whose ids are free.

        An id that the host or another pack holds already stays theirs: a workflow of that pack must not change its
        meaning because this one was installed.
        """
        free = []
        for node in NODES:
            holder = host_nodes.NODE_CLASS_MAPPINGS.get(node.__name__)
            if holder is not None and holder is not node:
                _logger.warning(
                    "Retrace: node id %r is taken by %s, so the node of that name in this pack is left out; "
                    "remove the other pack to use it.",
                    node.__name__,
                    getattr(holder, "RELATIVE_PYTHON_MODULE", None) or holder.__module__,
                )
                continue
            free.append(node)
        return free
