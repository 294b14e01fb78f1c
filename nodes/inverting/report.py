"""InversionReport: what an inversion is worth."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..host.node import Node
from .link import InversionType, LinkedInversion
from .measure import describe, measure
from .plot import report_plot


class InversionReport(Node):
    """Measures how well an inversion comes back and how good its noise is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Inversion Report",
            "Measures an inversion: round-trip error in the latent and in pixels, noise statistics, cost. "
            "A faithful round trip and good noise are two things; an edit needs both.",
            aliases=["round trip error", "PSNR", "inversion quality"],
            inputs=[
                InversionType.Input("inversion", tooltip="From Invert, with keep_path for errors by step."),
                io.Model.Input("model", tooltip="The model that made the inversion. It is not changed."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="VAE, to compare source and reconstruction in pixels. Its own loss is not counted.",
                ),
                io.Latent.Input(
                    "reconstructed",
                    optional=True,
                    tooltip="A reconstruction to measure. Without it the report reconstructs by itself.",
                ),
                io.Conditioning.Input(
                    "source",
                    optional=True,
                    tooltip="Prompt of the inversion, only needed for one that was loaded from a file.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Negative prompt of the inversion, only needed for a loaded one made with cfg above 1.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="All figures as text."),
                io.Image.Output(
                    display_name="plot",
                    tooltip="Error by step on the way down, and the histogram of the inverted noise.",
                ),
                io.Float.Output(
                    display_name="latent_error", tooltip="Round-trip error relative to the latent's size; 0 is exact."
                ),
                io.Float.Output(display_name="psnr", tooltip="Round trip in pixels, dB; nan without a VAE."),
                io.Float.Output(display_name="ssim", tooltip="Round trip in pixels, at most 1; nan without."),
                io.Float.Output(
                    display_name="noise_std",
                    tooltip="Deviation of the inverted noise over the expected one; 1 is wanted.",
                ),
                io.Int.Output(display_name="evaluations", tooltip="Model calls of the inversion."),
                io.Float.Output(display_name="seconds", tooltip="Time that the inversion took."),
            ],
            is_output=True,
        )

    @classmethod
    def execute(
        cls,
        inversion: LinkedInversion,
        model: Any,
        vae: Any = None,
        reconstructed: dict[str, Any] | None = None,
        source: Any = None,
        negative: Any = None,
    ) -> io.NodeOutput:
        """Measure the inversion."""
        inversion = inversion.with_conditioning(source, negative)
        found = measure(model, inversion, vae, reconstructed)
        text = describe(inversion, found)
        return io.NodeOutput(
            text,
            report_plot(found.sigmas, found.step_errors, found.noise),
            found.latent_error,
            found.pixel_psnr,
            found.pixel_ssim,
            found.noise_std,
            found.evaluations,
            found.seconds,
            ui=ui.PreviewText(text),
        )
