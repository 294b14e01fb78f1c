"""NullTextOptimize: embeddings with which an inversion comes back under guidance."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ...inversion import FitReport, NullText
from ..host.inputs import setting_inputs
from ..host.node import Node
from .link import InversionType, LinkedInversion
from .null_text_run import run_null_text
from .plot import loss_plot


class NullTextOptimize(Node):
    """Fits one unconditional embedding for each step, so that guided sampling comes back to the source."""

    RULES = (lambda cfg: NullText(cfg=cfg),)

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Null-Text Optimize",
            "Fits an unconditional embedding for each step of an inversion (null-text inversion), so that "
            "an edit at high cfg starts from a source that comes back at that cfg.",
            aliases=["null-text inversion", "null text optimization", "NTI", "unconditional embedding"],
            inputs=[
                io.Model.Input("model", tooltip="The model that made the inversion. It is not changed."),
                InversionType.Input(
                    "inversion", tooltip="From Invert at cfg 1 with keep_path set, or an unfinished one to go on with."
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="Where the embeddings start: one prompt, usually empty. For SDXL its pooled part stays.",
                ),
                *setting_inputs(NullText),
                io.Conditioning.Input(
                    "source",
                    optional=True,
                    tooltip="Prompt of the inversion, only needed for one that was loaded from a file.",
                ),
                io.Boolean.Input(
                    "save_unfinished",
                    default=True,
                    optional=True,
                    tooltip="When stopped, save the steps that are done as a file in output/retrace. Load it with "
                    "LoadInversion and connect it here to go on.",
                ),
            ],
            outputs=[
                InversionType.Output(
                    display_name="inversion",
                    tooltip="The inversion with its embeddings, for Resample, InversionSampler and SaveInversion.",
                ),
                io.Image.Output(display_name="plot", tooltip="Loss of every step, before and after the fit."),
                io.String.Output(display_name="report", tooltip="Losses, updates and cost as text."),
            ],
            shows_text=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: LinkedInversion,
        negative: Any,
        cfg: float,
        inner_steps: int,
        learning_rate: float,
        stop: float,
        stop_growth: float,
        source: Any = None,
        save_unfinished: bool = True,
    ) -> io.NodeOutput:
        """Fit the embeddings."""
        settings = NullText(cfg, inner_steps, learning_rate, stop, stop_growth)
        reports: list[_Line] = []

        def told(report: FitReport) -> None:
            reports.append(_Line(report))
            cls.show(f"step {report.index + 1} of {report.total}, {reports[-1].losses}")

        inversion = run_null_text(
            model, inversion.with_conditioning(source, None), negative, settings, save_unfinished, told
        )
        text = _describe(inversion, settings, reports)
        plot: torch.Tensor = loss_plot([line.sigma for line in reports], *_columns(reports))
        return io.NodeOutput(inversion, plot, text, ui=ui.PreviewText(text))


class _Line:
    """What is shown of a step; the tensors of its report are let go."""

    def __init__(self, report: FitReport) -> None:
        self.sigma = report.sigma
        self.before = sum(report.first_loss) / len(report.first_loss)
        self.after = sum(report.loss) / len(report.loss)
        self.updates = report.inner_steps

    @property
    def losses(self) -> str:
        """The losses in words."""
        if self.updates == 0:
            return f"loss {self.after:.3e} (found before)"
        return f"loss {self.before:.3e} -> {self.after:.3e} in {self.updates} updates"


def _columns(lines: list[_Line]) -> tuple[list[float], list[float]]:
    return [line.before for line in lines], [line.after for line in lines]


def _describe(inversion: LinkedInversion, settings: NullText, lines: list[_Line]) -> str:
    meta = inversion.meta
    before, after = _columns(lines)
    return "\n".join(
        [
            f"null-text at cfg {settings.cfg:g}: {len(lines)} steps, {sum(line.updates for line in lines)} updates",
            f"mean loss: {sum(before) / len(before):.3e} -> {sum(after) / len(after):.3e}",
            f"model calls: {meta['null_text_evaluations']}, {meta['null_text_seconds']:.1f} s",
            "loss by step, from noise to clean:",
            *(f"  sigma {line.sigma:8.4f}  {line.losses}" for line in lines),
        ]
    )
