"""Invert: a picture or clip into a model's noise."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from .host.bundle import Bundle, InversionType
from .host.compat import declare, schema
from .host.grid import check_steps, check_strength, falling_tensor, read_sigmas, rising_sigmas
from .host.latents import out_of_model
from .host.method_inputs import chosen_method, method_names, parameter_inputs
from .host.noise import RecordedNoise
from .host.parametrisation import PURE_NOISE
from .host.runs import run_invert


def carrier_latent(model: Any, bundle: Bundle) -> dict[str, Any]:
    """Return the LATENT from which stock samplers reach the inverted state.

    It is the state itself where a latent can carry it, for DisableNoise. It is the source where none can (flow at
    sigma 1) or where a noise_mask needs the source; then the NOISE carries the state. With that NOISE, both do.

    Args:
        model: The MODEL of the inversion.
        bundle: The inversion.

    Returns:
        A LATENT with the source's other entries.
    """
    record, source = bundle.record, bundle.samples
    assert source is not None
    flow = record.space == "flow"
    if "noise_mask" in bundle.extras or (flow and record.sigma > PURE_NOISE):
        return {**bundle.extras, "samples": source}
    state = record.x / (1.0 - record.sigma) if flow else record.x
    return {**bundle.extras, "samples": out_of_model(model, state, torch.float32)}


class Invert(io.ComfyNode):
    """Carries a latent up the model's noise levels, so that sampling from there comes back to it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="Invert",
            display_name="Invert (Retrace)",
            category="Retrace/inversion",
            description="Takes a picture or clip into the model's noise, to be reconstructed and edited from there.",
            search_aliases=["inversion", "unsampler", "DDIM inversion", "RF inversion", "noise a real image"],
            inputs=[
                declare(io.Model.Input, "model", tooltip="Model to invert with. It is not changed."),
                declare(
                    io.Conditioning.Input,
                    "source",
                    tooltip="Prompt that describes the picture as it is. An empty prompt works too.",
                ),
                declare(
                    io.Latent.Input,
                    "latent",
                    tooltip="The picture or clip, encoded by the model's VAE. A noise mask is not used here.",
                ),
                declare(
                    io.Int.Input,
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    step=1,
                    tooltip="Steps of the whole schedule, at least 2. More steps reconstruct more accurately.",
                ),
                declare(
                    io.Combo.Input,
                    "scheduler",
                    options=list(comfy.samplers.SCHEDULER_NAMES),
                    default="normal",
                    tooltip="How the noise levels are spaced. The way down uses the same levels.",
                ),
                declare(
                    io.Combo.Input,
                    "method",
                    options=method_names(),
                    default="midpoint",
                    tooltip="How to climb. midpoint (RF-Solver) is accurate at two model calls a step, fireflow at "
                    "one; euler and ddim are the plain first-order ways; edict, bdia and belm come back exactly.",
                ),
                declare(
                    io.Float.Input,
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance while climbing. 1 is right for most pictures; above it the noise gets worse.",
                ),
                declare(
                    io.Float.Input,
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far to climb: 1 to pure noise for free edits, 0.6 keeps the layout. Must be above 0.",
                ),
                declare(
                    io.Conditioning.Input,
                    "negative",
                    optional=True,
                    tooltip="Negative prompt. Needed when cfg is not 1, unused when it is.",
                ),
                declare(
                    io.Sigmas.Input,
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels to use instead of steps and scheduler, rising or falling, all the way to 0.",
                ),
                declare(
                    io.Boolean.Input,
                    "keep_path",
                    default=False,
                    optional=True,
                    tooltip="Record the state of every step: masked edits blend with it and the report shows the error "
                    "of each step. Takes the size of the latent once a step.",
                ),
                *parameter_inputs(),
            ],
            outputs=[
                declare(
                    InversionType.Output,
                    display_name="inversion",
                    tooltip="The whole inversion in full precision, for Resample, InversionSampler, SaveInversion and "
                    "InversionReport.",
                ),
                declare(
                    io.Latent.Output,
                    display_name="latent",
                    tooltip="For stock samplers, together with noise. Where a latent can carry the inverted state it "
                    "is that state; for flow at full strength or with a noise mask it is the source.",
                ),
                declare(
                    io.Noise.Output,
                    display_name="noise",
                    tooltip="For SamplerCustomAdvanced: the noise with which a stock sampler starts exactly at the "
                    "inverted state, from the latent beside it or from the source latent.",
                ),
                declare(
                    io.Sigmas.Output,
                    display_name="sigmas",
                    tooltip="Noise levels of the way down, from where the inversion stopped to 0.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, steps: int | None = None, strength: float | None = None) -> bool | str:
        """Refuse before anything runs what can be seen on the widgets."""
        try:
            # None: the value comes over a link and is checked when the node runs.
            if steps is not None:
                check_steps(steps)
            if strength is not None:
                check_strength(strength)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        source: Any,
        latent: dict[str, Any],
        steps: int,
        scheduler: str,
        method: str,
        cfg: float,
        strength: float,
        negative: Any = None,
        sigmas: torch.Tensor | None = None,
        keep_path: bool = False,
        **settings: Any,
    ) -> io.NodeOutput:
        """Invert; ``settings`` are the inputs made from the methods' own parameters."""
        check_strength(strength)
        levels = rising_sigmas(model, scheduler, steps) if sigmas is None else read_sigmas(sigmas)
        chosen = chosen_method(method, settings)
        bundle = run_invert(model, source, latent, levels, strength, chosen, cfg, negative, keep_path)
        record = bundle.record
        return io.NodeOutput(
            bundle,
            carrier_latent(model, bundle),
            RecordedNoise(model, record.x, record.sigma),
            falling_tensor(record),
        )
