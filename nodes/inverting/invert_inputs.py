"""What every node that inverts has in common: its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..host.inputs import schedule_inputs, sigmas_input, strength_input
from ..host.latents import out_of_model
from ..host.parametrisation import PURE_NOISE
from ..host.schedule import falling_tensor
from .link import InversionType, LinkedInversion
from .recorded_noise import RecordedNoise

GUIDANCE = "Guidance while climbing. 1 is right for most pictures; above it the noise gets worse."


def invert_inputs(
    choice: Sequence[Any], settings: Sequence[Any], guidance: str = GUIDANCE, path: bool = True
) -> list[Any]:
    """Return the inputs of a node that inverts.

    Args:
        choice: Inputs that choose the method, behind the scheduler; none where the node is one method.
        settings: Optional inputs of the method or methods. They come last, where newer ones can join them without
            shifting the values of saved workflows, which are kept by position.
        guidance: What cfg means to the method.
        path: Whether the path is kept on demand; not where the method keeps it anyway.

    Returns:
        Inputs of a schema.
    """
    return [
        io.Model.Input("model", tooltip="Model to invert with. It is not changed."),
        io.Conditioning.Input(
            "source", tooltip="Prompt that describes the picture as it is. An empty prompt works too."
        ),
        io.Latent.Input(
            "latent", tooltip="The picture or clip, encoded by the model's VAE. A noise mask is not used here."
        ),
        *schedule_inputs(20, "normal", "More steps reconstruct more accurately."),
        *choice,
        io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=guidance),
        strength_input("How far to climb: 1 to pure noise for free edits, 0.6 keeps the layout."),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="Negative prompt. Needed when cfg is not 1, unused when it is."
        ),
        sigmas_input(),
        *([_keep_path_input()] if path else []),
        *settings,
    ]


def _keep_path_input() -> Any:
    return io.Boolean.Input(
        "keep_path",
        default=False,
        optional=True,
        tooltip="Record the state of every step: masked edits blend with it and the report shows the error "
        "of each step. Takes the size of the latent in double precision once a step.",
    )


def inversion_output() -> Any:
    """Return the output that carries everything."""
    return InversionType.Output(
        display_name="inversion",
        tooltip="The whole inversion in full precision, for Resample, InversionSampler, SaveInversion and "
        "InversionReport.",
    )


def latent_output() -> Any:
    """Return the output for stock samplers."""
    return io.Latent.Output(
        display_name="latent",
        tooltip="For stock samplers, together with noise. Where a latent can carry the inverted state it "
        "is that state; for flow at full strength or with a noise mask it is the source.",
    )


def noise_output() -> Any:
    """Return the output for SamplerCustomAdvanced."""
    return io.Noise.Output(
        display_name="noise",
        tooltip="For SamplerCustomAdvanced: the noise with which a stock sampler starts exactly at the "
        "inverted state, from the latent beside it or from the source latent.",
    )


def sigmas_output() -> Any:
    """Return the output with the levels of the way down."""
    return io.Sigmas.Output(
        display_name="sigmas", tooltip="Noise levels of the way down, from where the inversion stopped to 0."
    )


def single_state_outputs(model: Any, inversion: LinkedInversion) -> tuple[Any, ...]:
    """Return INVERSION, LATENT, NOISE and SIGMAS of an inversion whose one state fits them all."""
    return (
        inversion,
        carrier_latent(model, inversion),
        RecordedNoise(model, inversion.x, inversion.sigma),
        falling_tensor(inversion),
    )


def carrier_latent(model: Any, inversion: LinkedInversion) -> dict[str, Any]:
    """Return the LATENT from which stock samplers reach the inverted state.

    It is the state itself where a latent can carry it, for DisableNoise. It is the source where none can (flow at
    sigma 1) or where a noise_mask needs the source; then the NOISE carries the state. With that NOISE, both do.

    Args:
        model: The MODEL of the inversion.
        inversion: The inversion.

    Returns:
        A LATENT with the source's other entries.
    """
    source = inversion.samples
    assert source is not None
    flow = inversion.space == "flow"
    if "noise_mask" in inversion.extras or (flow and inversion.sigma > PURE_NOISE):
        return {**inversion.extras, "samples": source}
    state = inversion.x / (1.0 - inversion.sigma) if flow else inversion.x
    return {**inversion.extras, "samples": out_of_model(model, state, torch.float32)}
