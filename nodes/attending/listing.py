"""What a model offers to rules, as text for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ...attention import PRESETS, AttentionPlan, Layers, Preset, Rule, Site
from .resolver import Resolver
from .unet_features import residual_of


def listing(resolver: Resolver, shape: Sequence[int]) -> str:
    """Return stacks, blocks, kinds, token counts and the presets with their defaults, a few lines of text.

    Args:
        resolver: The resolver of a network.
        shape: Shape of the latent that is to be sampled.
    """
    if resolver.measured:
        return (
            f"{type(resolver.network).__name__}: no family of its own. Its layers are measured when it runs, called "
            "block:0, block:1, .. in the order of its calls, and taken by presets by their depth, 0.0 to 1.0."
        )
    sites = resolver.sites(shape)
    lines = [f"{type(resolver.network).__name__}, family {resolver.family}, latent {' x '.join(map(str, shape[2:]))}"]
    lines += ["", "Stacks"]
    for stack in dict.fromkeys(site.stack for site in sites):
        of_stack = [site for site in sites if site.stack == stack]
        lines.append(f"  {stack}:{ranges(site.index for site in of_stack)}  {_about(of_stack)}")
    lines += ["", "Kinds"]
    for kind in dict.fromkeys(site.kind for site in sites):
        of_kind = [site for site in sites if site.kind == kind]
        lines.append(f"  {kind}#0-{len(of_kind) - 1}  {_about(of_kind)}")
    lines += ["", "Presets of AttentionInject"]
    for preset in offered():
        shown: list[str] = []
        for variant in preset.variants or ("",):
            text = _default(preset, variant, resolver, sites)
            # The first stands for all that act where it does.
            if text not in shown:
                lines.append(f"  {preset.name}{f' {variant}' if shown else ''}: {text}")
                shown.append(text)
    return "\n".join(lines)


def _default(preset: type[Preset], variant: str, resolver: Resolver, sites: Sequence[Site]) -> str:
    """Layers and steps of a preset, and how many sites it meets."""
    layers = preset.layers_of(resolver.family, variant, resolver.preset_layers)
    if layers is None:
        return "not for this family"
    start, end = preset.default_window(resolver.family, variant)
    where = Layers.parse(layers)
    count = sum(site.kind != "cross" and where.matches(site) for site in sites)
    return f"{layers}  steps {start:g} to {end:g}, {count} layers of this model"


def offered() -> tuple[type[Preset], ...]:
    """Presets that need nothing but a source: those with words have nodes of their own."""
    return tuple(preset for preset in PRESETS.values() if not preset.needs_text)


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as a short text, 0,1,17-18."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def check_layers(plan: AttentionPlan, resolver: Resolver, shape: Sequence[int]) -> str:
    """Return which sites the rules of a plan meet, a line for each rule.

    Args:
        plan: The plan.
        resolver: The resolver of a network.
        shape: Shape of a latent.

    Raises:
        ValueError: If a rule meets none or text that is not known, or a feature rule names a block that is not there.
    """
    if resolver.measured:
        if any(rule.group == "text" for rule in plan.rules):
            raise ValueError(
                "tokens must be image or all on a model whose layers are measured, got text for "
                f"{type(resolver.network).__name__}, whose words nobody has described; choose image."
            )
        return f"layers of {type(resolver.network).__name__}: measured when it runs, in three more model calls"
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


def _about(sites: Sequence[Site]) -> str:
    kinds = "+".join(dict.fromkeys(site.kind for site in sites))
    grids = {math.prod(site.grid): site.grid for site in sites}
    tokens = []
    for count in sorted(grids, reverse=True):
        # A picture has one frame, which goes without saying.
        grid = grids[count] if grids[count][0] > 1 else grids[count][1:]
        tokens.append(f"{count} ({' x '.join(map(str, grid))})")
    return f"{kinds}, image tokens {', '.join(tokens)}"
