"""Rules on what a UNet's ResBlock adds: hooks that stand for one forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...attention import AttentionRun, FeatureRule, Rows, Step

_STACKS = {"input": "input_blocks", "output": "output_blocks"}


@contextlib.contextmanager
def features_in(
    run: AttentionRun, network: Any, rows: Rows, step: Step, kept: dict[Any, torch.Tensor]
) -> Iterator[None]:
    """Let the feature rules of a run act on one forward.

    Args:
        run: The rules and what they remember.
        network: The network that is about to run.
        rows: What the rows of the forward are.
        step: When it is.
        kept: What the forwards of one evaluation leave for each other.

    Raises:
        ValueError: If the network has no such block.
    """
    hooks: list[Any] = []
    try:
        for rule in run.features:
            if rule.acts(step):
                layers = residual_of(network, rule)
                hooks.append(layers.register_forward_hook(_take(rule, rows, kept)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _take(rule: FeatureRule, rows: Rows, kept: dict[Any, torch.Tensor]) -> Callable[..., Any]:
    """Make a hook that keeps the other branch's output and puts it in the place of the own one."""

    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        changed = None
        for row in range(len(rows)):
            if rows.branches[row] == rule.take:
                kept[(rule.name, *rows.who(row))] = output[row]
        for row in range(len(rows)):
            branch, chunk, item = rows.who(row)
            if branch != rule.branch or chunk.partition(":")[0] not in rule.chunks:
                continue
            kind, *part = chunk.split(":", 1)
            kind = "cond" if rule.source_for == "shared" else kind
            # A branch with one picture serves all of a batch, one with a single prompt all parts of the other's.
            keys = [
                (rule.name, rule.take, each, number) for each in (":".join((kind, *part)), kind) for number in (item, 0)
            ]
            other = next((kept[key] for key in keys if key in kept), None)
            if other is None:
                raise ValueError(
                    f"the feature of branch {rule.take!r} must be known before rule {rule.name} reads it, got none for "
                    f"{chunk}; run that branch with the same guidance, or let both chunks share its cond."
                )
            if other.shape != output[row].shape:
                raise ValueError(
                    f"source and target must have one size for rule {rule.name}, got {tuple(other.shape[-2:])} and "
                    f"{tuple(output.shape[-2:])}; use a source of the target's size."
                )
            changed = output.clone() if changed is None else changed
            changed[row] = torch.lerp(output[row], other, rule.strength) if rule.strength < 1.0 else other
        return output if changed is None else changed

    return hook


def residual_of(network: Any, rule: FeatureRule) -> Any:
    """Return the layers whose output a ResBlock adds to its skip.

    Raises:
        ValueError: If the network has no such block.
    """
    blocks = getattr(network, _STACKS.get(rule.stack, ""), None)
    if blocks is None:
        raise ValueError(
            f"model must be a UNet for rule {rule.name}, got {type(network).__name__}; "
            "use a structure rule, which works on every model."
        )
    if not 0 <= rule.index < len(blocks) or not hasattr(blocks[rule.index][0], "out_layers"):
        raise ValueError(
            f"feature_block of {rule.name} must be a block of this UNet with a ResBlock, got {rule.stack}:{rule.index} "
            f"on a model with {rule.stack}:0-{len(blocks) - 1}; name one of these."
        )
    return blocks[rule.index][0].out_layers
