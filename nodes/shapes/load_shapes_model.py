"""LoadShapesModel: a small trained model that comes with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ...demo.models import KINDS
from ..host.node import Node
from .models import check_lcm, load_clip, load_model, load_vae, with_lcm_lora


class LoadShapesModel(Node):
    """Loads a demo model, so that every node of the pack can be tried without a download."""

    RULES = (lambda kind, lcm: check_lcm(kind) if lcm else None,)

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Load Shapes Model",
            "Loads a small model of coloured shapes, 64 by 64 pixels, that comes with the pack. "
            "Prompts read like: a big red circle on the left of a blue background.",
            aliases=["demo model", "tiny model", "test model", "load checkpoint"],
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default="eps",
                    tooltip="eps predicts the noise, like SD1.5; flow is a rectified-flow transformer, like SD3.",
                ),
                io.Boolean.Input(
                    "lcm",
                    default=False,
                    optional=True,
                    tooltip="Adds the LCM LoRA that comes with the pack, for few steps without guidance. Put "
                    "ModelSamplingDiscrete with lcm behind it. Of kind eps only.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The denoiser, for 16 by 16 latents."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder; it knows the words of its captions."),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="The autoencoder. Its latents have a quarter of the picture's width and height.",
                ),
            ],
        )

    @classmethod
    def execute(cls, kind: str, lcm: bool = False) -> io.NodeOutput:
        """Load the model."""
        model = load_model(kind)
        return io.NodeOutput(with_lcm_lora(model, kind) if lcm else model, load_clip(), load_vae())
