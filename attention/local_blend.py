"""Local blend: outside the words or the mask of an edit the target's latent is the source's, bit for bit.

Hertz et al. 2022, arXiv:2208.01626: after each step x_t <- x_s + m (x_t - x_s), with m where the source or the target
attends to the words. Two differences from the official code: the target's map is its own attention before any edit
(the official one is partly the source's), and sites are found by their grid, so that pictures of any shape work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .heat_maps import Threshold, blur, grow, threshold
from .plan import AttentionPlan, AttentionRun
from .rules import SOURCE, TARGET
from .sites import ALL, Layers
from .timing import Step
from .tokens import Prompt
from .word_list import Word
from .words import WordMaps, word_probe

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """Keeps the source outside a mask after each step.

    Attributes:
        probes: Names of the probes whose word maps make the mask; empty for the mask alone.
        mask: Mask from outside, shape (items or 1, frames or 1, h, w) on the latent grid, 1 where the edit may act,
            or a function that makes it for a shape of the latent; with words too, the edit acts where both are.
        threshold: Cells of the word maps above it are edited.
        how: What the threshold is measured by.
        start: Fraction of the steps before which nothing is blended, because early maps say little.
        end: Fraction of the steps from which on nothing is blended; below 1 the outside is no longer the source's.
        grow: Cells of the latent by which the mask is widened.
        blur: Standard deviation in cells of the latent of its soft edge.
    """

    probes: tuple[str, ...] = ()
    mask: Tensor | Callable[[torch.Size], Tensor] | None = None
    threshold: float = 0.3
    how: Threshold = "absolute"
    start: float = 0.2
    end: float = 1.0
    grow: int = 0
    blur: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                f"local blend must start before its end, both within 0 .. 1, got {self.start:g} to {self.end:g}; "
                "lower start or raise end."
            )
        threshold(torch.zeros(1, 1, 1, 1), self.how, self.threshold)

    def is_open(self, step: Step) -> bool:
        """Whether the latent is blended after a step."""
        first = min(int(self.start * step.total), step.total - 1)
        return first <= step.index < self.end * step.total

    def weights(self, maps: Mapping[str, WordMaps], shape: torch.Size) -> Tensor:
        """Return the mask as it is after the steps so far.

        Args:
            maps: Word maps by the name of their probe.
            shape: Of the latent, (items, channels, h, w) or (items, channels, frames, h, w).

        Returns:
            Shape (items, frames, h, w), float32.

        Raises:
            ValueError: If a map has seen no step.
        """
        grid = (1, *shape[-2:]) if len(shape) == 4 else (shape[-3], shape[-2], shape[-1])
        mask: Tensor | None = None
        for name in self.probes:
            heat = maps[name].maps().sum(1).cpu()
            # The official 3 x 3 maximum on the grid of the maps.
            heat = grow(heat, 1)
            cut = threshold(_resize(heat, grid), self.how, self.threshold)
            mask = cut if mask is None else torch.maximum(mask, cut)
        if mask is not None:
            mask = blur(grow(mask, self.grow), self.blur)
        if self.mask is not None:
            outside = self.mask if isinstance(self.mask, Tensor) else self.mask(shape)
            outside = outside.to("cpu", torch.float32).expand(shape[0], *grid)
            mask = outside if mask is None else torch.minimum(mask, outside)
        if mask is None:
            raise ValueError("local blend must have words or a mask, got neither; name words or connect a mask.")
        return mask

    def after(self, run: AttentionRun, step: Step, states: Mapping[str, Tensor]) -> Tensor:
        """Return the target's new state.

        Args:
            run: The run, for its word maps.
            step: The step that was made.
            states: State of each branch after it, shape (items, channels, h, w) or (items, channels, frames, h, w).

        Returns:
            The blended state; where the mask is 0 it is the source's bit for bit, where it is 1 the target's.
        """
        source, target = states["source"], states["target"]
        if not self.is_open(step):
            return target
        mask = self.weights(run.maps, target.shape)
        if step.index == step.total - 1 and bool((mask.amax(dim=(1, 2, 3)) == 0.0).any()):
            _logger.warning("Retrace: the local blend's mask is empty, so the result is the source there.")
        mask = mask.to(target)
        mask = mask if target.ndim == 4 else mask[:, None]
        mixed = torch.lerp(source, target, mask)
        return torch.where(mask == 0.0, source, torch.where(mask == 1.0, target, mixed))


def with_local_blend(
    plan: AttentionPlan, blend: LocalBlend, words: Sequence[Word] = (), layers: Layers = ALL
) -> AttentionPlan:
    """Return a plan with a local blend at its end.

    Args:
        plan: The plan; with words, one that has a token map.
        blend: The blend; probes for the words are added to it.
        words: Words of the source's prompt, the target's, or both: the mask is where either attends to one of its own.
        layers: Sites that are read for the words.

    Returns:
        The plan.

    Raises:
        ValueError: If a word is in neither prompt, or the plan knows no prompts.
    """
    if not (words or blend.probes or blend.mask is not None):
        raise ValueError("local blend must have words or a mask, got neither; name words or connect a mask.")
    if not words:
        return replace(plan, latent_rules=(*plan.latent_rules, blend))
    if plan.text is None:
        raise ValueError(
            "words of a local blend must come with a plan that knows its prompts, got one without; "
            "connect the attention output of PromptToPrompt."
        )
    number = len(plan.latent_rules) + 1
    probes = []
    for branch, prompt in ((SOURCE, plan.text.source), (TARGET, plan.text.target)):
        own = [word for word in words if _holds(prompt, word)]
        if own:
            probes.append(word_probe(f"local blend {number}, {branch}", prompt, own, branch, layers))
    for word in words:
        if not _holds(plan.text.source, word):
            # Its sentence names the prompt.
            plan.text.target.find(*word)
    blend = replace(blend, probes=(*blend.probes, *(probe.name for probe in probes)))
    return replace(plan, probes=(*plan.probes, *probes), latent_rules=(*plan.latent_rules, blend))


def _holds(prompt: Prompt, word: Word) -> bool:
    try:
        prompt.find(*word)
    except ValueError:
        return False
    return True


def _resize(heat: Tensor, grid: tuple[int, int, int]) -> Tensor:
    if heat.shape[1:] == grid:
        return heat
    return torch.nn.functional.interpolate(heat[:, None], grid, mode="trilinear", align_corners=False)[:, 0]
