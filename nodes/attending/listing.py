"""What a model offers to rules, as text for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ...attention import PRESETS, AttentionPlan, Preset, Rule, Site
from .resolver import Resolver
from .unet_features import residual_of


def listing(resolver: Resolver, shape: Sequence[int]) -> str:
    """Return stacks, blocks, kinds, token counts and the presets with their defaults, a few lines of text.

    Args:
        resolver: The resolver of a network.
        shape: Shape of the latent that is to be sampled.
    """
    sites = resolver.sites(shape)
    lines = [f"{type(resolver.network).__name__}, family {resolver.family}, latent {' x '.join(map(str, shape[2:]))}"]
    lines += ["", "Stacks"]
    for stack in dict.fromkeys(site.stack for site in sites):
        inside = [site for site in sites if site.stack == stack]
        lines.append(f"  {stack}:{ranges(site.index for site in inside)}  {_about(inside)}")
    lines += ["", "Kinds"]
    for kind in dict.fromkeys(site.kind for site in sites):
        inside = [site for site in sites if site.kind == kind]
        lines.append(f"  {kind}#0-{len(inside) - 1}  {_about(inside)}")
    lines += ["", "Presets of AttentionInject"]
    for preset in offered():
        layers = preset.layers_of(resolver.family, own=resolver.preset_layers)
        if layers is not None:
            start, end = preset.default_window(resolver.family)
            hit = sum(1 for site in sites if _covers(preset, layers, site))
            lines.append(f"  {preset.name}: {layers}  steps {start:g} to {end:g}, {hit} layers of this model")
        else:
            lines.append(f"  {preset.name}: not for this family")
    return "\n".join(lines)


def offered() -> tuple[type[Preset], ...]:
    """Presets that need nothing but a source: those with words have nodes of their own."""
    return tuple(preset for preset in PRESETS.values() if not preset.needs_text)


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as a short text, 0,1,17-18."""
    found = sorted(set(numbers))
    parts: list[str] = []
    start = None
    for place, number in enumerate(found):
        start = number if start is None else start
        if place + 1 == len(found) or found[place + 1] != number + 1:
            parts.append(str(start) if start == number else f"{start}-{number}")
            start = None
    return ",".join(parts)


def check_layers(plan: AttentionPlan, resolver: Resolver, shape: Sequence[int]) -> str:
    """Return which sites the rules of a plan meet, a line for each rule.

    Args:
        plan: The plan.
        resolver: The resolver of a network.
        shape: Shape of a latent.

    Raises:
        ValueError: If a rule meets none, or a feature rule names a block that is not there.
    """
    sites = resolver.sites(shape)
    lines = []
    for rule in plan.rules:
        met = [site for site in sites if rule.covers(site)]
        if not met:
            raise ValueError(_nothing_met(rule, sites))
        window = rule.window
        span = f"{met[0].label} to {met[-1].label}"
        lines.append(f"{rule.name}: {len(met)} layers, {span}, steps {window.start:g} to {window.end:g}")
    for feature in plan.features:
        residual_of(resolver.network, feature)
        window = feature.window
        lines.append(f"{feature.name}: {feature.stack}:{feature.index}, steps {window.start:g} to {window.end:g}")
    return "\n".join(lines)


def _nothing_met(rule: Rule, sites: Sequence[Site]) -> str:
    """Say why a rule meets none of the sites."""
    named = [site for site in sites if site.kind in rule.kinds and rule.layers.matches(site)]
    if named and rule.group == "text" and all(site.kind == "self" for site in named):
        return (
            f"tokens must be image on a model whose text stands apart from the picture, got text at {named[0].label}; "
            "choose image, or PromptToPrompt for words."
        )
    if named:
        return (
            f"layers must match one whose grid is at most {rule.limit:g} of the latent's side for {rule.name}, got "
            f"{rule.layers.text!r}, whose smallest is {min(site.grid[1:] for site in named)} of {named[0].latent[1:]}; "
            "take deeper layers."
        )
    offers = ", ".join(
        f"{stack}:{ranges(site.index for site in sites if site.stack == stack)}"
        for stack in dict.fromkeys(site.stack for site in sites)
    )
    return (
        f"layers must match an attention layer of kind {' or '.join(rule.kinds)}, got {rule.layers.text!r} on "
        f"a model with {offers}; AttentionSites lists what it has."
    )


def _covers(preset: type[Preset], layers: str, site: Site) -> bool:
    from ...attention import Layers

    return site.kind in ("self", "joint") and Layers.parse(layers).matches(site)


def _about(sites: Sequence[Site]) -> str:
    kinds = "+".join(dict.fromkeys(site.kind for site in sites))
    grids = {math.prod(site.grid): site.grid for site in sites}
    tokens = []
    for count in sorted(grids, reverse=True):
        # A picture has one frame, which goes without saying.
        grid = grids[count] if grids[count][0] > 1 else grids[count][1:]
        tokens.append(f"{count} ({' x '.join(map(str, grid))})")
    return f"{kinds}, image tokens {', '.join(tokens)}"
