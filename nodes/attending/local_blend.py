"""LocalBlend: an edit that stays where its words or its mask are."""

from __future__ import annotations

import functools
from typing import Any

import torch
from comfy_api.latest import io

from ...attention import ALL, AttentionPlan, Layers
from ...attention.heat_maps import THRESHOLDS
from ...attention.local_blend import LocalBlend as LocalBlendRule
from ...attention.local_blend import with_local_blend
from ...attention.word_list import parse_words
from ..host.compat import ADVANCED
from ..host.masks import on_latent_grid
from ..host.node import Node
from .plan_link import attention_input, attention_output


class LocalBlend(Node):
    """Adds to a plan that outside some words or a mask the source stays."""

    RULES = (lambda words: parse_words(words), lambda start, end: LocalBlendRule(start=start, end=end))

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Local Blend",
            "Keeps the source outside the words or the mask of an edit, after every step. The words' place "
            "is read from the model's own attention while it runs. Hertz et al. 2022, arXiv:2208.01626.",
            aliases=["P2P local blend", "word mask", "attention mask blend"],
            inputs=[
                attention_input(
                    "The plan that this is added to, from PromptToPrompt if words are given.", optional=False
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words of either prompt, such as cat, dog: the edit acts where the source or the target "
                    "attends to them. Empty for the mask alone.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.3,
                    min=0.0,
                    max=4.0,
                    step=0.01,
                    tooltip="How much attention counts: lower takes more of the picture. The paper takes 0.3.",
                ),
                io.Combo.Input(
                    "threshold_by",
                    options=list(THRESHOLDS),
                    default="absolute",
                    tooltip="What threshold is a share of. absolute: the maximum. quantile: all cells, sorted. mean "
                    "and otsu: a factor on the mean or on Otsu's own level, 1 as it is.",
                ),
                io.Float.Input(
                    "start",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps before which nothing is blended: early maps say little.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps at which blending stops. 1 keeps the outside bit for bit; 0.9 lets the "
                    "last steps heal seams.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-64,
                    max=64,
                    step=1,
                    tooltip="Cells of the latent by which the words' place is widened, or narrowed if negative.",
                ),
                io.Float.Input(
                    "blur",
                    default=0.0,
                    min=0.0,
                    max=16.0,
                    step=0.1,
                    tooltip="Soft edge of the words' place in cells of the latent.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="White where the edit may act; with words, it acts where both are."
                ),
                io.String.Input(
                    "layers",
                    default="",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Layers that are read for the words; empty for all. Of these, the ones with the grid that "
                    "suits word maps count.",
                ),
            ],
            outputs=[attention_output()],
        )

    @classmethod
    def execute(
        cls,
        attention: AttentionPlan,
        words: str,
        threshold: float,
        threshold_by: Any,
        start: float,
        end: float,
        grow: int,
        blur: float,
        mask: torch.Tensor | None = None,
        layers: str = "",
    ) -> io.NodeOutput:
        """Add the blend."""
        grid = None if mask is None else functools.partial(_on_grid, mask)
        blend = LocalBlendRule((), grid, threshold, threshold_by, start, end, grow, blur)
        where = Layers.parse(layers) if layers.strip() else ALL
        return io.NodeOutput(with_local_blend(attention, blend, parse_words(words), where))


def _on_grid(mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The MASK as weights (items, frames, h, w) of a latent."""
    grid = on_latent_grid(mask, shape)[:, 0]
    return grid if grid.ndim == 4 else grid[:, None]
