"""What every node that inverts has in common: its inputs and outputs, its refusals, and its run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from ...inversion import Method, get_method
from ..host.compat import declare
from ..host.latents import out_of_model
from ..host.parametrisation import PURE_NOISE
from ..host.schedule import check_steps, check_strength, falling_tensor
from ..host.session import Branch
from .link import InversionType, LinkedInversion
from .recorded_noise import RecordedNoise
from .runs import climb_of, run_invert

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
        *choice,
        declare(
            io.Float.Input,
            "cfg",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip=guidance,
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
        *([_keep_path_input()] if path else []),
        *settings,
    ]


def _keep_path_input() -> Any:
    return declare(
        io.Boolean.Input,
        "keep_path",
        default=False,
        optional=True,
        tooltip="Record the state of every step: masked edits blend with it and the report shows the error "
        "of each step. Takes the size of the latent in double precision once a step.",
    )


def inversion_output() -> Any:
    """Return the output that carries everything."""
    return declare(
        InversionType.Output,
        display_name="inversion",
        tooltip="The whole inversion in full precision, for Resample, InversionSampler, SaveInversion and "
        "InversionReport.",
    )


def latent_output() -> Any:
    """Return the output for stock samplers."""
    return declare(
        io.Latent.Output,
        display_name="latent",
        tooltip="For stock samplers, together with noise. Where a latent can carry the inverted state it "
        "is that state; for flow at full strength or with a noise mask it is the source.",
    )


def noise_output() -> Any:
    """Return the output for SamplerCustomAdvanced."""
    return declare(
        io.Noise.Output,
        display_name="noise",
        tooltip="For SamplerCustomAdvanced: the noise with which a stock sampler starts exactly at the "
        "inverted state, from the latent beside it or from the source latent.",
    )


def sigmas_output() -> Any:
    """Return the output with the levels of the way down."""
    return declare(
        io.Sigmas.Output,
        display_name="sigmas",
        tooltip="Noise levels of the way down, from where the inversion stopped to 0.",
    )


def refusal(steps: int | None, strength: float | None, method: str | None = None, **settings: Any) -> bool | str:
    """Say before anything runs what can be seen on the widgets.

    Args:
        steps: Value of the widget; None comes over a link and is checked when the node runs.
        strength: As steps.
        method: The node's method, if it is one.
        settings: Settings of that method, None as for steps.

    Returns:
        True, or a sentence for the host to show.
    """
    try:
        if steps is not None:
            check_steps(steps)
        if strength is not None:
            check_strength(strength)
        if method is not None:
            get_method(method, {name: value for name, value in settings.items() if value is not None})
    except (ValueError, TypeError) as error:
        return str(error)
    return True


def climb(
    model: Any,
    source: Any,
    latent: dict[str, Any],
    steps: int,
    scheduler: str,
    method: Method,
    cfg: float,
    strength: float,
    negative: Any,
    sigmas: torch.Tensor | None,
    keep_path: bool,
) -> LinkedInversion:
    """Invert with the values of `invert_inputs`.

    Returns:
        The inversion.

    Raises:
        ValueError: If a value does not fit.
    """
    climb = climb_of(model, steps, scheduler, strength, method, sigmas, keep_path)
    return run_invert(model, Branch(source, negative, cfg), latent, climb)


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
