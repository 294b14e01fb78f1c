"""Restoration of held-out Shapes pictures by both demo models, against plain baselines, without ComfyUI.

    python benchmarks/restoration.py [--pictures 200] [--fewer 40] [--steps 20] [--workers 1] [--kinds eps flow]
        [--damages mask small ...] [--methods NAME ...] [--collect] [--fresh]

Every picture is damaged, with noise, and restored under its caption at cfg 1 from one seed by every method of
restoration_methods.py; the costly ones take the first --fewer pictures. PSNR and SSIM are against the truth, chi2 is
|A x - y|^2 / (m sigma^2) with the noise that was added alone. `object` is the share of pictures in which the rule-based
reader finds the colour, shape, size and position of the caption, `background` that of its background. Each picture is
also measured behind SnapToMeasurement. The autoencoder's own round trip of the truth is the ceiling of everything that
comes through it.

The pictures go in batches, all methods on one batch before the next. Every batch of a method that is finished is kept
in benchmarks/results/parts, which git ignores, and taken from there by the next run; --fresh measures it again, and
--collect measures nothing and writes the tables from what is there.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import overhead  # noqa: E402
import provenance  # noqa: E402
import torch  # noqa: E402
from restoration_methods import (  # noqa: E402
    DAMAGES,
    DDS,
    GREY_LEVELS,
    METHODS,
    MODELS,
    SEED,
    Bench,
    snapped,
)
from torch import Tensor  # noqa: E402

from retrace.demo import measure, world  # noqa: E402
from retrace.inversion.metrics import ssim  # noqa: E402

BATCH = 20
CEILING = "(the truth through the VAE)"
# Where DDS is wanted to be so many dB above every plain baseline, and where chi2 is wanted to lie.
WANTED, AHEAD, EXPLAINED = ("mask", "small", "blur"), 2.0, (0.05, 1.5)
# Pictures and steps of the run that measures memory: all steps are alike.
MEMORY_ROWS, MEMORY_STEPS = 8, 3
_READ = ("colour", "shape", "size", "position")


@dataclass(frozen=True)
class Job:
    """A method on one batch of damaged pictures.

    Attributes:
        model: "eps" or "flow".
        damage: Name of DAMAGES.
        method: Name of METHODS, or CEILING.
        first: Number of the first picture.
        count: Number of pictures.
        steps: Steps of DDS.
        half: Whether the autoencoder runs in bfloat16.
    """

    model: str
    damage: str
    method: str
    first: int
    count: int
    steps: int
    half: bool = False

    @property
    def title(self) -> str:
        """Name of the part that keeps it."""
        words = "".join(letter if letter.isalnum() else "_" for letter in self.method)
        return f"restoration_{self.model}_{self.damage}_{words}_{self.first}_{self.count}"


# What runs is what was there when this process began, whatever is committed meanwhile.
_where = functools.cache(provenance.provenance)


@functools.cache
def _truth(first: int, count: int) -> tuple[list[world.Scene], Tensor]:
    """Held-out scenes and their pictures in [-1, 1]; no scene comes twice."""
    scenes = measure.unseen(first + count, 1)
    drawn, _ = world.render(scenes, 5)
    pictures = torch.from_numpy(drawn[first:]).float().permute(0, 3, 1, 2) / GREY_LEVELS - 1.0
    return scenes[first:], pictures


@torch.no_grad()
def run(job: Job) -> dict[str, Any]:
    """Measure one batch: figures of every picture, and what the batch cost."""
    torch.set_num_threads(1)
    scenes, truth = _truth(job.first, job.count)
    measured = DAMAGES[job.damage].measured(truth, job.first)
    times = 1.0 if job.method == CEILING else METHODS[job.method].steps
    captions = [scene.caption for scene in scenes]
    bench = Bench(job.model, captions, round(job.steps * times), SEED + job.first, _half(job))
    started = time.process_time()
    try:
        restored = (
            bench.decode(bench.encode(truth)) if job.method == CEILING else METHODS[job.method].run(bench, measured)
        )
    except ValueError as error:
        # A method may leave the finite numbers: that is a result too.
        return {"job": asdict(job), "refused": str(error), "provenance": _where()}
    seconds = time.process_time() - started
    shown = restored.clamp(-1.0, 1.0)
    after = snapped(measured, shown)
    pictures = ((shown + 1.0) * GREY_LEVELS).round().byte().permute(0, 2, 3, 1).numpy()
    read = measure.verdicts(scenes, pictures)
    words = {title: read[title] for title in measure.COLUMNS if title != "background"}
    return {
        "job": asdict(job),
        "psnr": _psnr(shown, truth),
        "ssim": [ssim((a[None] + 1.0) / 2.0, (b[None] + 1.0) / 2.0) for a, b in zip(shown, truth, strict=True)],
        "chi2": measured.chi2(shown).tolist(),
        "object": [all(bool(column[row]) for column in words.values()) for row in range(job.count)],
        "background": [bool(value) for value in read["background"]],
        "snapped_psnr": _psnr(after, truth),
        "snapped_chi2": measured.chi2(after).tolist(),
        "seconds": seconds / job.count,
        "calls": bench.denoiser.evaluations,
        **bench.calls,
        "provenance": _where(),
    }


def _half(job: Job) -> bool:
    return job.half and not (job.method in METHODS and METHODS[job.method].full)


def _psnr(shown: Tensor, truth: Tensor) -> list[float]:
    error = (shown - truth).square().flatten(1).mean(dim=1)
    found: list[float] = (10.0 * torch.log10(4.0 / error)).tolist()
    return found


def jobs(
    models: Sequence[str],
    damages: Sequence[str],
    methods: Sequence[str],
    pictures: int,
    fewer: int,
    steps: int,
    half: bool = False,
) -> list[Job]:
    """All batches, in the order in which they are measured."""
    found = []
    for first in range(0, pictures, BATCH):
        for damage in damages:
            for model in models:
                for name in (CEILING, *methods):
                    method = METHODS.get(name)
                    most = pictures
                    if method is not None:
                        if damage not in method.damages or model not in method.models:
                            continue
                        most = min(pictures, max(1, fewer // method.costly)) if method.costly else pictures
                    count = min(BATCH, most - first)
                    if count > 0:
                        found.append(Job(model, damage, name, first, count, steps, half))
    return found


def run_all(wanted: Sequence[Job], workers: int, parts: Path, collect: bool = False) -> list[dict[str, Any]]:
    """Run jobs, several at once, and tell about each; finished ones are taken from the folder of parts."""
    found: dict[Job, dict[str, Any]] = {}
    for job in wanted:
        path = parts / f"{job.title}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["job"] == asdict(job):
                found[job] = kept
    todo = [] if collect else [job for job in wanted if job not in found]
    print(f"{len(found)} batches are there, {len(todo)} to measure", file=sys.stderr, flush=True)
    started = time.perf_counter()
    for done, (job, row) in enumerate(_as_they_come(todo, workers), 1):
        found[job] = row
        parts.mkdir(parents=True, exist_ok=True)
        path = parts / f"{job.title}.json"
        # A run that is ended while it writes must leave no half file.
        path.with_suffix(".new").write_text(json.dumps(row), encoding="utf-8")
        os.replace(path.with_suffix(".new"), path)
        told = row.get("refused") or (
            f"{statistics.fmean(row['psnr']):.2f} dB, chi2 {statistics.fmean(row['chi2']):.2f}, "
            f"{row['seconds']:.2f} s a picture"
        )
        print(
            f"[{done}/{len(todo)}, {time.perf_counter() - started:.0f} s] {job.model} {job.damage} {job.method} "
            f"{job.first}: {told}",
            file=sys.stderr,
            flush=True,
        )
    return [found[job] for job in wanted if job in found]


def _as_they_come(todo: Sequence[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Yield each job with its row as soon as it is there; without workers in this process, one after the other."""
    if not workers:
        yield from ((job, run(job)) for job in todo)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, job): job for job in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()


@torch.no_grad()
def memory(models: Sequence[str], methods: Sequence[str], half: bool) -> dict[str, dict[str, float]]:
    """Peak of resident memory in MiB a picture, above what the process held with the models loaded, by model."""
    found: dict[str, dict[str, float]] = {}
    scenes, truth = _truth(0, MEMORY_ROWS)
    captions = [scene.caption for scene in scenes]
    for model in models:
        found[model] = {}
        for name in methods:
            method = METHODS[name]
            if model not in method.models:
                continue
            measured = DAMAGES["mask" if "small" not in method.damages else "small"].measured(truth, 0)
            try:
                # Once to warm up what the libraries keep.
                for _ in range(2):
                    bench = Bench(model, captions, MEMORY_STEPS, half=half and not method.full)
                    overhead.peak_reset()
                    before = overhead.peak_bytes()
                    method.run(bench, measured)
                    peak = overhead.peak_bytes() - before
            except ValueError:
                continue
            found[model][name] = peak / 2**20 / MEMORY_ROWS
    return found


class Group:
    """All batches of a method on one damage and model, joined."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.refused = [row["refused"] for row in rows if "refused" in row]
        whole = sorted((row for row in rows if "refused" not in row), key=lambda row: row["job"]["first"])
        self.values: dict[str, list[float]] = {
            key: [float(value) for row in whole for value in row[key]]
            for key in ("psnr", "ssim", "chi2", "object", "background", "snapped_psnr", "snapped_chi2")
        }
        self.numbers = [row["job"]["first"] + i for row in whole for i in range(row["job"]["count"])]
        counts = [row["job"]["count"] for row in whole]
        self.seconds = (
            sum(row["seconds"] * count for row, count in zip(whole, counts, strict=True)) / sum(counts)
            if counts
            else math.nan
        )
        self.calls = {key: whole[0][key] if whole else 0 for key in ("calls", "decode", "encode")}

    def mean(self, key: str) -> float:
        """Mean over pictures."""
        return statistics.fmean(self.values[key]) if self.values[key] else math.nan

    def by_picture(self, key: str) -> dict[int, float]:
        """A figure of every picture by its number."""
        return dict(zip(self.numbers, self.values[key], strict=True))

    def ahead(self, other: Group, key: str = "psnr", their: str = "psnr") -> tuple[float, float, int]:
        """Mean difference to another method on the pictures of both, its standard error, and their number."""
        ours, theirs = self.by_picture(key), other.by_picture(their)
        differences = [ours[number] - theirs[number] for number in ours if number in theirs]
        if not differences:
            return math.nan, math.nan, 0
        spread = statistics.stdev(differences) if len(differences) > 1 else math.nan
        return statistics.fmean(differences), spread / math.sqrt(len(differences)), len(differences)


def grouped(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], Group]:
    """Groups by model, damage and method."""
    keys = dict.fromkeys((row["job"]["model"], row["job"]["damage"], row["job"]["method"]) for row in rows)
    return {
        key: Group([row for row in rows if (row["job"]["model"], row["job"]["damage"], row["job"]["method"]) == key])
        for key in keys
    }


def as_table(groups: dict[str, Group], bytes_of: dict[str, float]) -> str:
    """The table of one model and damage."""
    head = ["method", "pictures", "PSNR", "SSIM", "chi2", "object", "background", "PSNR snapped", "chi2 snapped"]
    head += ["model calls", "decodes", "encodes", "s a picture", "MiB a picture"]
    cells = []
    for name, group in groups.items():
        if not group.numbers:
            cells.append([name, "0", *["-"] * (len(head) - 2)])
            continue
        cells.append(
            [
                name,
                str(len(group.numbers)),
                f"{group.mean('psnr'):.2f}",
                f"{group.mean('ssim'):.3f}",
                f"{group.mean('chi2'):.2f}",
                f"{100 * group.mean('object'):.1f} %",
                f"{100 * group.mean('background'):.1f} %",
                f"{group.mean('snapped_psnr'):.2f}",
                f"{group.mean('snapped_chi2'):.2f}",
                *(str(group.calls[part]) for part in ("calls", "decode", "encode")),
                f"{group.seconds:.2f}",
                f"{bytes_of[name]:.1f}" if name in bytes_of else "-",
            ]
        )
    return provenance.table(head, cells)


def verdict(groups: dict[tuple[str, str, str], Group]) -> str:
    """Say in a table what was wanted and what was reached: chi2 of DDS, and how far it is ahead of plain baselines."""
    head = ["", "over", "DDS", f"wanted {AHEAD:g} dB", "DDS, snapped", f"wanted {AHEAD:g} dB", "both snapped"]
    head += ["chi2", f"wanted {EXPLAINED[0]:g} to {EXPLAINED[1]:g}"]
    cells = []
    for model, damage, method in groups:
        ours = groups[model, damage, method]
        if method != DDS or not ours.numbers:
            continue
        chi2 = ours.mean("chi2")
        met = EXPLAINED[0] <= chi2 <= EXPLAINED[1]
        end = [f"{chi2:.2f}", "reached" if met else "**not reached**"]
        for name, plain in METHODS.items():
            other = groups.get((model, damage, name))
            if not plain.plain or other is None or not other.numbers:
                continue
            cells.append([f"{model}, {damage}", name, *_ahead(ours, other, damage), *end])
            end = ["", ""]
    return provenance.table(head, cells)


def _ahead(ours: Group, other: Group, damage: str) -> list[str]:
    """Cells of the difference alone, with DDS snapped, and with both."""
    cells = []
    for key, their in (("psnr", "psnr"), ("snapped_psnr", "psnr"), ("snapped_psnr", "snapped_psnr")):
        by, error, count = ours.ahead(other, key, their)
        cells.append(f"{by:+.2f} ± {error:.2f} dB" if count else "-")
        if their == "psnr":
            cells.append("-" if damage not in WANTED else "reached" if by >= AHEAD else "**not reached**")
    return cells


def report(rows: Sequence[dict[str, Any]], used: dict[str, dict[str, float]], steps: int, half: bool) -> str:
    """The whole text."""
    groups = grouped(rows)
    most = max((len(group.numbers) for group in groups.values()), default=0)
    parts = [
        "# Restoration of held-out Shapes pictures",
        f"Up to {most} pictures (costly methods on the first few, see the column), {steps} steps of DDS at cfg 1 under "
        "the caption, one seed, trust 1; "
        f"RED-diff takes {METHODS['RED-diff'].steps:g} times the steps. All settings are those of the nodes; STSL is "
        "PSLD with five inner steps and without gluing. The truth through the VAE is the ceiling of what comes out "
        "of one. `snapped` is behind SnapToMeasurement, which every row may have. `object`: colour, shape, size and "
        "position read right. Seconds are of the processor, one thread; MiB is the peak of resident memory above what "
        f"the process held with its models loaded, in a batch of {MEMORY_ROWS}."
        + (
            " The autoencoder runs in bfloat16, but in float32 under gradients (PSLD, STSL); the denoisers in float32."
            if half
            else ""
        ),
        "## What was wanted",
        "PSNR of DDS over the plain baselines (mean over the pictures of both ± its standard error), and chi2; once "
        "more with SnapToMeasurement behind DDS, as in restore_mask, and behind both. chi2 of a JPEG counts the "
        "distance to its cells, where 0 is right: its lower bound says nothing. `noise mask, euler` "
        "is what the host's KSampler does with a noise mask; `fresh noise` is the same with the steps of DDS.",
        verdict(groups),
    ]
    for model, damage in dict.fromkeys((key[0], key[1]) for key in groups):
        words, noise = DAMAGES[damage].words, DAMAGES[damage].noise
        also = f", noise of {noise:g} grey levels" if noise and damage != "noise" else ""
        chosen = {key[2]: group for key, group in groups.items() if key[:2] == (model, damage)}
        parts += [f"## {model}: {words}{also}", as_table(chosen, used.get(model, {}))]
        parts += [f"{name}: {group.refused[0]}" for name, group in chosen.items() if group.refused]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="held-out pictures (200)")
    parser.add_argument("--fewer", type=int, default=40, help="pictures for the costly methods (40)")
    parser.add_argument("--steps", type=int, default=20, help="steps of DDS (20)")
    parser.add_argument("--kinds", nargs="+", choices=MODELS, default=list(MODELS), help="demo models, both")
    parser.add_argument("--damages", nargs="+", choices=tuple(DAMAGES), default=list(DAMAGES))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--half", action="store_true", help="run the autoencoder in bfloat16")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each (1); 0 for none but this")
    parser.add_argument("--output", type=Path, default=provenance.RESULTS, help="folder of the results")
    parser.add_argument("--collect", action="store_true", help="measure nothing, write what is there")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = given.kinds, given.damages, given.methods, given.pictures, given.fewer, given.steps, given.half
    wanted, parts = jobs(*chosen), given.output / "parts"
    if given.fresh:
        for job in wanted:
            (parts / f"{job.title}.json").unlink(missing_ok=True)
    where = provenance.provenance()
    rows = run_all(wanted, given.workers, parts, given.collect)
    used = memory(given.kinds, given.methods, given.half)
    text = report(rows, used, given.steps, given.half)
    data = {"provenance": where, "half": given.half, "steps": given.steps, "memory": used, "rows": summaries(rows)}
    provenance.write("restoration", text, data, given.output)


def summaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of every table row, with the commits that its batches were measured at."""
    found = []
    for (model, damage, method), group in grouped(rows).items():
        mine = [
            r for r in rows if (r["job"]["model"], r["job"]["damage"], r["job"]["method"]) == (model, damage, method)
        ]
        found.append(
            {
                "model": model,
                "damage": damage,
                "method": method,
                "pictures": len(group.numbers),
                **({key: group.mean(key) for key in group.values} if group.numbers else {}),
                "seconds": group.seconds,
                **group.calls,
                "refused": group.refused,
                "commits": sorted({row["provenance"]["commit"] for row in mine}),
            }
        )
    return found


if __name__ == "__main__":
    main()
