"""RFEdit: RF-Solver editing whose first steps read the values of the source."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...attention import Settings, get_preset
from ...inversion import get_method, own_method
from ..attending.listing import check_layers
from ..attending.resolvers import resolver_for
from ..host.checks import check_cfg
from ..host.compat import ADVANCED
from ..host.compiled import refuse_compiled_model
from ..host.inputs import mask_inputs, schedule_inputs, sigmas_input, strength_input
from ..host.masks import EditArea
from ..host.node import Node
from ..host.session import Branch
from ..inverting.invert_inputs import inversion_output
from ..inverting.link import InversionType, LinkedInversion, source_samples_of
from ..inverting.runs import Climb, check_model_fits, climb_of, run_invert, run_replay
from .climb_and_keep import GIGABYTE, Keeping, climb_and_keep, describe_beside

OWN = "preset's own"
CACHE, BESIDE = "cache", "beside"
# Layers do not depend on the size; any latent shows which there are.
_ANY_SHAPE = (1, 4, 64, 64)


class RFEdit(Node):
    """Inverts by RF-Solver or FireFlow and edits with the values that the inversion has left."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "RF-Edit",
            "Inverts a picture or clip and edits it, while the first steps read the attention values of "
            "the inversion, so that background and layout stay. For flow models and diffusion models.",
            aliases=["RF-Solver-Edit", "RF-Edit", "FireFlow", "value injection", "video editing"],
            inputs=[
                io.Model.Input("model", tooltip="Model of the edit. It is not changed."),
                io.Conditioning.Input(
                    "source", tooltip="Prompt that describes the picture as it is. An empty prompt works too."
                ),
                io.Conditioning.Input("target", tooltip="Prompt of the edit."),
                *schedule_inputs(25, "simple", "FireFlow does with 8."),
                io.Combo.Input(
                    "method",
                    options=["midpoint", "fireflow"],
                    default="midpoint",
                    tooltip="midpoint is RF-Solver, two model calls a step; fireflow needs one.",
                ),
                io.Int.Input(
                    "inject",
                    default=3,
                    min=0,
                    max=1000,
                    step=1,
                    tooltip="Steps from the noisy end that read from the source: 2 to 5, video 1 to 3. More keeps more "
                    "and follows the prompt less. 0 is plain RF-Solver editing.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance of the edit; needs a negative unless it is 1. Flux and HunyuanVideo have theirs "
                    "in the conditioning: FluxGuidance 1 on the source and 2 on the target.",
                ),
                strength_input("How far to climb: 1 to pure noise as published, 0.6 keeps the layout."),
                io.Combo.Input(
                    "features",
                    options=[CACHE, BESIDE],
                    default=CACHE,
                    tooltip="cache: keep what is read during the inversion. beside: evaluate the source again beside "
                    "the edit, which takes no memory and a few calls more.",
                ),
                io.Boolean.Input(
                    "aligned",
                    default=False,
                    tooltip="Off, as published: the first evaluation of a step reads what was seen one step cleaner. "
                    "On: what was seen at its own level. With beside it always is.",
                ),
                io.Float.Input(
                    "memory",
                    default=8.0,
                    min=0.0,
                    max=1024.0,
                    step=0.5,
                    tooltip="Gigabytes that the cache may take. The size is known after the first of all evaluations, "
                    "and a cache that does not fit ends the run there.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The picture or clip, encoded by the model's VAE. Leave it out with an inversion.",
                ),
                InversionType.Input(
                    "inversion",
                    optional=True,
                    tooltip="An inversion in place of the latent; its steps, method and strength count. The cache "
                    "climbs it once more; beside does not, and is best with keep_path.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt of the edit. Needed when cfg is not 1."
                ),
                *mask_inputs(),
                sigmas_input(),
                io.String.Input(
                    "layers",
                    default="",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Layers that read. Empty for the published ones: single:20-37 on Flux, single:21-39 on "
                    "HunyuanVideo, the later half elsewhere. AttentionSites lists what a model has.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["replace", "add"],
                    default="replace",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="replace the values, or add the source's to them as FireFlow can.",
                ),
                io.Float.Input(
                    "share",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Share of the source in the values, or how much of them is added.",
                ),
                io.Combo.Input(
                    "tokens",
                    options=[OWN, "image", "all"],
                    default=OWN,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Whose values are read on models with joint attention. Own: all on Flux, where prompts "
                    "have one length, the image's elsewhere.",
                ),
                io.Float.Input(
                    "on_device",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.5,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Gigabytes of the cache that may stay on the graphics card; the rest goes to main memory.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The edited latent."),
                inversion_output(),
                io.String.Output(
                    display_name="memory", tooltip="Layers and steps that read, and the size of what was kept for them."
                ),
            ],
            shows_text=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        source: Any,
        target: Any,
        steps: int,
        scheduler: str,
        method: str,
        inject: int,
        cfg: float,
        strength: float,
        features: str,
        aligned: bool,
        memory: float,
        latent: dict[str, Any] | None = None,
        inversion: LinkedInversion | None = None,
        negative: Any = None,
        mask: torch.Tensor | None = None,
        feather: int = 0,
        sigmas: torch.Tensor | None = None,
        layers: str = "",
        mode: str = "replace",
        share: float = 1.0,
        tokens: str = OWN,
        on_device: float = 0.0,
    ) -> io.NodeOutput:
        """Invert, keep and edit."""
        check_cfg(cfg, negative)
        if (latent is None) == (inversion is None):
            raise ValueError(
                f"latent or inversion must be connected, got {'neither' if latent is None else 'both'}; connect one."
            )
        own = inversion
        if inversion is None:
            climb = climb_of(model, steps, scheduler, strength, get_method(method), sigmas, keep_path=True)
            branch = Branch(source, None)
        else:
            own = inversion.with_conditioning(source, None)
            check_model_fits(model, own)
            climb = Climb(own.sigmas, own.index, own_method(own), keep_path=True)
            branch = own.branch("climb an inversion once more")
            latent = {**own.extras, "samples": source_samples_of(model, own)}
        assert latent is not None
        settings = Settings(
            layers=layers,
            start=0.0,
            end=min(1.0, inject / climb.index),
            strength=share,
            group=None if tokens == OWN else tokens,  # type: ignore[arg-type]
            variant=mode,
        )
        refuse_compiled_model(model)
        resolver = resolver_for(model.model.diffusion_model)
        plan = get_preset("rf_edit").build(settings, resolver.family, resolver.preset_layers)
        lines = [check_layers(plan, resolver, _ANY_SHAPE)]
        cache = None
        reads = inject > 0 and share > 0.0
        if reads and features == CACHE:
            if own is not None and own.embeddings:
                raise ValueError(
                    "inversion must have no fitted embeddings to be climbed once more, got one with them; "
                    f"set features to {BESIDE}."
                )
            keeping = Keeping(int(memory * GIGABYTE), int(on_device * GIGABYTE), aligned, cls.show)
            own, cache, sentence = climb_and_keep(model, branch, latent, climb, plan, keeping)
            lines.append(sentence)
        else:
            if own is None:
                own = run_invert(model, branch, latent, climb)
            lines.append(describe_beside(climb, plan, model) if reads else "nothing is read")
            cls.show(lines[-1])
        edited = run_replay(
            model,
            own,
            Branch(target, negative, cfg),
            EditArea.of(mask, feather),
            attention=plan if reads else None,
            cache=cache,
        )
        return io.NodeOutput(edited, own, "\n".join(lines))
