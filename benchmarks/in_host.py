"""Starts a benchmark once more inside the newest ComfyUI at hand."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
# Set in the host's process.
INSIDE = "RETRACE_BENCHMARK_INSIDE"


def is_inside() -> bool:
    """Whether this process is the host's."""
    return bool(os.environ.get(INSIDE))


def run_inside(script: str) -> NoReturn:
    """Run a script with this process's arguments in the newest host, and end with its status.

    Args:
        script: Path of the script.
    """
    tools = runpy.run_path(str(ROOT / "tests" / "hosts.py"))
    hosts = tools["find_hosts"]()
    if not hosts:
        raise SystemExit("COMFYUI_PATH must name a ComfyUI checkout, got none; set it and run this again.")
    host = hosts[-1]
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, INSIDE: "1", "PYTHONPATH": str(host), "OMP_NUM_THREADS": "1", "TMPDIR": scratch}
        command = [tools["host_python"](), str(Path(script).resolve()), *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, cwd=host, env=environment, check=False).returncode)
