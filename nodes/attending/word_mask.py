"""WordMask: where in a picture a model sees some words."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...attention.heat_maps import THRESHOLDS
from ...attention.word_list import parse_words
from ..host.compat import ADVANCED, pixels_of_a_cell
from ..host.inputs import text_input
from ..host.latents import source_samples
from ..host.node import Node
from ..host.prompts import encode
from ..inverting.link import InversionType, LinkedInversion, source_samples_of, standing_at
from ..inverting.runs import check_model_fits
from .word_maps import coloured, cut, latent_states, picture, read_words, sigmas_of, sigmas_of_inversion


def check_levels(low: float, high: float) -> None:
    """Refuse levels of which the lower is the higher.

    Raises:
        ValueError: If they are.
    """
    if low > high:
        raise ValueError(f"low must not exceed high, got {low:g} and {high:g}; 0.2 to 0.8 is usual.")


def check_words(words: str) -> None:
    """Refuse words that name none.

    Raises:
        ValueError: If they do not.
    """
    if not parse_words(words):
        raise ValueError("words must name at least one word of the prompt, got none; write one.")


class WordMask(Node):
    """Reads from a model's attention where the words of a prompt are in a picture."""

    RULES = (check_levels, check_words)

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Word Mask",
            "Shows where in a picture the model sees some words of its prompt, as a heat map and as a "
            "MASK. A few forwards, no segmentation model.",
            aliases=["attention map", "DAAM", "heat map", "text mask", "segment by word"],
            inputs=[
                io.Model.Input("model", tooltip="The model whose attention is read. It is not changed."),
                io.Clip.Input("clip", tooltip="The model's text encoder: words are found by its tokens."),
                text_input("text", "Prompt that describes the picture as it is."),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words of the prompt, such as cat, red hat. cat#2 is the second cat. Several words make "
                    "one mask.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="Lower takes more of the picture. What it is measured by is the next input.",
                ),
                io.Combo.Input(
                    "threshold_by",
                    options=list(THRESHOLDS),
                    default="otsu",
                    tooltip="otsu: the level that parts the map best, 0.5 as it is. mean: the mean, 0.5 as it is. "
                    "absolute: a share of the maximum. quantile: this share of the picture stays outside.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-256,
                    max=256,
                    step=1,
                    tooltip="Pixels by which the mask is widened, or narrowed if negative.",
                ),
                io.Float.Input(
                    "blur", default=0.0, min=0.0, max=64.0, step=0.5, tooltip="Soft edge of the mask in pixels."
                ),
                io.Int.Input(
                    "evaluations",
                    default=5,
                    min=1,
                    max=100,
                    step=1,
                    tooltip="Noise levels that are looked at, one forward each. More make the map steadier.",
                ),
                io.Float.Input(
                    "low",
                    default=0.2,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    tooltip="Lowest noise level as a share of the model's time: 0 is clean, 1 pure noise.",
                ),
                io.Float.Input(
                    "high",
                    default=0.8,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    tooltip="Highest noise level. Near 1 a fresh noise hides the picture.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise that is put on the latent. An inversion has its own.",
                ),
                io.Latent.Input("latent", optional=True, tooltip="The picture or clip. Connect this or an inversion."),
                InversionType.Input(
                    "inversion",
                    optional=True,
                    tooltip="An inverted picture, whose own noise is used: low and high are shares of its steps.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture, to lay the heat map over. Heat map and mask get its size.",
                ),
                io.String.Input(
                    "layers",
                    default="",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Layers that are read; empty for those that suit the model. Else output:4-11, "
                    "double:11-18, cross#4-9, a depth range 0.35-1.0, or all.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="heat",
                    tooltip="Heat map of all words together, over the picture if connected. Clips: one a latent frame.",
                ),
                io.Mask.Output(
                    display_name="mask", tooltip="White where the words are. Clips: one mask a latent frame."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        text: str,
        words: str,
        threshold: float,
        threshold_by: Any,
        grow: int,
        blur: float,
        evaluations: int,
        low: float,
        high: float,
        seed: int,
        latent: dict[str, Any] | None = None,
        inversion: LinkedInversion | None = None,
        image: torch.Tensor | None = None,
        layers: str = "",
    ) -> io.NodeOutput:
        """Read the maps and cut the mask."""
        if (latent is None) == (inversion is None):
            raise ValueError(
                f"WordMask must have a latent or an inversion, got {'neither' if latent is None else 'both'}; "
                "connect one of them."
            )
        prompt, conditioning = encode(clip, text)
        if inversion is not None:
            check_model_fits(model, inversion)
            samples = source_samples_of(model, inversion)
            sigmas = sigmas_of_inversion(inversion, low, high, evaluations)
            states = standing_at(inversion)
        else:
            assert latent is not None
            samples = source_samples(model, latent)
            sigmas = sigmas_of(model, low, high, evaluations)
            states = latent_states(model, samples, seed)
        maps = read_words(model, prompt, conditioning, parse_words(words), samples, sigmas, states, layers)
        cell = pixels_of_a_cell(model)
        size = (samples.shape[-2] * cell, samples.shape[-1] * cell)
        if image is not None:
            size = (int(image.shape[1]), int(image.shape[2]))
        heat = picture(maps.sum(1), size)
        mask = cut(heat, threshold_by, threshold, grow, blur)
        return io.NodeOutput(coloured(heat.flatten(0, 1), image), mask.flatten(0, 1))
