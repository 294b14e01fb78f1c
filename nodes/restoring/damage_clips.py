"""DamageJPEG, DamageFrames and DamageCombine."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...restoration.operators import (
    JPEG,
    AveragedFrames,
    DroppedFrames,
    InterlacedFrames,
    Operator,
    Shape,
    quality_tables,
)
from ..host.compat import declare, schema
from .damage import Damage, OperatorType, combined
from .damages import CATEGORY, operator_output
from .jpeg_files import NO_FILE, list_jpegs, mark_of, read_tables

PATTERNS = ("dropped", "averaged", "interlaced")


class DamageJPEG(io.ComfyNode):
    """The picture was saved as a JPEG."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="DamageJPEG",
            display_name="Damage: JPEG (Retrace)",
            category=CATEGORY,
            description="Says that the picture was saved as a JPEG. What is restored saves to the same JPEG again.",
            search_aliases=["JPEG artifacts", "compression artifacts", "deblock"],
            inputs=[
                declare(
                    io.Combo.Input,
                    "file",
                    options=[NO_FILE, *list_jpegs()],
                    default=NO_FILE,
                    tooltip="A JPEG of the input folder whose tables are taken, best the photo itself. Otherwise the "
                    "two inputs below say how it was saved.",
                ),
                declare(
                    io.Int.Input,
                    "quality",
                    default=10,
                    min=1,
                    max=100,
                    step=1,
                    tooltip="Quality at which it was saved, as most programs count.",
                ),
                declare(
                    io.Boolean.Input,
                    "half_colour",
                    default=True,
                    tooltip="Whether colour was kept at half resolution (4:2:0), as most programs do.",
                ),
            ],
            outputs=[operator_output()],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """Accept a file that came after the list was made; None stands for a value that comes over a link."""
        try:
            if file is not None and file != NO_FILE:
                read_tables(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, quality: int, half_colour: bool) -> str:
        """Change when the file does."""
        return f"{mark_of(file)} {quality} {half_colour}"

    @classmethod
    def execute(cls, file: str, quality: int, half_colour: bool) -> io.NodeOutput:
        """Make the operator."""
        tables, half = (quality_tables(quality), half_colour) if file == NO_FILE else read_tables(file)
        label = f"JPEG of quality {quality}" if file == NO_FILE else f"JPEG as {file}"

        def build(shape: Shape) -> Operator:
            return JPEG(shape, tables, half)

        return io.NodeOutput(Damage(label, build))


class DamageFrames(io.ComfyNode):
    """Something happened to a clip along time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="DamageFrames",
            display_name="Damage: Frames (Retrace)",
            category=CATEGORY,
            description="Says what happened to a clip along time: frames were dropped, averaged by a long shutter, or "
            "interlaced. All frames of the batch are then restored together.",
            search_aliases=["frame interpolation operator", "deinterlace", "shutter"],
            inputs=[
                declare(
                    io.Combo.Input,
                    "pattern",
                    options=list(PATTERNS),
                    default="dropped",
                    tooltip="dropped: one frame in `every` is left. averaged: each `every` frames became one. "
                    "interlaced: even frames hold the even rows and odd frames the odd rows, at half the height.",
                ),
                declare(
                    io.Int.Input,
                    "every",
                    default=2,
                    min=1,
                    max=64,
                    step=1,
                    tooltip="dropped and averaged: how many frames became one. The restored clip has that many times "
                    "the frames.",
                ),
                declare(
                    OperatorType.Input,
                    "operator",
                    optional=True,
                    tooltip="What happened to each frame by itself before that, for example low resolution.",
                ),
            ],
            outputs=[operator_output()],
        )

    @classmethod
    def execute(cls, pattern: str, every: int, operator: Damage | None = None) -> io.NodeOutput:
        """Make the operator."""
        if pattern == "interlaced":
            frames = Damage("interlaced", InterlacedFrames, over_time=True, keeps_size=False)
        elif pattern == "dropped":
            frames = Damage(f"one frame in {every} kept", lambda s: DroppedFrames(s, every), over_time=True)
        else:
            frames = Damage(f"{every} frames averaged", lambda s: AveragedFrames(s, every), over_time=True)
        return io.NodeOutput(frames if operator is None else combined([operator, frames]))


class DamageCombine(io.ComfyNode):
    """Several damages, one after the other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        further: list[Any] = [
            declare(OperatorType.Input, name, optional=True, tooltip=f"What happened {when}.")
            for name, when in (("third", "after that"), ("fourth", "last"))
        ]
        return schema(
            node_id="DamageCombine",
            display_name="Damage: Combine (Retrace)",
            category=CATEGORY,
            description="Puts damages together in the order in which they happened, for example blur, then low "
            "resolution, then JPEG.",
            search_aliases=["compose operators", "chain damages"],
            inputs=[
                declare(OperatorType.Input, "first", tooltip="What happened first."),
                declare(OperatorType.Input, "second", tooltip="What happened then. JPEG must be the last of all."),
                *further,
            ],
            outputs=[operator_output()],
        )

    @classmethod
    def execute(
        cls, first: Damage, second: Damage, third: Damage | None = None, fourth: Damage | None = None
    ) -> io.NodeOutput:
        """Make the operator."""
        return io.NodeOutput(combined([damage for damage in (first, second, third, fourth) if damage is not None]))
