"""Record files in the host's own folders, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

SUFFIX = ".safetensors"
NOTHING_SAVED = "(nothing saved yet)"

_FOLDERS = ("output", "input")


def list_saved() -> list[str]:
    """Return the saved inversions in the output and input folders, newest first, each marked with its folder."""
    saved: list[tuple[float, str]] = []
    for folder in _FOLDERS:
        base = Path(_base(folder))
        for directory, _, names in os.walk(base):
            for name in names:
                if name.endswith(SUFFIX):
                    path = Path(directory) / name
                    saved.append((_changed(path), f"{path.relative_to(base).as_posix()} [{folder}]"))
    return [name for _, name in sorted(saved, key=lambda pair: (-pair[0], pair[1]))]


def resolve_saved(name: str) -> Path:
    """Return the file that a name stands for.

    Args:
        name: Path within the output or input folder, with " [output]" or " [input]" behind it; without a mark the
            output folder is looked into first.

    Returns:
        An existing file.

    Raises:
        ValueError: If the name leaves the folder, has another ending or names nothing.
    """
    text = name.strip()
    folders: tuple[str, ...] = _FOLDERS
    for folder in _FOLDERS:
        if text.endswith(f" [{folder}]"):
            text, folders = text[: -len(folder) - 3].strip(), (folder,)
    for folder in folders:
        path = _inside(_base(folder), text)
        if path is not None and path.is_file() and path.suffix == SUFFIX:
            return path
    if all(_inside(_base(folder), text) is None for folder in folders):
        raise ValueError(
            f"file must lie in the output or input folder, got {name!r}; move the file there and give its name."
        )
    raise ValueError(f"file must name a saved {SUFFIX} file, got {name!r}; save one with SaveInversion first.")


def new_path(prefix: str) -> tuple[Path, str]:
    """Return a free path for an inversion in the output folder, making its subfolder.

    Args:
        prefix: Name, with subfolders before it if wanted; the host's %year% and the like are filled in.

    Returns:
        The path and the name under which :func:`resolve_saved` finds it.

    Raises:
        ValueError: If the prefix is empty or leaves the output folder.
    """
    base = _base("output")
    text = prefix.strip()
    if not text or text.endswith(("/", "\\")) or _inside(base, text) is None:
        raise ValueError(
            f"filename_prefix must name a file within the output folder, got {prefix!r}; use for example 'retrace/cat'."
        )
    folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(text, base)
    name = f"{stem}_{counter:05}_{SUFFIX}"
    return Path(folder) / name, f"{Path(subfolder, name).as_posix()} [output]"


def _base(folder: str) -> str:
    directory: str = folder_paths.get_output_directory() if folder == "output" else folder_paths.get_input_directory()
    return os.path.abspath(directory)


def _inside(base: str, text: str) -> Path | None:
    """Return base/text if that stays within base; text may be hostile."""
    # A backslash is a separator on one system and a letter on another: a workflow must mean one file everywhere.
    if not text or "\0" in text or "\\" in text or os.path.isabs(text):
        return None
    path = os.path.abspath(os.path.join(base, text))
    try:
        return Path(path) if os.path.commonpath((base, path)) == base and path != base else None
    except ValueError:  # another drive
        return None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # gone, or a broken link
        return 0.0
