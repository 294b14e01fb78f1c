"""SaveInversion and LoadInversion: inversions as files."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ...inversion import load, save
from ..host.compat import declare, schema
from ..host.files import NOTHING_SAVED, list_saved, new_path, resolve_saved
from .link import InversionType, LinkedInversion


class SaveInversion(io.ComfyNode):
    """Writes an inversion to the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="SaveInversion",
            display_name="Save Inversion (Retrace)",
            category="Retrace/records",
            description="Saves an inversion as one .safetensors file in the output folder, to be edited later or on "
            "another machine. Prompts are not in it.",
            search_aliases=["save inversion", "store noise"],
            is_output_node=True,
            inputs=[
                declare(InversionType.Input, "inversion", tooltip="From Invert."),
                declare(
                    io.String.Input,
                    "filename_prefix",
                    default="retrace/inversion",
                    tooltip="Name of the file, with subfolders of the output folder before it. A number is added.",
                ),
                declare(
                    io.Boolean.Input,
                    "half",
                    default=False,
                    tooltip="Store the states in float16: a quarter of the size, and reconstruction errors of about "
                    "0.0005. The source itself stays exact.",
                ),
            ],
            outputs=[
                declare(
                    io.String.Output,
                    display_name="file",
                    tooltip="Name of the saved file, for the path input of LoadInversion.",
                )
            ],
        )

    @classmethod
    def execute(cls, inversion: LinkedInversion, filename_prefix: str, half: bool) -> io.NodeOutput:
        """Write the file."""
        path, name = new_path(filename_prefix)
        save(inversion, path, half)
        return io.NodeOutput(name, ui=ui.PreviewText(f"Saved {name}, {path.stat().st_size:,} bytes"))


class LoadInversion(io.ComfyNode):
    """Reads an inversion from the output or input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="LoadInversion",
            display_name="Load Inversion (Retrace)",
            category="Retrace/records",
            description="Loads an inversion that SaveInversion wrote. To reconstruct it, give Resample its source "
            "prompt; to edit it, a positive is enough.",
            search_aliases=["load inversion"],
            inputs=[
                declare(
                    io.Combo.Input,
                    "file",
                    options=list_saved() or [NOTHING_SAVED],
                    tooltip="A saved inversion in the output or input folder. Press R to refresh the list.",
                ),
                declare(
                    io.String.Input,
                    "path",
                    optional=True,
                    force_input=True,
                    tooltip="Name from SaveInversion; used instead of the list when connected.",
                ),
            ],
            outputs=[
                declare(
                    InversionType.Output,
                    display_name="inversion",
                    tooltip="The inversion, for Resample, InversionSampler and InversionReport.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None, path: str | None = "") -> bool | str:
        """Refuse a name that stands for no file, in a sentence, before anything runs.

        The host hands None for an input that comes over a link, whose value is not known yet.
        """
        try:
            if path is not None and (path or file is not None):
                resolve_saved(path or file or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, path: str | None = None) -> str:
        """Change with the file, so that a file that was overwritten is read again."""
        try:
            file = resolve_saved(path or file or "")
        except ValueError:
            return "missing"
        status = file.stat()
        return f"{file}:{status.st_mtime_ns}:{status.st_size}"

    @classmethod
    def execute(cls, file: str, path: str | None = None) -> io.NodeOutput:
        """Read the file."""
        loaded = load(resolve_saved(path or file))
        # The command marks its own so; its fingerprints of models and prompts are of another kind.
        if "retrace" in loaded.meta and "host" not in loaded.meta:
            raise ValueError(
                "file must be made in ComfyUI, got one of the standalone command; "
                "invert the picture here, or play it with python -m retrace replay."
            )
        return io.NodeOutput(LinkedInversion.of(loaded))
