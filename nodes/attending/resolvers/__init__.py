"""One file for each family of architectures; see resolver.py above."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

from ...host.compiled import refuse_compiled
from ..resolver import Resolver


def _discover() -> dict[str, type[Resolver]]:
    found = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        (found[module.name],) = (
            value
            for value in vars(loaded).values()
            if inspect.isclass(value) and issubclass(value, Resolver) and value.__module__ == loaded.__name__
        )
    return found


RESOLVERS = _discover()


def resolver_for(network: Any) -> Resolver:
    """Return a resolver for a network.

    Args:
        network: The diffusion model of a MODEL.

    Raises:
        ValueError: If nothing is known of the architecture's attention, or the network is compiled.
    """
    refuse_compiled(network)
    resolver = next((each for each in RESOLVERS.values() if each.serves(network)), None)
    if resolver is None:
        labels = sorted(label for each in RESOLVERS.values() for label in each.labels)
        raise ValueError(
            f"model must be of a kind whose attention is known ({', '.join(labels[:-1])} and {labels[-1]}), got "
            f"{type(network).__name__}; leave attention out, everything else works with this model."
        )
    return resolver(network)
