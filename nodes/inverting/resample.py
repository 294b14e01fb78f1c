"""Resample: from an inversion back to a latent, as it was or towards a target."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...attention import AttentionPlan
from ...inversion import METHODS
from ..attending.plan_link import attention_input
from ..host.compat import ADVANCED
from ..host.inputs import mask_inputs
from ..host.masks import EditArea
from ..host.node import Node
from ..host.session import Branch
from .link import InversionType, LinkedInversion
from .runs import run_replay

SAME = "same as inversion"


class Resample(Node):
    """Plays an inversion back: reconstructs its source, or edits it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Resample",
            "Samples from an inversion. With a positive prompt it edits, without one it reconstructs; "
            "inside a mask everything else stays as it was, bit for bit.",
            aliases=["edit", "reconstruct", "resampler", "inversion edit"],
            inputs=[
                io.Model.Input("model", tooltip="The model that made the inversion. It is not changed."),
                InversionType.Input("inversion", tooltip="From Invert, NullTextOptimize or LoadInversion."),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance of the edit: higher follows the prompt more and keeps the source less. Needs a "
                    "negative unless it is 1. A reconstruction uses the guidance of the inversion instead.",
                ),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="Prompt of the edit. Leave it out to reconstruct the source."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Negative prompt of the edit. Needed when cfg is not 1, left out after NullTextOptimize.",
                ),
                *mask_inputs(),
                io.Conditioning.Input(
                    "source",
                    optional=True,
                    tooltip="Prompt of the inversion, only needed for one that was loaded from a file: to reconstruct "
                    "it, or with attention.",
                ),
                io.Combo.Input(
                    "method",
                    options=[SAME, *METHODS],
                    default=SAME,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Another solver for the way down. The inversion's own comes back best.",
                ),
                attention_input("A plan that reads from the source while it is edited. Unused in a reconstruction."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The edited or reconstructed latent.")],
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
