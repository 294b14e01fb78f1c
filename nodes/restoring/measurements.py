"""ApplyDamage, MeasureNoise, SnapToMeasurement and RestoreReport."""

from __future__ import annotations

import math

import comfy.model_management
import torch
from comfy_api.latest import io, ui

from ...restoration import GREY_LEVELS, NOISE_FLOOR, Measurement
from ...restoration.noise_deviation import noise_deviation
from ...restoration.operators import Damage
from ...restoration.snap import snap
from ..host.inputs import seed_input
from ..host.node import Node
from ..host.progress import progress
from .damaged_pictures import damaged_pixels, image_of, per_sample, pixels_of
from .restore_inputs import OperatorType, check_noise, damaged_input, noise_input, operator_input

# A residual of so many deviations is white or black in the picture of it.
_SHOWN_DEVIATIONS = 3.0
# What smoothing along the motion holds for each pixel of a clip: 470 bytes were measured.
_FOLLOWED_BYTES = 500


def measurement_of(
    image: torch.Tensor, damage: Damage, damaged: torch.Tensor, noise: float
) -> tuple[Measurement, torch.Tensor]:
    """Return the measurement of a restored IMAGE, and its pictures in [-1, 1].

    Raises:
        ValueError: If sizes do not fit, or the noise is below the floor.
    """
    pixels = pixels_of(image)
    operator = damage.on(pixels.shape[-2], pixels.shape[-1], pixels.shape[0])
    y = per_sample(damaged_pixels(damaged, operator), operator, tuple(pixels.shape[:1]), damage)
    return Measurement(operator, y, noise / GREY_LEVELS), pixels


class ApplyDamage(Node):
    """Damages a picture, to try a restoration on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Apply Damage",
            "Damages a picture as an operator says, with noise: to see what the operator does, and to "
            "try a restoration on a picture whose truth is known.",
            aliases=["degrade", "simulate damage", "forward operator"],
            inputs=[
                io.Image.Input("image", tooltip="The whole picture, or the frames of a clip."),
                operator_input(),
                io.Float.Input(
                    "noise",
                    default=0.0,
                    min=0.0,
                    max=255.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Noise to add, standard deviation in grey levels of 255.",
                ),
                seed_input("Seed of the noise."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="damaged",
                    tooltip="The damaged picture. What is missing is grey; noise may leave 0 to 1, which saving clips.",
                )
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, operator: Damage, noise: float, seed: int) -> io.NodeOutput:
        """Damage the picture."""
        pixels = pixels_of(image)
        on = operator.on(pixels.shape[-2], pixels.shape[-1], pixels.shape[0])
        damaged = on.forward(pixels)
        if noise > 0.0:
            drawn = torch.randn(damaged.shape, generator=torch.Generator().manual_seed(seed))
            damaged = on.seen(damaged + noise / GREY_LEVELS * drawn)
        return io.NodeOutput(image_of(damaged))


class MeasureNoise(Node):
    """Measures the noise of a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Measure Noise",
            "Measures how noisy a picture is, from its finest details, for the noise input of a restore "
            "sampler. Donoho and Johnstone 1994.",
            aliases=["noise level", "grain", "estimate sigma"],
            inputs=[
                io.Image.Input("image", tooltip="The damaged picture."),
                OperatorType.Input(
                    "operator", optional=True, tooltip="How it was damaged, so that a missing area does not count."
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="noise",
                    tooltip="Standard deviation in grey levels of 255, at least 1.28. Too low for a JPEG or a picture "
                    "that was smoothed.",
                )
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, operator: Damage | None = None) -> io.NodeOutput:
        """Measure."""
        pixels = pixels_of(image)
        seen = None
        if operator is not None and operator.keeps_size and not operator.over_time:
            on = operator.on(pixels.shape[-2], pixels.shape[-1], pixels.shape[0])
            seen = on.seen(torch.ones(pixels.shape[0], *on.out_shape)) > 0
        # Rounded up, so that the number passes where the floor is checked.
        lowest = math.ceil(100.0 * GREY_LEVELS * NOISE_FLOOR) / 100.0
        return io.NodeOutput(max(lowest, GREY_LEVELS * noise_deviation(pixels, seen)))


class SnapToMeasurement(Node):
    """Draws a restored picture onto the photo once more, in pixels."""

    RULES = (check_noise,)

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Snap to Measurement",
            "Draws a restored picture onto what the photo shows, in pixels: what the VAE has lost comes "
            "back where the photo has it, and the photo's noise does not. A JPEG to which nothing else happened then "
            "saves to the same file again. Takes the flicker out of clips.",
            aliases=["data consistency", "paste original pixels", "back projection", "deflicker"],
            inputs=[
                io.Image.Input("image", tooltip="The restored picture, or the frames of a restored clip."),
                operator_input(),
                damaged_input(),
                noise_input(),
                io.Float.Input(
                    "temporal_smoothing",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    round=0.001,
                    optional=True,
                    tooltip="For clips: differences between frames below about this many times the photo's noise are "
                    "taken for noise and held still; what moves keeps its edges. 1 to 2 are usual. All pictures of "
                    "the batch are then one clip.",
                ),
                io.Boolean.Input(
                    "follow_motion",
                    default=False,
                    optional=True,
                    tooltip="For clips in which things move, with temporal_smoothing above 0: find where things go "
                    "between frames, smooth along their way and sharpen their edges. Texture finer than the noise "
                    "is flattened. Slow: minutes for a frame of a megapixel.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The picture, nearer to the photo the farther it was off; hardly moved where it fits.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        operator: Damage,
        damaged: torch.Tensor,
        noise: float,
        temporal_smoothing: float = 0.0,
        follow_motion: bool = False,
    ) -> io.NodeOutput:
        """Draw the picture onto the photo."""
        measurement, pixels = measurement_of(image, operator, damaged, noise)
        # To follow what moves takes seconds a frame on a processor; the rest is a solve.
        device = torch.device("cpu")
        if follow_motion and temporal_smoothing > 0.0:
            device = comfy.model_management.get_torch_device()
            comfy.model_management.free_memory(_FOLLOWED_BYTES * pixels[:, 0].numel(), device)
        snapped = snap(measurement, pixels.to(device), temporal_smoothing, follow_motion, progress()).cpu()
        return io.NodeOutput(image_of(snapped).clamp(0.0, 1.0))


class RestoreReport(Node):
    """Says how well a restored picture explains the photo."""

    RULES = (check_noise,)

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Restore Report",
            "Damages the restored picture again and compares it with the photo: about 1 and below is a "
            "picture that explains it.",
            aliases=["chi2", "residual", "data consistency"],
            inputs=[
                io.Image.Input("image", tooltip="The restored picture."),
                operator_input(),
                damaged_input(),
                noise_input(),
            ],
            outputs=[
                io.Float.Output(
                    display_name="chi2",
                    tooltip="Squared difference to the photo over that of its noise: near 1 is good, above 2 the photo "
                    "is not explained, below 0.05 its noise was restored too.",
                ),
                io.Image.Output(
                    display_name="residual",
                    tooltip="The difference: grey is none, black and white are three deviations of the noise.",
                ),
                io.String.Output(display_name="report", tooltip="The same in words."),
            ],
            is_output=True,
        )

    @classmethod
    def execute(cls, image: torch.Tensor, operator: Damage, damaged: torch.Tensor, noise: float) -> io.NodeOutput:
        """Compare."""
        measurement, pixels = measurement_of(image, operator, damaged, noise)
        chi2 = measurement.chi2(pixels)
        residual = measurement.residual(pixels) / (_SHOWN_DEVIATIONS * measurement.sigma)
        text = describe(operator, chi2, noise)
        return io.NodeOutput(float(chi2.mean()), image_of(residual.clamp(-1.0, 1.0)), text, ui=ui.PreviewText(text))


def describe(damage: Damage, chi2: torch.Tensor, noise: float) -> str:
    """The report in words."""
    worst = float(chi2.max())
    if worst > 2.0:
        verdict = "The picture does not explain the photo: check the operator, lower noise, or raise trust."
    elif float(chi2.min()) < 0.05:
        verdict = "The photo is met more closely than its noise allows: raise noise, unless it is a JPEG."
    else:
        verdict = "The picture explains the photo within its noise."
    values = ", ".join(f"{float(value):.3g}" for value in chi2.reshape(-1))
    return f"Damage: {damage.label}\nNoise: {noise:g} grey levels of 255\nchi2: {values}\n{verdict}"
