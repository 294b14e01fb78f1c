"""InfEdit's local blend: the latent of the edit is put together from the target, the mutual branch and the source.

    z <- where(m_e, z_target, z_mutual)        where the words of the edit are
    z <- where(m_m, z_source, z)               where the words that stay are, without those of both lists
    z <- where(m_me, z_mutual, z)              words of both lists, after the last step

Xu et al. 2023, arXiv:2312.04965. A map is that of the refined attention of the official code: a word that takes the
other branch's attention is read there (the mutual branch for the edit, the source for what stays), a new word is read
in the target's own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as functional
from torch import Tensor

from .heat_maps import over_maximum
from .methods.unified import MUTUAL
from .plan import AttentionPlan, AttentionRun
from .rules import SOURCE, TARGET, Probe
from .sites import ALL, Layers
from .timing import Step
from .token_map import TokenMap
from .word_list import Word
from .words import WordMaps

# Official: the threshold of the edited words is at least this over the signal's share sqrt(alpha bar), so that early
# maps, which say little, edit little.
TEMPERATURE = 0.15


@dataclass(frozen=True, eq=False)
class UnifiedBlend:
    """Three masks from words.

    Attributes:
        edited: Probes of the target's words that may change; empty: all may.
        kept: Probes of words that stay as in the source.
        shared: Probes of words of both lists.
        edited_threshold: Share of a map's maximum above which it is edited.
        kept_threshold: The same for what stays.
        flow: Whether sigmas are those of a flow, x = (1 - s) x0 + s n, else x0 + s n.
    """

    edited: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    edited_threshold: float = 0.6
    kept_threshold: float = 0.6
    flow: bool = False

    def __post_init__(self) -> None:
        for name in ("edited_threshold", "kept_threshold"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value:g}; 0.6 is the paper's.")

    def threshold(self, sigma: float) -> float:
        """The threshold of the edited words at sigma."""
        signal = 1.0 - sigma if self.flow else (1.0 + sigma * sigma) ** -0.5
        return max(TEMPERATURE / max(signal, 1e-6), self.edited_threshold)

    def after(self, run: AttentionRun, step: Step, states: Mapping[str, Tensor]) -> Tensor:
        """Return the target's new state.

        Args:
            run: The run, for its word maps.
            step: The step that was made.
            states: State of "source", "target" and "mutual" after it.

        Returns:
            A state that is in every cell one of the three, bit for bit.
        """
        source, target, mutual = states[SOURCE], states[TARGET], states[MUTUAL]
        # Official: the maps of one step are too rough.
        if step.index == 0 and step.total > 1:
            return target
        threshold, out = self.threshold(step.sigma), target
        if self.edited or self.shared:
            out = torch.where(_above(run.maps, (*self.edited, *self.shared), threshold, target), target, mutual)
        if self.kept:
            out = torch.where(_above(run.maps, self.kept, self.kept_threshold, target), source, out)
        if self.shared and step.index == step.total - 1:
            out = torch.where(_above(run.maps, self.shared, self.edited_threshold, target), mutual, out)
        return out


def with_unified_blend(
    plan: AttentionPlan,
    blend: UnifiedBlend,
    edited: Sequence[Word] = (),
    kept: Sequence[Word] = (),
    layers: Layers = ALL,
) -> AttentionPlan:
    """Return a plan with the blend at its end.

    Args:
        plan: A plan of unified control.
        blend: The blend; probes for the words are added to it.
        edited: Words of the target that may change.
        kept: Words of the target that stay as they are in the source.
        layers: Sites that are read for the words.

    Returns:
        The plan; without words it is the same.

    Raises:
        ValueError: If a word is not in the target.
    """
    text = plan.text
    names = {word: text.target.find(*word) for word in (*edited, *kept)}
    twice = {names[word] for word in edited} & {names[word] for word in kept}
    groups = {
        "edited": (MUTUAL, [names[word] for word in edited if names[word] not in twice]),
        "shared": (MUTUAL, [names[word] for word in edited if names[word] in twice]),
        "kept": (SOURCE, [names[word] for word in kept if names[word] not in twice]),
    }
    probes = {
        name: tuple(_probes(f"unified blend, {name}", text, {key for keys in places for key in keys}, base, layers))
        for name, (base, places) in groups.items()
    }
    if not any(probes.values()):
        return plan
    named = {name: tuple(probe.name for probe in read) for name, read in probes.items()}
    blend = replace(blend, edited=named["edited"], kept=named["kept"], shared=named["shared"])
    added = tuple(probe for read in probes.values() for probe in read)
    return replace(plan, probes=(*plan.probes, *added), latent_rules=(*plan.latent_rules, blend))


def _probes(name: str, text: TokenMap, keys: set[int], base: str, layers: Layers) -> Iterator[Probe]:
    """Readings of keys of the target: those that take another branch's attention there, the others in the target."""
    taken = {key for key in keys if bool(text.alpha[key] > 0.0)}
    rows = sorted({int(row) for key in taken for row in text.matrix[:, key].nonzero()[:, 0]})
    for branch, tokens, length in (
        (base, tuple(rows), text.source.length),
        (TARGET, tuple(sorted(keys - taken)), text.target.length),
    ):
        if tokens:
            # The official maximum is over tokens, so each is a map of its own.
            make = functools.partial(WordMaps, tuple((place,) for place in range(len(tokens))))
            yield Probe(f"{name}, {branch}", tokens, make, layers, branch=branch, length=length)


def _above(maps: Mapping[str, WordMaps], names: Sequence[str], threshold: float, like: Tensor) -> Tensor:
    """Where the largest of some maps is above a share of its maximum; shaped to the latent."""
    heats = []
    for name in names:
        heat = maps[name].maps().amax(1).cpu()
        grid = (like.shape[-3] if like.ndim == 5 else 1, like.shape[-2], like.shape[-1])
        heats.append(functional.interpolate(heat[:, None], grid, mode="nearest")[:, 0])
    heat = over_maximum(torch.stack(heats).amax(0))
    mask = (heat > threshold).to(like.device)
    return mask[:, None] if like.ndim == 5 else mask
