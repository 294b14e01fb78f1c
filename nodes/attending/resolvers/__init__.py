"""One file for each family of architectures; see resolver.py above."""

from __future__ import annotations

import sys
from typing import Any

from ....core.registry import classes_by_name
from ...host.compiled import refuse_compiled
from ..measured import Measured
from ..resolver import Resolver

RESOLVERS: dict[str, type[Resolver]] = classes_by_name(sys.modules[__name__], Resolver, "family")


def resolver_for(network: Any, words: bool = False) -> Resolver:
    """Return a resolver for a network: that of its family, or one that measures.

    Args:
        network: The diffusion model of a MODEL.
        words: Whether the attention to words is wanted, which cannot be measured.

    Raises:
        ValueError: If words are wanted of a network of no known family, or the network is compiled.
    """
    refuse_compiled(network)
    resolver = next((each for each in RESOLVERS.values() if each.serves(network)), None)
    if resolver is None and not words:
        return Measured(network)
    if resolver is None:
        known = ", ".join(each.label for each in RESOLVERS.values())
        raise ValueError(
            f"model must be of a kind whose attention to words is known ({known}), got {type(network).__name__}; "
            "edit without words, by AttentionInject."
        )
    return resolver(network)
