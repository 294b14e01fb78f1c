"""AttentionSites: what a model offers, so that nobody guesses layer numbers."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..host.compat import declare, schema
from ..host.compiled import refuse_compiled_model
from ..host.latents import source_samples
from .listing import listing
from .resolvers import resolver_for

# A square picture of 512 pixels, where no latent says otherwise.
_CELLS = 64


class AttentionSites(io.ComfyNode):
    """Lists the attention layers of a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="AttentionSites",
            display_name="Attention Sites (Retrace)",
            category="Retrace/attention",
            description="Lists the attention layers of a model in the form in which AttentionInject takes them, with "
            "their numbers of tokens and the layers that each preset would use.",
            search_aliases=["attention layers", "block numbers", "layer list"],
            is_output_node=True,
            inputs=[
                declare(io.Model.Input, "model", tooltip="The model to look at. It is not loaded and not changed."),
                declare(
                    io.Latent.Input,
                    "latent",
                    optional=True,
                    tooltip="A latent of the size that is wanted, for the numbers of tokens. 64 x 64 cells without.",
                ),
            ],
            outputs=[
                declare(io.String.Output, display_name="sites", tooltip="Stacks, blocks, kinds, tokens and presets.")
            ],
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any] | None = None) -> io.NodeOutput:
        """List them."""
        refuse_compiled_model(model)
        resolver = resolver_for(model.model.diffusion_model)
        shape = (1, 4, _CELLS, _CELLS) if latent is None else tuple(source_samples(model, latent).shape)
        text = listing(resolver, shape)
        return io.NodeOutput(text, ui=ui.PreviewText(text))
