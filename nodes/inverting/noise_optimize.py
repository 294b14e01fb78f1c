"""NoiseOptimize: the noise of an inversion, moved until it comes down to what is wanted."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ...inversion import NoiseReport
from ..host.inputs import feather_input, setting_inputs
from ..host.masks import EditArea
from ..host.node import Node
from ..host.session import Branch
from .link import InversionType, LinkedInversion
from .noise_run import DescentSettings, run_noise_optimize
from .plot import descent_plot


class NoiseOptimize(Node):
    """Moves the noise of an inversion by gradients through the whole way down."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Noise Optimize",
            "Moves the noise of an inversion until Resample makes of it what a reference latent shows, "
            "inside a mask if wanted, and keeps it near the noise that it was.",
            aliases=["DOODL", "D-Flow", "latent optimization", "noise optimization", "reference latent"],
            inputs=[
                io.Model.Input("model", tooltip="The model that made the inversion. It is not changed."),
                InversionType.Input(
                    "inversion",
                    tooltip="From Invert with midpoint, fireflow, ddim or another method that keeps one latent.",
                ),
                io.Latent.Input(
                    "reference",
                    tooltip="What the result is to look like, of the inversion's size. One picture serves a batch.",
                ),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance of the way down. Use the same in Resample. Unused without a positive.",
                ),
                *setting_inputs(DescentSettings),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Prompt of the way down. Leave it out to play the inversion back under its own.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Negative prompt of the way down. Needed with a positive when cfg is not 1.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the reference is to be met. Elsewhere the result is free.",
                ),
                feather_input(),
                io.Conditioning.Input(
                    "source",
                    optional=True,
                    tooltip="Prompt of the inversion, only needed without a positive for one loaded from a file.",
                ),
                io.Boolean.Input(
                    "save_unfinished",
                    default=True,
                    optional=True,
                    tooltip="When stopped, save the best noise so far as a file in output/retrace.",
                ),
            ],
            outputs=[
                InversionType.Output(
                    display_name="inversion",
                    tooltip="The inversion with its new noise, for Resample under the same prompts and cfg.",
                ),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="What Resample makes of it under these prompts and this cfg, bit for bit.",
                ),
                io.Image.Output(display_name="plot", tooltip="Loss of every iteration, and of what is kept."),
                io.String.Output(display_name="report", tooltip="Losses, distance and cost as text."),
            ],
            shows_text=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: LinkedInversion,
        reference: dict[str, Any],
        cfg: float,
        iterations: int,
        learning_rate: float,
        pull: float,
        norm: str,
        positive: Any = None,
        negative: Any = None,
        mask: torch.Tensor | None = None,
        feather: int = 0,
        source: Any = None,
        save_unfinished: bool = True,
    ) -> io.NodeOutput:
        """Optimise the noise."""
        lines: list[_Line] = []

        def told(report: NoiseReport) -> None:
            lines.append(_Line(report))
            cls.show(f"{report.index} of {report.total - 1} updates, loss {lines[-1].loss:.3e}")

        # Without a positive, a negative can only be that of the inversion.
        inversion, latent = run_noise_optimize(
            model,
            inversion.with_conditioning(source, negative if positive is None else None),
            reference,
            DescentSettings(iterations, learning_rate, pull, norm),
            None if positive is None else Branch(positive, negative, cfg),
            EditArea.of(mask, feather),
            save_unfinished,
            told,
        )
        text = _describe(inversion, lines)
        plot = descent_plot([line.loss for line in lines], [line.best for line in lines])
        return io.NodeOutput(inversion, latent, plot, text, ui=ui.PreviewText(text))


class _Line:
    """What is shown of a noise that was tried, as means over the rows; the tensors of its report are let go."""

    def __init__(self, report: NoiseReport) -> None:
        self.loss, self.best, self.distance = (
            sum(rows) / len(rows) for rows in (report.loss, report.best_loss, report.distance)
        )


def _describe(inversion: LinkedInversion, lines: list[_Line]) -> str:
    meta = inversion.meta
    return "\n".join(
        [
            f"loss: {lines[0].loss:.3e} -> {lines[-1].best:.3e} in {len(lines) - 1} updates",
            f"model calls: {meta['noise_optimize_evaluations']}, {meta['noise_optimize_seconds']:.1f} s",
            "by update, loss and distance from the inverted noise in its standard deviations:",
            *(f"  {index:4d}  {line.loss:.3e}  {line.distance:.3f}" for index, line in enumerate(lines)),
        ]
    )
