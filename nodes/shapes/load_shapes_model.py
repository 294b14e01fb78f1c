"""LoadShapesModel: a small trained model that comes with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ...demo.models import KINDS
from ..host.compat import declare, schema
from .models import check_lcm, load_clip, load_model, load_vae, with_lcm_lora


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
                declare(
                    io.Boolean.Input,
                    "lcm",
                    default=False,
                    optional=True,
                    tooltip="Adds the LCM LoRA that comes with the pack, for few steps without guidance. Put "
                    "ModelSamplingDiscrete with lcm behind it. Of kind eps only.",
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
    def validate_inputs(cls, kind: str | None = None, lcm: bool | None = None) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        # None: the value comes over a link and is checked when the node runs.
        if lcm and kind is not None:
            try:
                check_lcm(kind)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(cls, kind: str, lcm: bool = False) -> io.NodeOutput:
        """Load the model."""
        model = load_model(kind)
        return io.NodeOutput(with_lcm_lora(model, kind) if lcm else model, load_clip(), load_vae())
