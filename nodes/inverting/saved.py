"""SaveInversion and LoadInversion: inversions as files."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ...inversion import load, save
from ..host.files import NOTHING_SAVED, list_saved, new_path, resolve_saved
from ..host.node import Node
from .link import InversionType, LinkedInversion


class SaveInversion(Node):
    """Writes an inversion to the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Save Inversion",
            "Saves an inversion as one .safetensors file in the output folder, to be edited later or on "
            "another machine. Prompts are not in it.",
            aliases=["save inversion", "store noise"],
            inputs=[
                InversionType.Input("inversion", tooltip="From Invert."),
                io.String.Input(
                    "filename_prefix",
                    default="retrace/inversion",
                    tooltip="Name of the file, with subfolders of the output folder before it. A number is added.",
                ),
                io.Boolean.Input(
                    "half",
                    default=False,
                    tooltip="Store the states in float16: a quarter of the size, and reconstruction errors of about "
                    "0.0005. The source itself stays exact.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="file", tooltip="Name of the saved file, for the path input of LoadInversion."
                )
            ],
            is_output=True,
        )

    @classmethod
    def execute(cls, inversion: LinkedInversion, filename_prefix: str, half: bool) -> io.NodeOutput:
        """Write the file."""
        path, name = new_path(filename_prefix)
        save(inversion, path, half)
        return io.NodeOutput(name, ui=ui.PreviewText(f"Saved {name}, {path.stat().st_size:,} bytes"))


def check_file(file: str, path: str = "") -> None:
    """Refuse a name that stands for no file of ours; without a path it is the one of the list.

    Raises:
        ValueError: If it does.
    """
    resolve_saved(path or file)


class LoadInversion(Node):
    """Reads an inversion from the output or input folder."""

    RULES = (check_file,)
    OPEN = frozenset({"file"})

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Load Inversion",
            "Loads an inversion that SaveInversion wrote. To reconstruct it, give Resample its source "
            "prompt; to edit it, a positive is enough.",
            aliases=["load inversion"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=list_saved() or [NOTHING_SAVED],
                    tooltip="A saved inversion in the output or input folder. Press R to refresh the list.",
                ),
                io.String.Input(
                    "path",
                    optional=True,
                    force_input=True,
                    tooltip="Name from SaveInversion; used instead of the list when connected.",
                ),
            ],
            outputs=[
                InversionType.Output(
                    display_name="inversion",
                    tooltip="The inversion, for Resample, InversionSampler and InversionReport.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, path: str | None = None) -> str:
        """Change with the file, so that a file that was overwritten is read again."""
        try:
            saved = resolve_saved(path or file or "")
        except ValueError:
            return "missing"
        status = saved.stat()
        return f"{saved}:{status.st_mtime_ns}:{status.st_size}"

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
