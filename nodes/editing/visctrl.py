"""VisCtrl: what a reference looks like, carried into a target in passes."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from ..attending.resolvers import resolver_for
from ..host.checks import refuse_skipping
from ..host.compat import ADVANCED
from ..host.compiled import refuse_compiled_model
from ..host.inputs import feather_input, seed_input
from ..host.latents import keep_outside, source_samples
from ..host.masks import on_latent_grid
from ..host.node import Node
from ..inverting.runs import extras_of
from .reference_passes import Pass, Subject, check_pass, layers_from, run_passes
from .visctrl_crop import on_latents, on_pictures, weights_of

CROPS = ("none", "latent", "pixels")
METHODS = ("ddim", "euler", "midpoint", "fireflow")


class VisCtrl(Node):
    """Lets a target read from references inside attention, pass after pass."""

    RULES = (
        lambda steps, start_step: check_pass(Pass(steps, start_step, 1.0), None, ""),
        lambda later_steps, later_start_step: check_pass(Pass(later_steps, later_start_step, 1.0), None, "later_"),
        lambda layers: layers_from(0, layers),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "VisCtrl",
            "Carries what a reference picture shows into a target picture: in each of a few passes both "
            "are inverted, and on the way back the target's self-attention reads the reference's. No training. "
            "Li et al. 2024, arXiv:2406.06258.",
            aliases=["visual customization", "reference attention", "subject transfer", "cross-image attention"],
            inputs=[*_subjects(), *_passes(), *_rest()],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The edited target. Outside the mask it equals the target bit for bit.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        reference_prompt: Any,
        target_prompt: Any,
        reference: dict[str, Any],
        target: dict[str, Any],
        passes: int,
        steps: int,
        start_step: int,
        cfg: float,
        later_steps: int,
        later_start_step: int,
        later_cfg: float,
        start_layer: int,
        method: str,
        scheduler: str,
        alpha: float,
        seed: int,
        crop: str,
        negative: Any = None,
        mask: torch.Tensor | None = None,
        reference_mask: torch.Tensor | None = None,
        feather: int = 0,
        vae: Any = None,
        crop_size: int = 512,
        white_background: bool = True,
        layers: str = "",
    ) -> io.NodeOutput:
        """Run the passes."""
        refuse_skipping(model)
        refuse_compiled_model(model)
        resolver_for(model.model.diffusion_model)
        plan = [Pass(steps, start_step, cfg), *[Pass(later_steps, later_start_step, later_cfg)] * (passes - 1)]
        for each, which in zip(plan, ("", *["later_"] * (passes - 1)), strict=True):
            check_pass(each, negative, which)
        where = layers_from(start_layer, layers)
        subject = Subject(model, reference_prompt, target_prompt, negative, method, scheduler, where, alpha, seed)
        sources, samples = source_samples(model, reference, "reference"), source_samples(model, target, "target")
        grid = None if mask is None else on_latent_grid(mask, samples.shape, feather)
        rows = [int(row) for row in target.get("batch_index", range(samples.shape[0]))]

        def edit(one: Any, other: Any, seen: Any, open_to: Any) -> torch.Tensor:
            return run_passes(subject, one, other, plan, rows, seen, open_to)

        if crop == "pixels":
            edited = on_pictures(edit, vae, sources, samples, reference_mask, mask, crop_size, white_background)
        elif crop == "latent":
            edited = on_latents(edit, sources, samples, reference_mask, mask)
        else:
            edited = edit(sources, samples, weights_of(reference_mask, sources), weights_of(mask, samples))
        if grid is not None:
            edited = keep_outside(grid, torch.lerp(samples.double(), edited.double(), grid).to(samples.dtype), samples)
        return io.NodeOutput({**extras_of(target), "samples": edited})


def _subjects() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="Model to edit with. It is not changed."),
        io.Conditioning.Input("reference_prompt", tooltip="Prompt that describes the references."),
        io.Conditioning.Input(
            "target_prompt", tooltip="Prompt of the target as it should become. Naming what both show is enough."
        ),
        io.Latent.Input(
            "reference", tooltip="One or several pictures of what is to be carried over, encoded by the model's VAE."
        ),
        io.Latent.Input(
            "target",
            tooltip="The picture, the pictures or the clip to edit, encoded by the model's VAE. A noise mask is not "
            "used here; connect mask.",
        ),
    ]


def _passes() -> list[Any]:
    inputs = [
        io.Int.Input(
            "passes",
            default=3,
            min=1,
            max=32,
            step=1,
            tooltip="How often the target is inverted and comes back. More passes come nearer to the reference.",
        )
    ]
    for prefix, which, steps, start, cfg in (("", "the first pass", 10, 2, 6.0), ("later_", "all others", 5, 1, 4.0)):
        inputs += [
            io.Int.Input(
                f"{prefix}steps",
                default=steps,
                min=2,
                max=1000,
                step=1,
                tooltip=f"Steps of {which}, up and down. The authors take {steps}.",
            ),
            io.Int.Input(
                f"{prefix}start_step",
                default=start,
                min=0,
                max=999,
                step=1,
                tooltip=f"Steps of {which} before the target begins to read, which keep its layout. Below the steps.",
            ),
            io.Float.Input(
                f"{prefix}cfg",
                default=cfg,
                min=0.0,
                max=100.0,
                step=0.1,
                round=0.01,
                tooltip=f"Guidance of {which}, up and down. Needs a negative unless it is 1.",
            ),
        ]
    return inputs


def _rest() -> list[Any]:
    return [
        io.Int.Input(
            "start_layer",
            default=1,
            min=0,
            max=999,
            step=1,
            tooltip="First self-attention layer in which the target reads: higher keeps more of its layout. SD1.5 has "
            "16, SDXL 70.",
        ),
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default="ddim",
            tooltip="How both are inverted. midpoint and fireflow are more accurate in few steps.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(comfy.samplers.SCHEDULER_NAMES),
            default="normal",
            tooltip="How the noise levels are spaced.",
        ),
        io.Float.Input(
            "alpha",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="With several references: share of each pass in the noise from which it starts, the rest is that "
            "of the pass before. With one reference it is not used.",
        ),
        seed_input("With several references: seed of which one each picture reads in each pass."),
        io.Combo.Input(
            "crop",
            options=list(CROPS),
            default="none",
            tooltip="none: whole pictures of one size. latent: the parts around both masks, not scaled. pixels: "
            "squares around the masks, scaled to crop_size, as the authors do; needs the VAE.",
        ),
        io.Conditioning.Input("negative", optional=True, tooltip="Negative prompt of all. Needed when a cfg is not 1."),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="White where the target may change. Everything outside ends bit-equal to the target.",
        ),
        io.Mask.Input(
            "reference_mask",
            optional=True,
            tooltip="White on what of the references is read. One for all, or one for each.",
        ),
        feather_input(),
        io.Vae.Input("vae", optional=True, tooltip="The model's VAE, for crop in pixels."),
        io.Int.Input(
            "crop_size",
            default=512,
            min=64,
            max=4096,
            step=16,
            optional=True,
            tooltip="For crop in pixels: side of the squares. The size that the model was trained on is best.",
        ),
        io.Boolean.Input(
            "white_background",
            default=True,
            optional=True,
            tooltip="For crop in pixels: everything outside the masks is white in the passes, as the authors do.",
        ),
        io.String.Input(
            "layers",
            default="",
            optional=True,
            extra_dict=ADVANCED,
            tooltip="Layers in place of start_layer: output:4-11, double:0,17-18, self#10-15, a depth range 0.35-1.0, "
            "or all.",
        ),
    ]
