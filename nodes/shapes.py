"""LoadShapesModel: a small trained model that comes with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ..demo.models import KINDS
from .host.compat import declare, schema
from .host.shapes import load_clip, load_model, load_vae


class LoadShapesModel(io.ComfyNode):
    """Loads a demo model, so that every node of the pack can be tried without a download."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="LoadShapesModel",
            display_name="Load Shapes Model (Retrace)",
            category="Retrace/demo",
            description="Loads a small model of coloured shapes, 64 by 64 pixels, that comes with the pack. "
            "Prompts read like: a big red circle on the left of a blue background.",
            search_aliases=["demo model", "tiny model", "test model", "load checkpoint"],
            inputs=[
                declare(
                    io.Combo.Input,
                    "kind",
                    options=list(KINDS),
                    default="eps",
                    tooltip="eps predicts the noise, like SD1.5; flow is a rectified-flow transformer, like SD3.",
                ),
            ],
            outputs=[
                declare(io.Model.Output, display_name="model", tooltip="The denoiser, for 16 by 16 latents."),
                declare(
                    io.Clip.Output, display_name="clip", tooltip="The text encoder; it knows the words of its captions."
                ),
                declare(
                    io.Vae.Output,
                    display_name="vae",
                    tooltip="The autoencoder. Its latents have a quarter of the picture's width and height.",
                ),
            ],
        )

    @classmethod
    def execute(cls, kind: str) -> io.NodeOutput:
        """Load the model."""
        return io.NodeOutput(load_model(kind), load_clip(), load_vae())
