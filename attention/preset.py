"""What a preset is: an editing method as data, with the defaults that its authors give for each family of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

from .masks import Mask, MaskSource
from .plan import AttentionPlan, Serves
from .rules import Group, Rule, Term
from .sites import Layers
from .timing import ALWAYS, Window

OTHERS = "*"
NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Settings:
    """What a user may choose of a preset; whatever is left out is the preset's own.

    Attributes:
        layers: Layer text, "" for the preset's default for the family.
        start: Noisy end of the window of steps, as a fraction.
        end: Clean end of the window.
        strength: Share of the edit.
        mask: Weights of image tokens; `Preset.mask_note` says what white means.
        source_mask: The same for the source's tokens, where a preset tells source and target apart.
        group: Tokens on which it acts.
        variant: One of the preset's variants.
        text: Token map of the prompts, for presets that need one.
        source_for: Chunks that read from the source.
        renormalise: Whether mapped probabilities are made to add up to 1 again, for presets with a token map.
        feature: Block whose residual feature is taken, for presets that take one; None for the preset's own.
    """

    layers: str = ""
    start: float | None = None
    end: float | None = None
    strength: float = 1.0
    mask: Mask | MaskSource | None = None
    source_mask: Mask | MaskSource | None = None
    group: Group | None = None
    variant: str = ""
    text: Any = None
    source_for: Serves | None = None
    renormalise: bool = False
    feature: int | None = None


@dataclass(frozen=True, eq=False)
class Where:
    """Settings with the defaults filled in, and what rules are made of them.

    Attributes:
        name: Name of the preset.
        settings: What the user chose.
        family: Family of networks.
        variant: Variant, "" where there is one form.
        layers: Layers.
        window: Steps.
        group: Tokens on which it acts.
        source_for: Chunks that read from the source.
    """

    name: str
    settings: Settings
    family: str
    variant: str
    layers: Layers
    window: Window
    group: Group
    source_for: Serves

    def rule(self, *terms: Term, name: str = "", **changes: Any) -> Rule:
        """A rule with these terms; a name goes behind that of the preset."""
        rule = Rule(
            f"{self.name} {name}".strip(),
            terms,
            self.layers,
            window=self.window,
            strength=self.settings.strength,
            mask=self.settings.mask,
            group=self.group,
        )
        return replace(rule, **changes)

    def words(self, *terms: Term) -> Rule:
        """A rule for what the picture takes from words, in the windows of the token map."""
        return self.rule(
            *terms,
            name="words",
            kinds=("cross", "joint"),
            window=ALWAYS,
            chunks=("cond",),
            group="all",
            queries="image",
            gate=self.settings.text.is_active,
            renormalise=self.settings.renormalise,
        )

    def plan(self, *rules: Rule, **more: Any) -> AttentionPlan:
        """A plan of these rules."""
        return AttentionPlan(rules, source_for=self.source_for, **more)


class Preset(ABC):
    """An editing method as rules. One a file in methods/, found by its file.

    Attributes:
        name: Name in files and workflows, equal to the name of the file.
        label: Name for people.
        description: When to take it, one or two sentences.
        reference: Paper and arXiv id.
        added: Version of the pack in which it appeared.
        variants: Names of its variants, the default first; empty if it has one form.
        layers: Layer text by family, or by "family variant", where the authors give one; "*" for all other families.
            A family that has none, and gives none itself, is not supported.
        windows: Default window by family or by variant; "*" for all others.
        groups: Default token group by family; "*" for all others.
        mask_note: What white in a mask means.
        needs_mask: Variants that need a mask, or "*" for all.
        tells_source: Variants that tell the source's mask from the target's.
        needs_text: Whether it needs a token map.
        takes_feature: Whether it takes the residual feature of a block.
        source_for: Which chunks read from the source.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    description: ClassVar[str]
    reference: ClassVar[str]
    added: ClassVar[tuple[int, int, int]]
    variants: ClassVar[tuple[str, ...]] = ()
    layers: ClassVar[Mapping[str, str]]
    windows: ClassVar[Mapping[str, tuple[float, float]]] = {OTHERS: (0.0, 1.0)}
    groups: ClassVar[Mapping[str, Group]] = {OTHERS: "image"}
    mask_note: ClassVar[str] = "The edit acts where the mask is white."
    needs_mask: ClassVar[tuple[str, ...]] = ()
    tells_source: ClassVar[tuple[str, ...]] = ()
    needs_text: ClassVar[bool] = False
    takes_feature: ClassVar[bool] = False
    source_for: ClassVar[Serves] = "shared"

    @classmethod
    def families(cls) -> tuple[str, ...]:
        """Families for which it has layers of its own."""
        return tuple(dict.fromkeys(key.split()[0] for key in cls.layers if key != OTHERS))

    @classmethod
    def layers_of(cls, family: str, variant: str = "", own: Mapping[str, str] = NONE) -> str | None:
        """Its layer text for a family, None if it does not exist for it; arguments as in default_layers."""
        chosen = variant or cls._first()
        texts = [own.get(f"{cls.name} {chosen}"), own.get(cls.name)]
        texts += [cls.layers.get(key) for key in (f"{family} {chosen}", family, OTHERS)]
        return next((text for text in texts if text is not None), None)

    @classmethod
    def default_layers(cls, family: str, variant: str = "", own: Mapping[str, str] = NONE) -> str:
        """Its layer text for a family.

        Args:
            family: Family of networks.
            variant: One of its variants, "" for the first.
            own: What the family itself says: layer text by preset or by "preset variant".

        Raises:
            ValueError: If it does not exist for the family.
        """
        text = cls.layers_of(family, variant, own)
        if text is None:
            raise ValueError(
                f"Preset {cls.name} must run on {', '.join(cls.families())}, got {family}; choose another preset."
            )
        return text

    @classmethod
    def _first(cls) -> str:
        return cls.variants[0] if cls.variants else ""

    @classmethod
    def default_window(cls, family: str, variant: str = "") -> tuple[float, float]:
        """Its window for a family."""
        keys = (variant or cls._first(), family, OTHERS)
        return next(cls.windows[key] for key in keys if key in cls.windows)

    def build(
        self, settings: Settings | None = None, family: str = "sd15", own: Mapping[str, str] = NONE
    ) -> AttentionPlan:
        """The preset as a plan.

        Args:
            settings: What differs from the defaults.
            family: Family of networks, any name.
            own: Layers that the family itself gives to presets, as in default_layers.

        Raises:
            ValueError: If a setting is out of its range, or a mask or token map is missing.
        """
        chosen = Settings() if settings is None else settings
        variant = chosen.variant or self._first()
        if chosen.variant and variant not in self.variants:
            listed = ", ".join(self.variants) or "none"
            raise ValueError(f"variant of {self.name} must be one of {listed}, got {variant!r}; leave it empty.")
        full = f"{self.name} {variant}".strip()
        if chosen.mask is None and (OTHERS in self.needs_mask or variant in self.needs_mask):
            raise ValueError(f"Preset {full} must have a mask, got none; connect one.")
        if chosen.source_mask is not None and variant not in self.tells_source:
            raise ValueError(
                f"source_mask must be left out for preset {full}, got one; the preset that reads it is masactrl masked."
            )
        if chosen.feature is not None and not self.takes_feature:
            raise ValueError(
                f"feature_block must be left out for preset {self.name}, got {chosen.feature}; the preset that reads "
                "it is pnp."
            )
        if chosen.text is None and self.needs_text:
            raise ValueError(f"Preset {self.name} must have a token map, got none; use PromptToPrompt.")
        layers = self.default_layers(family, variant, own)
        start, end = self.default_window(family, variant)
        return self.plan(
            Where(
                self.name,
                chosen,
                family,
                variant,
                Layers.parse(chosen.layers.strip() or layers),
                Window(start if chosen.start is None else chosen.start, end if chosen.end is None else chosen.end),
                chosen.group or self.groups.get(family, self.groups[OTHERS]),
                chosen.source_for or self.source_for,
            )
        )

    @abstractmethod
    def plan(self, where: Where) -> AttentionPlan:
        """The rules, of the settings with their defaults filled in."""
