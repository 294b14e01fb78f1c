"""AttentionInject: what a target reads from its source inside attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from ...attention import AttentionPlan, Settings, get_preset
from ...attention.plan import Origin
from ..host.compat import ADVANCED
from ..host.compiled import refuse_compiled_model
from ..host.node import Node
from .listing import check_layers, offered
from .plan_link import attention_input, attention_output
from .plan_masks import picture_mask
from .resolvers import resolver_for

OWN = "preset's own"
OWN_BLOCK = -1
# Layers do not depend on the size; any latent shows which there are.
_ANY_SHAPE = (1, 4, 64, 64)


def variants() -> list[str]:
    """Return the variants of all presets, each once."""
    return list(dict.fromkeys(variant for preset in offered() for variant in preset.variants))


def check_window(start: float, end: float) -> None:
    """Refuse a window that ends before it begins; an end of 0 is the preset's own window.

    Raises:
        ValueError: If it does.
    """
    if end != 0.0 and start > end:
        raise ValueError(f"start must not exceed end, got {start:g} and {end:g}; start is the noisy end.")


class AttentionInject(Node):
    """Makes a plan out of a preset."""

    RULES = (check_window,)

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Attention Inject",
            "Lets an edit read from its source inside attention, so that more of the source stays: "
            "MasaCtrl, plug-and-play, RF-Edit, KV-Edit, StableFlow, FreeFlux and reference attention, on UNets and "
            "diffusion transformers alike. Goes into Resample, RFSolverSample, InfEdit, FlowEdit or AttentionGuider.",
            aliases=[
                "MasaCtrl",
                "plug-and-play",
                "PnP",
                "RF-Edit",
                "FireFlow",
                "KV-Edit",
                "StableFlow",
                "FreeFlux",
                "attention injection",
                "self attention",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Model of the edit, whose layers the plan is for. It is not changed."),
                io.Combo.Input(
                    "preset",
                    options=[preset.name for preset in offered()],
                    default="masactrl",
                    tooltip="masactrl: look of the source in a new pose. structure, pnp: its layout in a new look. "
                    "rf_edit: background under flow models. kv_edit: something new inside a mask. reference: style of "
                    "the source.",
                ),
                io.Combo.Input(
                    "variant",
                    options=[OWN, *variants()],
                    default=OWN,
                    tooltip="masactrl: union reads source and target, masked keeps foreground and background apart. "
                    "rf_edit: add. reference: replace. The help page lists them.",
                ),
                io.String.Input(
                    "layers",
                    default="",
                    tooltip="Empty for the preset's own layers. Else output:4-11, double:0,17-18; single:20-37, "
                    "self#10-15, a depth range 0.35-1.0, or all. AttentionSites lists what a model has.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps after which it begins, 0 at the noisiest. Counts where end is not 0.",
                ),
                io.Float.Input(
                    "end",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps at which it stops: more keeps more of the source. 0 takes the "
                    "preset's own start and end.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the source in what is read. 0 is as without.",
                ),
                io.Combo.Input(
                    "source",
                    options=["pinned", "free"],
                    default="pinned",
                    tooltip="pinned: the source stands at the inverted state of every step, cheap and faithful. free: "
                    "it is reconstructed beside the edit, at the cost of a full second run.",
                ),
                io.Combo.Input(
                    "source_for",
                    options=[OWN, "cond", "both", "shared"],
                    default=OWN,
                    tooltip="Which side of the guidance reads the source. shared: both read one source. both: each "
                    "its own, as the papers do, for one more evaluation. cond: only the prompted side.",
                ),
                io.Combo.Input(
                    "tokens",
                    options=[OWN, "image", "text", "all"],
                    default=OWN,
                    tooltip="What is taken on models with joint attention: image tokens, text tokens or all. Text "
                    "needs prompts of one length.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the source is read, white for read. kv_edit: white is made anew. It limits what "
                    "is read and is no guarantee for pixels; the mask of Resample is.",
                ),
                io.Mask.Input(
                    "source_mask",
                    optional=True,
                    tooltip="For masactrl masked alone: the foreground of the source, where it differs from that of "
                    "the target.",
                ),
                attention_input("Rules to add these to."),
                io.Int.Input(
                    "feature_block",
                    default=OWN_BLOCK,
                    min=OWN_BLOCK,
                    max=63,
                    step=1,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="For pnp: the output block whose residual feature is taken. -1 is the preset's own: 4 on "
                    "SD1.5, 1 on SDXL. Other UNets need one of theirs, at about a third of the way up.",
                ),
            ],
            outputs=[
                attention_output(),
                io.String.Output(
                    display_name="summary",
                    tooltip="Each rule with the layers that it meets on this model and its steps.",
                ),
            ],
            shows_text=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        preset: str,
        variant: str,
        layers: str,
        start: float,
        end: float,
        strength: float,
        source: Origin,
        source_for: str,
        tokens: str,
        mask: torch.Tensor | None = None,
        source_mask: torch.Tensor | None = None,
        attention: AttentionPlan | None = None,
        feature_block: int = OWN_BLOCK,
    ) -> io.NodeOutput:
        """Make the plan."""
        refuse_compiled_model(model)
        resolver = resolver_for(model.model.diffusion_model)
        settings = Settings(
            layers=layers,
            start=None if end == 0.0 else start,
            end=None if end == 0.0 else end,
            strength=strength,
            mask=None if mask is None else picture_mask(mask),
            source_mask=None if source_mask is None else picture_mask(source_mask),
            group=_chosen(tokens),
            variant=_chosen(variant) or "",
            source_for=_chosen(source_for),
            feature=None if feature_block == OWN_BLOCK else feature_block,
        )
        plan = replace(get_preset(preset).build(settings, resolver.family, resolver.preset_layers), source=source)
        summary = check_layers(plan, resolver, _ANY_SHAPE)
        cls.show(summary)
        return io.NodeOutput(plan if attention is None else attention.plus(plan), summary)


def _chosen(value: str) -> Any:
    return None if value == OWN else value
