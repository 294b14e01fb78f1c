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
    run: AttentionRun, network: Any, rows: Rows, step: Step, taken: dict[Any, torch.Tensor]
) -> Iterator[None]:
    """Let the feature rules of a run act on one forward.

    Args:
        run: The rules and what they remember.
        network: The network that is about to run.
        rows: What the rows of the forward are.
        step: When it is.
        taken: What the forwards of one evaluation leave for each other.

    Raises:
        ValueError: If the network has no such block.
    """
    with contextlib.ExitStack() as hooks:
        for rule in run.features:
            if rule.acts(step):
                hook = residual_of(network, rule).register_forward_hook(_replacing(rule, rows, taken))
                hooks.callback(hook.remove)
        yield


def _replacing(rule: FeatureRule, rows: Rows, taken: dict[Any, torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Make a hook that takes the output of one branch and puts it in the place of another's."""

    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        everyone = [rows.who(row) for row in range(len(rows))]
        taken.update({(rule.name, *who): output[row] for row, who in enumerate(everyone) if who[0] == rule.take})
        answer = output.clone()
        for row, (branch, chunk, item) in enumerate(everyone):
            if branch == rule.branch and chunk.partition(":")[0] in rule.chunks:
                answer[row] = torch.lerp(output[row], _other(rule, chunk, item, output[row], taken), rule.strength)
        return answer

    return hook


def _other(rule: FeatureRule, chunk: str, item: int, own: torch.Tensor, taken: dict[Any, torch.Tensor]) -> torch.Tensor:
    """Find the feature that a row reads."""
    kind, *part = chunk.split(":", 1)
    kind = "cond" if rule.source_for == "shared" else kind
    # A branch with one picture serves all of a batch, one with a single prompt all parts of the other's.
    keys = [(rule.name, rule.take, each, number) for each in (":".join((kind, *part)), kind) for number in (item, 0)]
    other = next((taken[key] for key in keys if key in taken), None)
    if other is None:
        raise ValueError(
            f"the feature of branch {rule.take!r} must be known before rule {rule.name} reads it, got none for "
            f"{chunk}; run that branch with the same guidance, or let both chunks share its cond."
        )
    if other.shape != own.shape:
        raise ValueError(
            f"source and target must have one size for rule {rule.name}, got {tuple(other.shape[-2:])} and "
            f"{tuple(own.shape[-2:])}; use a source of the target's size."
        )
    return other


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
