"""AttentionGuider: source and target as one GUIDER."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...attention import AttentionPlan
from ..host.checks import check_cfg, refuse_skipping
from ..host.node import Node
from ..host.session import Branch
from ..inverting.link import InversionType, LinkedInversion
from ..inverting.runs import check_model_fits
from .guider_run import SourceBesideTarget
from .plan_link import attention_input


class AttentionGuider(Node):
    """Lets a target read from a source in SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Attention Guider",
            "A guider for SamplerCustomAdvanced under which the target reads attention from a source: "
            "from an inversion, or from a picture that is generated beside it from the same noise.",
            aliases=["MasaCtrl", "plug-and-play", "reference attention", "SamplerCustomAdvanced attention"],
            inputs=[
                io.Model.Input("model", tooltip="Model to sample with. It is not changed."),
                io.Conditioning.Input(
                    "source",
                    tooltip="Prompt of the source: the one it was inverted with, or the one to generate it from.",
                ),
                io.Conditioning.Input("target", tooltip="Prompt of the picture that is wanted."),
                attention_input("What the target reads from the source.", optional=False),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance of the target, and of a source that is generated. Needs a negative unless it "
                    "is 1.",
                ),
                io.Boolean.Input(
                    "both",
                    default=False,
                    tooltip="Put the generated source in front of the result. Not with an inversion.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="Negative prompt. Needed when cfg is not 1."),
                InversionType.Input(
                    "inversion",
                    optional=True,
                    tooltip="Inversion of the source, best with keep_path. Sample from its LATENT, NOISE and SIGMAS, "
                    "or with InversionSampler. Left out, the source is generated from the same noise.",
                ),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        source: Any,
        target: Any,
        attention: AttentionPlan,
        cfg: float,
        both: bool,
        negative: Any = None,
        inversion: LinkedInversion | None = None,
    ) -> io.NodeOutput:
        """Make the guider."""
        refuse_skipping(model)
        check_cfg(cfg, negative)
        if attention.latent_rules:
            raise ValueError(
                "attention must hold no local blend for a sampler of the host, got one; edit with Resample, or give "
                "the plan to RFSolverSample or InversionSampler."
            )
        if inversion is not None:
            if attention.source == "free":
                raise ValueError(
                    "attention must have its source pinned with an inversion, got free; set source to pinned, or leave "
                    "the inversion out to generate the source beside the target."
                )
            check_model_fits(model, inversion)
            if both:
                raise ValueError(
                    "both must be off with an inversion, got on; the source of an inversion is known already."
                )
        sides = (Branch(source, negative, cfg), Branch(target, negative, cfg))
        return io.NodeOutput(SourceBesideTarget(model, *sides, attention, inversion, both))
