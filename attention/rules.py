"""What an editing method does inside attention, as data: operands, value maps, terms and rules.

Softmax attention is linear in V, so every edit of probabilities that acts on their columns is a sum of ordinary calls,

    out = sum_b w_b * SDPA(q_b, k_b, W_b v_b),    (P W) V = P (W V),

and nothing below asks for a matrix of probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from .masks import Mask, MaskSource
from .sites import ALL, KINDS, Kind, Layers, Site
from .timing import ALWAYS, Step, Window

Group = Literal["image", "text", "all"]
SourceFor = Literal["both", "shared"]
Name = Literal["q", "k", "v"]
SOURCE, TARGET, OWN = "source", "target", "own"


@dataclass(frozen=True)
class Own:
    """The row's own tensor."""


@dataclass(frozen=True)
class Take:
    """The tensor of another branch."""

    branch: str = SOURCE


@dataclass(frozen=True)
class Mix:
    """own + weight * (other - own)."""

    branch: str = SOURCE
    weight: float = 1.0


@dataclass(frozen=True)
class Add:
    """own + scale * other."""

    branch: str = SOURCE
    scale: float = 1.0


@dataclass(frozen=True)
class Join:
    """Keys or values of several branches one after the other; "own" names the row's own.

    Each brings the tokens of the rule's group; the row's other tokens stand beside each, so that text keeps its weight
    against twice the image, and a join of equal branches changes nothing.
    """

    branches: tuple[str, ...] = (SOURCE, OWN)


@dataclass(frozen=True, eq=False)
class Gather:
    """Keys or values of another branch at the tokens whose weight is at least one half.

    The same as a mask of minus infinity elsewhere, without a mask. Where no token is chosen, all are.
    """

    branch: str
    tokens: Mask | MaskSource


Operand: TypeAlias = Own | Take | Mix | Add | Join | Gather


class Values(Protocol):
    """W on the text part of V, for the sites and steps of a run."""

    def __call__(self, site: Site, step: Step) -> Tensor | None:
        """A matrix (L of k's branch, L of v's branch), a diagonal (L,), or None for the identity."""


@dataclass(frozen=True, eq=False)
class ValueMap:
    """W of a term.

    Attributes:
        text: W on the text part, a tensor or a callable; None is the identity.
        rest: Factor on all other tokens of V, at joint sites.
    """

    text: Values | Tensor | None = None
    rest: float = 1.0

    def at(self, site: Site, step: Step) -> Tensor | None:
        """W on the text part for one call."""
        if self.text is None or isinstance(self.text, Tensor):
            return self.text
        return self.text(site, step)


@dataclass(frozen=True, eq=False)
class Term:
    """One ordinary call: SDPA(q, k, W v), weighted by `where` on the image queries."""

    q: Operand = field(default_factory=Own)
    k: Operand = field(default_factory=Own)
    v: Operand = field(default_factory=Own)
    values: ValueMap | None = None
    where: Mask | MaskSource | None = None

    def operands(self) -> tuple[tuple[Name, Operand], ...]:
        """The three operands by name."""
        return ("q", self.q), ("k", self.k), ("v", self.v)


@dataclass(frozen=True, eq=False)
class Rule:
    """One edit: where, when, for whom, what, how much.

    Attributes:
        name: For messages.
        terms: Calls whose sum is the edited output.
        layers: Sites that it acts on.
        kinds: Kinds of site that it acts on.
        window: Steps in which it acts.
        branch: Branch whose rows change.
        chunks: Parts of the guided call whose rows change.
        strength: Share of the edit, 0 (nothing) to 1.
        mask: Image tokens on which it acts; the other tokens of its group take the mask's largest weight.
        group: Tokens that operands replace. At "cross" sites keys and values are text whatever the group is.
        queries: Tokens whose output a mapped or blended rule changes.
        blend: "operand" mixes q, k, v and costs nothing; "output" mixes two outputs, which blends probabilities.
        limit: Largest grid, as a share of the latent's side: 0.25 takes 16 x 16 tokens of a 64 x 64 latent.
        source_for: "both" takes from the same chunk of the other branch, "shared" always from its "cond".
        gate: Further steps in which it rests, such as those that a token map leaves alone.
        renormalise: Whether the sum is divided by its own mass, sum_b SDPA(q_b, k_b, W_b 1), so that the mapped
            probabilities of a query add up to 1; one more call a term, and weights must not be negative.
    """

    name: str
    terms: tuple[Term, ...]
    layers: Layers = ALL
    kinds: tuple[Kind, ...] = ("self", "joint")
    window: Window = ALWAYS
    branch: str = TARGET
    chunks: tuple[str, ...] = ("cond", "uncond")
    strength: float = 1.0
    mask: Mask | MaskSource | None = None
    group: Group = "image"
    queries: Group = "all"
    blend: Literal["operand", "output"] = "operand"
    limit: float | None = None
    source_for: SourceFor = "both"
    gate: Callable[[Step], bool] | None = None
    renormalise: bool = False

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError(f"Rule {self.name} must have a term, got none; give it one.")
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"strength must lie between 0 and 1, got {self.strength}; choose a value inside.")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {unknown[0]!r}; rename it.")
        for term in self.terms:
            if isinstance(term.q, Join | Gather):
                raise ValueError(f"q of rule {self.name} must keep its tokens, got {type(term.q).__name__}; use Take.")
            for pair in (Join, Gather):
                if isinstance(term.k, pair) != isinstance(term.v, pair):
                    raise ValueError(
                        f"k and v of rule {self.name} must both be a {pair.__name__}, got one; their keys must agree."
                    )

    def acts(self, step: Step) -> bool:
        """Whether it changes anything in a step."""
        return self.strength > 0.0 and self.window.holds(step) and (self.gate is None or self.gate(step))

    def covers(self, site: Site) -> bool:
        """Whether it acts on a site, whatever the step."""
        return (
            site.kind in self.kinds
            and self.layers.matches(site)
            and within(site, self.limit)
            and not (self.group == "text" and site.kind == "self")
        )

    def reads(self) -> frozenset[tuple[str, Name]]:
        """Branches and operands that it takes from."""
        read = [
            (branch, name) for term in self.terms for name, operand in term.operands() for branch in sources(operand)
        ]
        return frozenset(entry for entry in read if entry[0] not in (OWN, self.branch))


def sources(operand: Operand) -> tuple[str, ...]:
    """Branches that an operand names."""
    if isinstance(operand, Own):
        return ()
    return operand.branches if isinstance(operand, Join) else (operand.branch,)


def within(site: Site, limit: float | None) -> bool:
    """Whether the grid of a site is at most a share of the latent's side, rounded up."""
    if limit is None:
        return True
    # The small number keeps the rounding of a product such as 10 * 0.7 from adding a token.
    pairs = zip(site.grid[1:], site.latent[1:], strict=True)
    return all(have <= math.ceil(size * limit - 1e-6) for have, size in pairs)


@dataclass(frozen=True)
class FeatureRule:
    """The output of a UNet block's residual branch, before its skip is added, taken from another branch.

    The one edit outside attention (plug-and-play's feature). Attributes as in Rule.
    """

    name: str
    stack: str
    index: int
    window: Window = ALWAYS
    branch: str = TARGET
    take: str = SOURCE
    chunks: tuple[str, ...] = ("cond", "uncond")
    strength: float = 1.0
    source_for: SourceFor = "both"

    def acts(self, step: Step) -> bool:
        """Whether it changes anything in a step."""
        return self.strength > 0.0 and self.window.holds(step)


class Accumulator(Protocol):
    """What gathers the readings of a probe during a run."""

    def add(self, site: Site, step: Step, item: int, masses: Tensor) -> None:
        """Take one reading.

        Args:
            site: Where it was made.
            step: When it was made.
            item: Picture of the batch.
            masses: (tokens, frames, h, w) float32: attention from the image tokens to each text token, mean over heads.
        """


@dataclass(frozen=True, eq=False)
class Probe:
    """A rule without effect: reads how much image tokens attend to text tokens, before any edit.

    Attributes:
        name: Key of its accumulator in a run.
        tokens: Text tokens to read, indices in the text part.
        make: Makes the accumulator of a run.
        layers: Sites that it reads.
        kinds: Kinds of site that it reads.
        window: Steps in which it reads.
        branch: Branch that it reads.
        chunks: Parts of the guided call that it reads.
        read: "text": softmax over the text keys alone, which is the joint row renormalised; "exact": over all keys.
        limit: Largest grid, as in Rule.
        length: Text tokens before the host repeated them, None if it did not.
    """

    name: str
    tokens: tuple[int, ...]
    make: Callable[[], Any]
    layers: Layers = ALL
    kinds: tuple[Kind, ...] = ("cross", "joint")
    window: Window = ALWAYS
    branch: str = SOURCE
    chunks: tuple[str, ...] = ("cond",)
    read: Literal["text", "exact"] = "text"
    limit: float | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if "self" in self.kinds:
            raise ValueError('kinds of a probe must be "cross" or "joint", got "self"; it has no text keys.')

    def acts(self, step: Step) -> bool:
        """Whether it reads in a step."""
        return self.window.holds(step)

    def covers(self, site: Site) -> bool:
        """Whether it reads a site, whatever the step."""
        return site.kind in self.kinds and self.layers.matches(site) and within(site, self.limit)
