"""One file for each family of architectures; see resolver.py above."""

from __future__ import annotations

import sys
from typing import Any

from ....core.registry import classes_by_name
from ...host.compiled import refuse_compiled
from ..resolver import Resolver

RESOLVERS: dict[str, type[Resolver]] = classes_by_name(sys.modules[__name__], Resolver, "family")


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
        known = ", ".join(each.label for each in RESOLVERS.values())
        raise ValueError(
            f"model must be of a kind whose attention is known ({known}), got "
            f"{type(network).__name__}; leave attention out, everything else works with this model."
        )
    return resolver(network)
