"""What a preset is: an editing method as data, with the defaults that its authors give for each family of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .masks import Mask, MaskSource
from .plan import AttentionPlan, Serves
from .rules import Group
from .sites import Layers
from .timing import Window

# UNets without and with pooled text, SD3 and 3.5, Flux.1 and Chroma, Flux.2 and LongCat-Image, Qwen-Image, Wan,
# HunyuanVideo, its version 1.5, LTX, Lumina2 and Z-Image, AuraFlow.
FAMILIES = (
    "sd15",
    "sdxl",
    "sd3",
    "flux",
    "flux2",
    "qwen",
    "wan",
    "hunyuan_video",
    "hunyuan_video_15",
    "ltx",
    "lumina",
    "aura",
)
UNETS = ("sd15", "sdxl")
OTHERS = "*"


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
    """Settings with the defaults filled in.

    Attributes:
        family: Family of networks.
        variant: Variant.
        layers: Layers.
        window: Steps.
        strength: Share of the edit.
        mask: Weights of image tokens, or None.
        source_mask: The same for the source's tokens; the target's where none was given.
        group: Tokens on which it acts.
        text: Token map, or None.
        chosen: Whether the user chose the layers.
        renormalise: Whether mapped probabilities are made to add up to 1 again.
        feature: Block whose residual feature is taken, None for the preset's own.
    """

    family: str
    variant: str
    layers: Layers
    window: Window
    strength: float
    mask: Mask | MaskSource | None
    source_mask: Mask | MaskSource | None
    group: Group
    text: Any
    chosen: bool
    renormalise: bool
    feature: int | None = None


class Preset(ABC):
    """An editing method as rules. One a file in methods/, found by its file.

    Attributes:
        name: Name in files and workflows, equal to the name of the file.
        label: Name for people.
        description: When to take it, one or two sentences.
        reference: Paper and arXiv id.
        added: Version of the pack in which it appeared.
        variants: Names of its variants, the default first; empty if it has one form.
        layers: Default layer text by family, or by "family variant"; "*" for all other families. A family that has
            none is not supported.
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
        """Families for which it has default layers."""
        return tuple(family for family in FAMILIES if cls._layers(family, cls.variants[0] if cls.variants else ""))

    @classmethod
    def default_layers(cls, family: str, variant: str = "") -> str:
        """Its layer text for a family.

        Raises:
            ValueError: If it does not exist for the family.
        """
        found = cls._layers(family, variant or (cls.variants[0] if cls.variants else ""))
        if found is None:
            raise ValueError(
                f"Preset {cls.name} must run on {', '.join(cls.families())}, got {family}; choose another preset."
            )
        return found

    @classmethod
    def _layers(cls, family: str, variant: str) -> str | None:
        return next((cls.layers[key] for key in (f"{family} {variant}", family, OTHERS) if key in cls.layers), None)

    @classmethod
    def default_window(cls, family: str, variant: str = "") -> tuple[float, float]:
        """Its window for a family."""
        chosen = variant or (cls.variants[0] if cls.variants else "")
        return next(cls.windows[key] for key in (chosen, family, OTHERS) if key in cls.windows)

    def build(self, settings: Settings | None = None, family: str = "sd15") -> AttentionPlan:
        """The preset as a plan.

        Args:
            settings: What differs from the defaults.
            family: Family of networks, one of FAMILIES or any other name.

        Raises:
            ValueError: If a setting is out of its range, or a mask or token map is missing.
        """
        given = Settings() if settings is None else settings
        variant = given.variant or (self.variants[0] if self.variants else "")
        if given.variant and variant not in self.variants:
            listed = ", ".join(self.variants) or "none"
            raise ValueError(f"variant of {self.name} must be one of {listed}, got {variant!r}; leave it empty.")
        if given.mask is None and (OTHERS in self.needs_mask or variant in self.needs_mask):
            raise ValueError(
                f"Preset {' '.join((self.name, variant)).strip()} must have a mask, got none; connect one."
            )
        if given.source_mask is not None and variant not in self.tells_source:
            raise ValueError(
                f"source_mask must be left out for preset {' '.join((self.name, variant)).strip()}, got one; "
                "it is read by masactrl masked alone."
            )
        if given.feature is not None and not self.takes_feature:
            raise ValueError(
                f"feature_block must be left out for preset {self.name}, got {given.feature}; it is read by pnp alone."
            )
        if given.text is None and self.needs_text:
            raise ValueError(f"Preset {self.name} must have a token map, got none; use PromptToPrompt.")
        start, end = self.default_window(family, variant)
        where = Where(
            family,
            variant,
            Layers.parse(given.layers.strip() or self.default_layers(family, variant)),
            Window(start if given.start is None else given.start, end if given.end is None else given.end),
            given.strength,
            given.mask,
            given.mask if given.source_mask is None else given.source_mask,
            given.group or self.groups.get(family, self.groups[OTHERS]),
            given.text,
            bool(given.layers.strip()),
            given.renormalise,
            given.feature,
        )
        return self.plan(where, given.source_for or self.source_for)

    @abstractmethod
    def plan(self, where: Where, source_for: Serves) -> AttentionPlan:
        """The rules.

        Args:
            where: Settings with the defaults filled in.
            source_for: Which chunks read from the source.
        """
