"""Resample: from an inversion back to a latent, as it was or towards a target."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...attention import AttentionPlan
from ..attending.plan_link import attention_input
from ..host.compat import declare, schema
from ..host.inputs import mask_inputs
from ..host.masks import EditArea
from ..host.session import Branch
from .link import InversionType, LinkedInversion
from .method_inputs import method_names
from .runs import run_replay

SAME = "same as inversion"


class Resample(io.ComfyNode):
    """Plays an inversion back: reconstructs its source, or edits it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="Resample",
            display_name="Resample (Retrace)",
            category="Retrace/inversion",
            description="Samples from an inversion. With a positive prompt it edits, without one it reconstructs; "
            "inside a mask everything else stays as it was, bit for bit.",
            search_aliases=["edit", "reconstruct", "resampler", "inversion edit"],
            inputs=[
                declare(io.Model.Input, "model", tooltip="The model that made the inversion. It is not changed."),
                declare(InversionType.Input, "inversion", tooltip="From Invert, NullTextOptimize or LoadInversion."),
                declare(
                    io.Float.Input,
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance of the edit: higher follows the prompt more and keeps the source less. Needs a "
                    "negative unless it is 1. A reconstruction uses the guidance of the inversion instead.",
                ),
                declare(
                    io.Conditioning.Input,
                    "positive",
                    optional=True,
                    tooltip="Prompt of the edit. Leave it out to reconstruct the source.",
                ),
                declare(
                    io.Conditioning.Input,
                    "negative",
                    optional=True,
                    tooltip="Negative prompt of the edit. Needed when cfg is not 1, left out after NullTextOptimize.",
                ),
                *mask_inputs(),
                declare(
                    io.Conditioning.Input,
                    "source",
                    optional=True,
                    tooltip="Prompt of the inversion, only needed for one that was loaded from a file: to reconstruct "
                    "it, or with attention.",
                ),
                declare(
                    io.Combo.Input,
                    "method",
                    options=[SAME, *method_names()],
                    default=SAME,
                    optional=True,
                    advanced=True,
                    tooltip="Another solver for the way down. The inversion's own comes back best.",
                ),
                attention_input("A plan that reads from the source while it is edited. Unused in a reconstruction."),
            ],
            outputs=[declare(io.Latent.Output, display_name="latent", tooltip="The edited or reconstructed latent.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: LinkedInversion,
        cfg: float,
        positive: Any = None,
        negative: Any = None,
        mask: torch.Tensor | None = None,
        feather: int = 0,
        source: Any = None,
        method: str = SAME,
        attention: AttentionPlan | None = None,
    ) -> io.NodeOutput:
        """Play the inversion back."""
        # Without a positive, a negative can only be that of the inversion.
        inversion = inversion.with_conditioning(source, negative if positive is None else None)
        other = None if method == SAME else method
        target = None if positive is None else Branch(positive, negative, cfg)
        area = EditArea.of(mask, feather)
        return io.NodeOutput(run_replay(model, inversion, target, area, other, attention=attention))
