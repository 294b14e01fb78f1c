"""NegativePromptInversion: an edit at high guidance with nothing to fit."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...inversion import NegativePrompt
from ..host.inputs import mask_inputs, setting_inputs
from ..host.masks import EditArea
from ..host.node import Node
from .link import InversionType, LinkedInversion
from .negative_prompt_run import run_negative_prompt

UNIT = {"min": 0.0, "max": 1.0, "step": 0.05, "round": 0.001}


class NegativePromptInversion(Node):
    """Plays an inversion back with its source prompt as the negative."""

    RULES = (lambda prox, pull: NegativePrompt(prox=prox, pull=pull),)

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Negative-Prompt Inversion",
            "Edits an inversion at high cfg with the source prompt as the negative: what source and target "
            "share cancels, with nothing to fit (NPI). Proximal guidance holds small changes back (ProxNPI). "
            "Miyake et al. 2023, arXiv:2305.16807; Han et al. 2023, arXiv:2306.05414.",
            aliases=["NPI", "ProxNPI", "proximal guidance", "negative prompt inversion"],
            inputs=[
                io.Model.Input("model", tooltip="The model that made the inversion. It is not changed."),
                InversionType.Input("inversion", tooltip="From Invert or LoadInversion, made at cfg 1."),
                io.Conditioning.Input("target", tooltip="Prompt of the edit. That of the source comes back."),
                *setting_inputs(NegativePrompt, "cfg", "prox", "quantile", "pull"),
                *setting_inputs(NegativePrompt, "pull_steps", "dilate", optional=True),
                io.Float.Input(
                    "interp",
                    default=1.0,
                    **UNIT,
                    optional=True,
                    tooltip="1 takes the source prompt as the negative, 0 the negative itself, between them a mixture. "
                    "Lower edits more and keeps less.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt, needed when interp is not 1."
                ),
                io.Conditioning.Input(
                    "source",
                    optional=True,
                    tooltip="Prompt of the inversion, only needed for one that was loaded from a file.",
                ),
                *mask_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The edited latent, in the dtype of the source.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: LinkedInversion,
        target: Any,
        cfg: float,
        prox: str,
        quantile: float,
        pull: float,
        pull_steps: float = 0.4,
        dilate: int = 1,
        interp: float = 1.0,
        negative: Any = None,
        source: Any = None,
        mask: torch.Tensor | None = None,
        feather: int = 0,
    ) -> io.NodeOutput:
        """Play the inversion back."""
        settings = NegativePrompt(cfg, prox, quantile, pull, pull_steps, dilate)
        inversion = inversion.with_conditioning(source, None)
        area = EditArea.of(mask, feather)
        return io.NodeOutput(run_negative_prompt(model, inversion, target, settings, interp, negative, area))
