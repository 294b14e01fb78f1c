"""Find the ComfyUI checkouts that the host tests run in."""

import os
import re
import sys
from pathlib import Path

VERSION_FILE = "comfyui_version.py"
# The oldest that the pack supports, as pyproject.toml says it.
FLOOR = (0, 8, 0)


def find_hosts() -> list[Path]:
    """Return the ComfyUI checkouts to test in, oldest version first.

    COMFYUI_PATH names them, several separated as in PATH; without it every `ComfyUI*` folder in the home
    folder counts whose version is one that the pack supports. A folder is a checkout if it holds comfyui_version.py.

    Raises:
        ValueError: If COMFYUI_PATH names a folder that is no checkout.
    """
    named = [Path(p) for p in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if p]
    for path in named:
        if not (path / VERSION_FILE).is_file():
            raise ValueError(
                f"COMFYUI_PATH must name ComfyUI checkouts, got {path} without {VERSION_FILE}; correct or unset it."
            )
    at_home = (p for p in Path.home().glob("ComfyUI*") if (p / VERSION_FILE).is_file() and host_version(p) >= FLOOR)
    return sorted({p.resolve() for p in named or at_home}, key=host_version)


def host_version(host: Path) -> tuple[int, ...]:
    """Return the version of a checkout as numbers, e.g. (0, 8, 0)."""
    text = (host / VERSION_FILE).read_text(encoding="utf-8")
    numbers = re.search(r'__version__\s*=\s*"([\d.]+)', text)
    return tuple(int(n) for n in numbers.group(1).strip(".").split(".")) if numbers else ()


def host_python() -> str:
    """Return the interpreter that runs the hosts: COMFYUI_PYTHON, else the one that runs the tests."""
    return os.environ.get("COMFYUI_PYTHON") or sys.executable
