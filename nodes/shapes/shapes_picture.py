"""ShapesPicture: a captioned picture of the Shapes world, with the mask of its object."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ...demo.world import COLOURS, POSITIONS, SHAPES, SIZES, Scene, render
from ..host.node import Node


def draw(scene: Scene, seed: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a scene as the host's IMAGE and MASK.

    Args:
        scene: What the pictures show.
        seed: Seed of what the words leave open: exact place, shades, gradient, grain.
        batch_size: Number of pictures B; each has its own nuisances.

    Returns:
        Pictures, shape (B, 64, 64, 3), and masks of the object, shape (B, 64, 64), both float32 in [0, 1].
    """
    pictures, masks = render([scene] * batch_size, seed)
    return torch.from_numpy(pictures).float() / 255.0, torch.from_numpy(masks)


def check_visible(colour: str, background: str) -> None:
    """Refuse a shape that cannot be seen.

    Raises:
        ValueError: If it has the background's colour.
    """
    if colour == background:
        raise ValueError(f"colour must differ from the background, got {colour!r} for both; change one of them.")


class ShapesPicture(Node):
    """Draws the pictures that the Shapes models were trained on."""

    RULES = (check_visible,)

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Shapes Picture",
            "Draws a shape on a coloured background, 64 x 64 pixels, with its caption and the exact mask "
            "of the shape. With LoadShapesModel every workflow of this pack runs without a download.",
            aliases=["demo picture", "test image", "synthetic picture"],
            inputs=[
                io.Combo.Input(
                    "size",
                    options=list(SIZES),
                    default="big",
                    tooltip="Size of the shape: about 34 or 19 of the 64 pixels.",
                ),
                io.Combo.Input(
                    "colour",
                    options=list(COLOURS),
                    default="red",
                    tooltip="Colour of the shape. Must differ from the background.",
                ),
                io.Combo.Input("shape", options=list(SHAPES), default="circle", tooltip="What is drawn."),
                io.Combo.Input(
                    "position",
                    options=list(POSITIONS),
                    default="middle",
                    tooltip="Where the shape lies; the seed moves it by up to 1.5 pixels.",
                ),
                io.Combo.Input(
                    "background",
                    options=list(COLOURS),
                    default="blue",
                    tooltip="Colour behind the shape, with a slight gradient.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of what the words leave open: exact place, shade, gradient and grain.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Number of pictures of the same words, each with its own place, shade and grain.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The pictures, 64 x 64."),
                io.Mask.Output(display_name="mask", tooltip="White where the shape is, soft at its edge."),
                io.String.Output(
                    display_name="caption",
                    tooltip="The picture in the words that the Shapes models know, for CLIPTextEncode.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, size: str, colour: str, shape: str, position: str, background: str, seed: int, batch_size: int
    ) -> io.NodeOutput:
        """Draw the pictures."""
        scene = Scene(size, colour, shape, position, background)
        image, mask = draw(scene, seed, batch_size)
        return io.NodeOutput(image, mask, scene.caption)
