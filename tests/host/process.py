"""Runs checks inside a host, in a process of their own."""

import json
import os
import queue
import subprocess
import threading
from pathlib import Path

from retrace_tests.hosts import host_python

INSIDE = Path(__file__).resolve().parent / "inside"
ROOT = INSIDE.parents[2]
PREFIX = "RETRACE-CHECK "
# Seconds without a word: import of a host takes 6 to 15, the longest check a minute; the rest is for a busy machine.
SILENCE = 600


class Skipped(str):
    """What a host lacks for a check."""


class Checks:
    """Checks by their names in the process of a host's checkout, in their order there, with an empty folder."""

    def __init__(self, host, names, folder):
        environment = {**os.environ, "PYTHONPATH": str(host), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        if any("photograph" in name for name in names):
            environment["RETRACE_PHOTOGRAPHS"] = write_photographs(folder)
        self._log = folder / "log"
        self._results = {}
        self._lines = queue.SimpleQueue()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [host_python(), str(INSIDE / "run.py"), str(ROOT), *names],
                # The name `nodes` must mean the host's module, and the host finds its own files from here.
                cwd=host,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                errors="replace",
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def outcome(self, name):
        """Wait for a check; None where it passed, its failure, or what it was skipped for."""
        while name not in self._results:
            try:
                line = self._lines.get(timeout=SILENCE)
            except queue.Empty:
                return f"the check did not end, and nothing did for {SILENCE} s:\n{self._tail()}"
            if line is None:
                self._lines.put(None)
                return f"the check did not run; the process ended with {self._process.wait()}:\n{self._tail()}"
            self._results[line["name"]] = Skipped(line["skipped"]) if line["skipped"] else line["failure"]
        return self._results[name]

    def stop(self):
        """End the process, by its own id."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self):
        with self._process.stdout as lines:
            for line in lines:
                _, found, report = line.partition(PREFIX)
                if found:
                    self._lines.put(json.loads(report))
        self._lines.put(None)

    def _tail(self):
        return self._log.read_text(encoding="utf-8", errors="replace")[-4000:]


def write_photographs(folder):
    """Write the photographs of scikit-image that checks ask for; the host's own Python need not have it."""
    import skimage.data
    from PIL import Image

    for name in ("astronaut", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    return str(folder)
