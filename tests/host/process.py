"""Runs checks inside a host, in a process of their own."""

import json
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from retrace_tests.hosts import host_python

INSIDE = Path(__file__).resolve().parent / "inside"
ROOT = INSIDE.parents[2]
PREFIX = "RETRACE-CHECK "
# Import of a host takes 6 to 15 s, a check 2 s on average and a minute at most; the rest is for a busy machine.
START, CHECK = 300, 30


class Skipped(str):
    """What a host lacks for a check."""


@cache
def run_inside(host, names):
    """Run checks in a host's process.

    Args:
        host: The checkout.
        names: Names of the checks.

    Returns:
        Failure text, None or why it was skipped by check, and the output of the process.
    """
    environment = {**os.environ, "PYTHONPATH": str(host), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        if any("photograph" in name for name in names):
            environment["RETRACE_PHOTOGRAPHS"] = write_photographs(Path(folder))
        done = subprocess.run(
            [host_python(), str(INSIDE / "run.py"), str(ROOT), *names],
            # The name `nodes` must mean the host's module, and the host finds its own files from here.
            cwd=host,
            env=environment,
            capture_output=True,
            text=True,
            timeout=START + CHECK * len(names),
            check=False,
        )
    lines = [json.loads(line[len(PREFIX) :]) for line in done.stdout.splitlines() if line.startswith(PREFIX)]
    results = {line["name"]: Skipped(line["skipped"]) if line["skipped"] else line["failure"] for line in lines}
    return results, (done.stdout + done.stderr)[-4000:]


def write_photographs(folder):
    """Write the photographs of scikit-image that checks ask for; the host's own Python need not have it.

    Returns:
        The folder as text.
    """
    import skimage.data
    from PIL import Image

    for name in ("astronaut", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    return str(folder)
