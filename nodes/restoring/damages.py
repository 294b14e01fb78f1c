"""DamageMask, DamageLowResolution, DamageBlur, DamageBlackWhite and DamageNoise: what happened to a picture."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...restoration.operators import (
    EDGES,
    FILTERS,
    REC601,
    REC709,
    BlackWhite,
    Blur,
    GaussianBlur,
    LowResolution,
    Mask,
    Noise,
    Operator,
    Shape,
    motion_kernel,
    picture_kernel,
)
from ..host.compat import declare, schema
from .damage import Damage, OperatorType
from .damaged_pictures import pixels_of

CATEGORY = "Retrace/restoration/damage"
WEIGHTS = {"Rec.601": REC601, "Rec.709": REC709, "mean": (1 / 3, 1 / 3, 1 / 3)}
KINDS = ("gaussian", "motion", "kernel")


def operator_output() -> Any:
    """The OPERATOR of a damage node."""
    return declare(
        OperatorType.Output,
        display_name="operator",
        tooltip="How the picture was damaged: for ApplyDamage, the restore samplers, and DamageCombine.",
    )


class DamageMask(io.ComfyNode):
    """A part of the picture is missing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="DamageMask",
            display_name="Damage: Missing Area (Retrace)",
            category=CATEGORY,
            description="Says that a part of the picture is missing: scratches, holes, text, an object to remove. "
            "What the photo shows there does not count.",
            search_aliases=["inpaint operator", "missing pixels", "scratches"],
            inputs=[
                declare(
                    io.Mask.Input,
                    "mask",
                    tooltip="White where the picture is missing, of the picture's own size. Any grey counts too. "
                    "One mask for all pictures, or one for each.",
                ),
                declare(
                    io.Int.Input,
                    "grow",
                    default=0,
                    min=0,
                    max=256,
                    step=1,
                    tooltip="Pixels by which the missing area is grown, to take in a dirty edge.",
                ),
            ],
            outputs=[operator_output()],
        )

    @classmethod
    def execute(cls, mask: torch.Tensor, grow: int) -> io.NodeOutput:
        """Make the operator."""
        if mask.ndim not in (2, 3) or mask.numel() == 0:
            raise ValueError(f"mask must be a picture or a stack of pictures, got shape {tuple(mask.shape)}; draw one.")
        missing = (mask.detach().to("cpu", torch.float32) > 0).float().reshape(-1, 1, *mask.shape[-2:])
        if grow > 0:
            # Rows, then columns: a square window at once would take as many looks a pixel as it has pixels.
            for reach in ((grow, 0), (0, grow)):
                window = tuple(2 * side + 1 for side in reach)
                missing = torch.nn.functional.max_pool2d(missing, window, stride=1, padding=reach)
        keep = 1.0 - missing

        def build(shape: Shape) -> Operator:
            # A copy: what a node made in inference mode cannot take part in gradients.
            return Mask(shape, keep.clone())

        return io.NodeOutput(Damage("a missing area", build, pictures=keep.shape[0]))


class DamageLowResolution(io.ComfyNode):
    """The picture was scaled down."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="DamageLowResolution",
            display_name="Damage: Low Resolution (Retrace)",
            category=CATEGORY,
            description="Says that the picture was scaled down. The restored picture is larger by the scale.",
            search_aliases=["super resolution operator", "upscale", "downscale"],
            inputs=[
                declare(
                    io.Float.Input,
                    "scale",
                    default=4.0,
                    min=1.0,
                    max=64.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How many times smaller the picture became. Broken factors are exact too.",
                ),
                declare(
                    io.Combo.Input,
                    "filter",
                    options=list(FILTERS),
                    default="bicubic",
                    tooltip="How it was scaled down: bicubic and lanczos as Pillow and most programs do, box takes the "
                    "mean of the pixels that fall together, as a camera's binning does.",
                ),
            ],
            outputs=[operator_output()],
        )

    @classmethod
    def execute(cls, scale: float, filter: str) -> io.NodeOutput:
        """Make the operator."""

        def build(shape: Shape) -> Operator:
            return LowResolution(shape, scale, filter)

        return io.NodeOutput(Damage(f"{scale:g} times smaller ({filter})", build, keeps_size=False))


class DamageBlur(io.ComfyNode):
    """The picture was blurred."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="DamageBlur",
            display_name="Damage: Blur (Retrace)",
            category=CATEGORY,
            description="Says that the picture was blurred: out of focus, by a moving camera, or by any kernel.",
            search_aliases=["deblur operator", "motion blur", "point spread function", "PSF"],
            inputs=[
                declare(
                    io.Combo.Input,
                    "kind",
                    options=list(KINDS),
                    default="gaussian",
                    tooltip="gaussian: soft focus, by radius. motion: a straight move of the camera, by length and "
                    "angle. kernel: the picture connected below.",
                ),
                declare(
                    io.Float.Input,
                    "radius",
                    default=3.0,
                    min=0.1,
                    max=64.0,
                    step=0.1,
                    tooltip="gaussian: its standard deviation in pixels of the restored picture.",
                ),
                declare(
                    io.Float.Input,
                    "length",
                    default=15.0,
                    min=1.0,
                    max=255.0,
                    step=0.5,
                    tooltip="motion: how far the camera moved, in pixels of the restored picture.",
                ),
                declare(
                    io.Float.Input,
                    "angle",
                    default=0.0,
                    min=-180.0,
                    max=180.0,
                    step=1.0,
                    tooltip="motion: its direction in degrees, 0 to the right and 90 upwards.",
                ),
                declare(
                    io.Combo.Input,
                    "edges",
                    options=list(EDGES),
                    default="reflect",
                    tooltip="What lay beyond the edge: reflect mirrors the picture and suits photos, circular wraps it "
                    "around and suits textures.",
                    advanced=True,
                ),
                declare(
                    io.Image.Input,
                    "kernel",
                    optional=True,
                    tooltip="kernel: a small picture of what a single point became, white on black. Even sides lose a "
                    "row or column.",
                ),
            ],
            outputs=[operator_output()],
        )

    @classmethod
    def execute(
        cls, kind: str, radius: float, length: float, angle: float, edges: str, kernel: torch.Tensor | None = None
    ) -> io.NodeOutput:
        """Make the operator."""
        if kind == "gaussian":
            return io.NodeOutput(Damage(f"blur of radius {radius:g}", lambda shape: GaussianBlur(shape, radius, edges)))
        if kind == "motion":
            drawn = motion_kernel(length, angle)
            return io.NodeOutput(Damage(f"motion over {length:g} pixels", lambda shape: Blur(shape, drawn, edges)))
        if kernel is None:
            raise ValueError("kernel must be connected for this kind of blur, got nothing; choose gaussian or motion.")
        given = picture_kernel((pixels_of(kernel, "kernel")[0].mean(dim=0) + 1.0) / 2.0)
        return io.NodeOutput(Damage("blur by a kernel", lambda shape: Blur(shape, given, edges)))


class DamageBlackWhite(io.ComfyNode):
    """The colour is lost."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="DamageBlackWhite",
            display_name="Damage: Black and White (Retrace)",
            category=CATEGORY,
            description="Says that the colour of the picture is lost and its brightness is left.",
            search_aliases=["colourise operator", "colorize", "grayscale"],
            inputs=[
                declare(
                    io.Combo.Input,
                    "weights",
                    options=list(WEIGHTS),
                    default="Rec.601",
                    tooltip="How bright red, green and blue became: Rec.601 as most programs do, Rec.709 as HD video, "
                    "mean for the plain mean.",
                ),
            ],
            outputs=[operator_output()],
        )

    @classmethod
    def execute(cls, weights: str) -> io.NodeOutput:
        """Make the operator."""
        if weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}; choose one of these.")
        return io.NodeOutput(Damage("black and white", lambda shape: BlackWhite(shape, WEIGHTS[weights])))


class DamageNoise(io.ComfyNode):
    """The picture is noisy, and nothing else."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="DamageNoise",
            display_name="Damage: Noise Only (Retrace)",
            category=CATEGORY,
            description="Says that the picture is noisy and has no other damage. How noisy is set at the sampler.",
            search_aliases=["denoise operator", "grain"],
            inputs=[],
            outputs=[operator_output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Make the operator."""
        return io.NodeOutput(Damage("noise", Noise))
