"""Where and on what a result was measured, and how it is written down."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def provenance() -> dict[str, str]:
    """Return machine, date, commit and torch of this run."""
    import torch

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    # What a benchmark writes itself does not make the measured code another.
    changed = [line for line in git("status", "--porcelain").splitlines() if "benchmarks/results/" not in line]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": (git("rev-parse", "--short=12", "HEAD") or "unknown") + (" and local changes" if changed else ""),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "load": f"{os.getloadavg()[0]:.1f} processes waiting or running at the start",
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} thread",
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def write(name: str, text: str, data: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Write <name>.md, with the provenance at its end, and <name>.json into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    where = data["provenance"]
    end = "\n".join(f"- {key}: {value}" for key, value in where.items())
    (folder / f"{name}.md").write_text(f"{text}\n\n{end}\n", encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(f"{text}\n\n{end}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"
