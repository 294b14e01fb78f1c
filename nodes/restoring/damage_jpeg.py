"""DamageJPEG, which can read from a file in the host's input folder how it was saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from ...restoration import operators
from .damage_node import DamageNode

NO_FILE = "(as set below)"
_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
# What Pillow calls 4:4:4 and 4:2:0; -1 is a grey picture.
_SAMPLINGS = {0: False, 2: True, -1: False}


def check_file(file: str) -> None:
    """Refuse a file that is no JPEG.

    Raises:
        ValueError: If it cannot be read.
    """
    if file != NO_FILE:
        read_file(file)


class DamageJPEG(DamageNode):
    """The picture was saved as a JPEG."""

    DAMAGE = operators.DamageJPEG
    RULES = (check_file,)
    OPEN = frozenset({"file"})

    @classmethod
    def inputs(cls) -> list[Any]:
        """A file, or what says how it was saved."""
        file = io.Combo.Input(
            "file",
            options=[NO_FILE, *list_jpegs()],
            default=NO_FILE,
            tooltip="A JPEG of the input folder whose tables are taken, best the photo itself. Otherwise the two "
            "inputs below say how it was saved.",
        )
        return [file, *super().inputs()]

    @classmethod
    def fingerprint_inputs(cls, file: str, **settings: Any) -> str:
        """Change when the file does."""
        return f"{mark_of(file)} {settings}"

    @classmethod
    def execute(cls, file: str = NO_FILE, **settings: Any) -> io.NodeOutput:
        """Make the recipe."""
        return super().execute(saved=None if file == NO_FILE else read_file(file), **settings)


def list_jpegs() -> list[str]:
    """Return the JPEG files of the input folder by name."""
    base = Path(folder_paths.get_input_directory())
    if not base.is_dir():
        return []
    return sorted(path.name for path in base.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())


def read_file(name: str) -> operators.SavedAs:
    """Read how a file of the input folder was saved.

    Raises:
        ValueError: If it is not in the folder, no JPEG, or colour was kept in another way.
    """
    try:
        with Image.open(_path(name)) as picture:
            if picture.format != "JPEG" or not isinstance(picture, JpegImagePlugin.JpegImageFile):
                raise ValueError(f"file must be a JPEG, got {name!r} of the format {picture.format}; set the quality.")
            if picture.mode not in ("RGB", "L"):
                raise ValueError(
                    f"file must be a JPEG in colour or grey, got {name!r} in {picture.mode}; save it as RGB."
                )
            tables = dict(picture.quantization)
            sampling = JpegImagePlugin.get_sampling(picture)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"file must be a readable JPEG, got {name!r}; choose another or set the quality.") from error
    if not tables or sampling not in _SAMPLINGS:
        raise ValueError(f"file must keep colour as 4:4:4 or 4:2:0, got {name!r} with another; set the quality.")
    first = tables[min(tables)]
    luminance, chrominance = (
        [list(table[8 * row : 8 * row + 8]) for row in range(8)] for table in (first, tables.get(1, first))
    )
    return operators.SavedAs(name, (luminance, chrominance), _SAMPLINGS[sampling])


def mark_of(name: str) -> str:
    """Return what changes when a file does; nothing for one that cannot be read."""
    if name == NO_FILE:
        return name
    try:
        state = os.stat(_path(name))
    except (OSError, ValueError):
        return ""
    return f"{name} {state.st_mtime_ns} {state.st_size}"


def _path(name: str) -> Path:
    base = Path(folder_paths.get_input_directory()).resolve()
    path = (base / name).resolve()
    if base not in path.parents:
        raise ValueError(f"file must lie in the input folder, got {name!r}; move it there and choose it.")
    return path
