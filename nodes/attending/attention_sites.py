"""AttentionSites: what a model offers, so that nobody guesses layer numbers."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..host.compiled import refuse_compiled_model
from ..host.latents import source_samples
from ..host.node import Node
from .listing import listing
from .resolvers import resolver_for

# A square picture of 512 pixels, where no latent says otherwise.
_CELLS = 64


class AttentionSites(Node):
    """Lists the attention layers of a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Attention Sites",
            "Lists the attention layers of a model in the form in which AttentionInject takes them, with "
            "their numbers of tokens and the layers that each preset would use.",
            aliases=["attention layers", "block numbers", "layer list"],
            inputs=[
                io.Model.Input("model", tooltip="The model to look at. It is not loaded and not changed."),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="A latent of the size that is wanted, for the numbers of tokens. 64 x 64 cells without.",
                ),
            ],
            outputs=[io.String.Output(display_name="sites", tooltip="Stacks, blocks, kinds, tokens and presets.")],
            is_output=True,
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any] | None = None) -> io.NodeOutput:
        """List them."""
        refuse_compiled_model(model)
        resolver = resolver_for(model.model.diffusion_model)
        shape = (1, 4, _CELLS, _CELLS) if latent is None else tuple(source_samples(model, latent).shape)
        text = listing(resolver, shape)
        return io.NodeOutput(text, ui=ui.PreviewText(text))
