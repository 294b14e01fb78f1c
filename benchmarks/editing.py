"""Edits of held-out pictures by every method, on both demo models, at equal numbers of network calls.

    python benchmarks/editing.py [--count 50] [--workers 2] [--entries infedit edict] [--kinds eps flow] [--no-papers]
    python benchmarks/editing.py --tune [--entries infedit]

200 triples of a picture, its prompt and a target prompt, 50 of each kind of edit, go through every entry of
editing_methods.py with the whole picture free, and the first half of them once more inside a mask. What is measured,
and on which pixels, is in editing_figures.py and editing_triples.py. Every row that is finished is kept in
benchmarks/results/parts, which git ignores, and taken from there by the next run; --fresh measures it again.

--tune prints how every entry does on other pictures, whose combinations were trained on, over a grid of guidance and
strength: that is where the settings of the entries come from.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import runpy
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "_standalone.py"))["load_package"]()
sys.path.insert(0, str(ROOT / "benchmarks"))

import editing_report  # noqa: E402
import numpy as np  # noqa: E402
import provenance  # noqa: E402
import torch  # noqa: E402
from editing_figures import Structure, as_pictures, as_pixels, measure, summary, verdict  # noqa: E402
from editing_methods import BUDGET, Batch, Setting, entries  # noqa: E402
from editing_triples import KINDS, Triple, draw, triples  # noqa: E402

from retrace.backends.shapes import shapes_model  # noqa: E402
from retrace.inversion.inversion import keep  # noqa: E402

MODELS = ("eps", "flow")
ROWS = 50
# Triples of each kind that the contact sheet shows: the first ones, whatever became of them.
SHOWN = 1
TUNING = {"cfg": (1.0, 2.0, 3.0), "strength": (1.0,)}


@dataclass(frozen=True)
class Job:
    """One row of the result: an entry with a setting on one model.

    Attributes:
        model: "eps" or "flow".
        entry: Name of the entry.
        setting: What it runs at.
        masked: Whether the edits inside a mask are measured too, on the first half of the batches.
        count: Triples of each kind.
        budget: Network calls for a picture.
        held_out: Whether the triples are the held-out ones.
    """

    model: str
    entry: str
    setting: Setting
    masked: bool
    count: int
    budget: int = BUDGET
    held_out: bool = True

    @property
    def title(self) -> str:
        """Name of the part that keeps it."""
        return f"{self.model}_{self.entry}_{self.setting.cfg:g}_{self.setting.strength:g}".replace(" ", "_")


@functools.cache
def _model(kind: str):
    model = shapes_model(kind)
    return model, Structure(model.vae)


@torch.no_grad()
def run(job: Job) -> dict[str, Any]:
    """Measure one row."""
    torch.set_num_threads(1)
    model, structure = _model(job.model)
    entry = entries()[job.entry]
    chosen = triples(job.count, job.held_out)
    drawn = draw(chosen)
    rows: dict[str, list[dict[str, Any]]] = {"free": [], "masked": []}
    shown, calls, seconds, equal = [], 0, 0.0, True
    for first in range(0, len(chosen), ROWS):
        part = slice(first, first + ROWS)
        asked, source, wanted = chosen[part], as_pictures(drawn.pictures[part]), as_pictures(drawn.wanted[part])
        regions = torch.from_numpy(drawn.regions[part])
        x0 = model.encode(source)
        rebuilt = model.decode(x0)
        mask = torch.nn.functional.adaptive_max_pool2d(regions[:, None].float(), x0.shape[2:])
        numbers = list(range(first, first + len(asked)))
        prompts = ([triple.source.caption for triple in asked], [triple.target.caption for triple in asked])
        batch = Batch(model, x0, *prompts, numbers, mask, job.budget)
        started = time.perf_counter()
        try:
            finish = entry.edit(batch, job.setting)
            latents = {"free": finish(None)}
            calls, seconds = batch.calls, seconds + time.perf_counter() - started
            if job.masked and first < len(chosen) / 2:
                latents["masked"] = finish(mask)
        except ValueError as error:
            # A method may refuse a setting, or leave the finite numbers: that is a result too.
            return {"job": asdict(job), "refused": str(error), "provenance": provenance.provenance()}
        for variant, latent in latents.items():
            edited = model.decode(latent)
            rows[variant] += measure(asked, edited, source, rebuilt, wanted, regions, structure)
            if variant == "free":
                shown += list(as_pixels(edited)[: max(0, SHOWN * len(KINDS) - first)])
            else:
                kept = (mask == 0).expand_as(x0)
                equal = equal and torch.equal(latent[kept], keep(x0)[kept])
    found = {
        "job": asdict(job),
        "calls": calls,
        "seconds": seconds / len(chosen),
        "provenance": provenance.provenance(),
        "shown": np.stack(shown).tolist(),
        "free": _by_kind(rows["free"]),
    }
    if not job.masked:
        return found
    return {**found, "masked": _by_kind(rows["masked"]), "masked_count": len(rows["masked"]), "equal_outside": equal}


def _by_kind(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Summaries of all rows and of each kind of edit."""
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    return {"all": summary(rows), **{kind: summary(part) for kind, part in kinds.items()}}


@torch.no_grad()
def bounds(count: int) -> dict[str, Any]:
    """What the VAE alone does: to the sources, where nothing is edited, and to the targets as the world draws them."""
    model, structure = _model("eps")
    chosen = triples(count)
    drawn = draw(chosen)
    source, wanted = as_pictures(drawn.pictures), as_pictures(drawn.wanted)
    regions = torch.from_numpy(drawn.regions)
    parts = [slice(first, first + ROWS) for first in range(0, len(chosen), ROWS)]

    def through(pixels: np.ndarray) -> torch.Tensor:
        return torch.cat([model.decode(model.encode(as_pictures(pixels[part]))) for part in parts])

    rebuilt = through(drawn.pictures)

    def figures(pictures: torch.Tensor) -> list[dict[str, Any]]:
        return [
            row
            for part in parts
            for row in measure(
                chosen[part], pictures[part], source[part], rebuilt[part], wanted[part], regions[part], structure
            )
        ]

    unchanged = [Triple(triple.kind, triple.source, triple.source) for triple in chosen]
    same = [verdict(triple, picture)[0] for triple, picture in zip(unchanged, as_pixels(rebuilt), strict=True)]
    return {
        "source": _by_kind(figures(rebuilt)),
        "target": _by_kind(figures(through(drawn.wanted))),
        "source_read_right": 100.0 * float(np.mean(same)),
        "shown": drawn.pictures[: SHOWN * len(KINDS)].tolist(),
        "captions": [[t.kind, t.source.caption, t.target.caption] for t in chosen[: SHOWN * len(KINDS)]],
    }


def jobs(models: list[str], names: list[str], count: int, budget: int, papers_too: bool = True) -> list[Job]:
    """All rows: each entry at its own setting, and last at the guidance of its paper where that is another."""
    own, papers = [], []
    for name in names:
        entry = entries()[name]
        for model in models:
            if model not in entry.settings:
                continue
            setting = entry.settings[model]
            own.append(Job(model, name, setting, True, count, budget))
            if papers_too and entry.paper not in (None, setting.cfg):
                papers.append(Job(model, name, Setting(entry.paper, setting.strength), False, count, budget))
    return own + papers


def run_all(wanted: list[Job], workers: int, parts: Path | None) -> list[dict[str, Any]]:
    """Run jobs, several at once, and tell about each; finished ones are taken from the folder of parts."""
    found: dict[Job, dict[str, Any]] = {}
    for job in wanted:
        path = None if parts is None else parts / f"{job.title}.json"
        if path is not None and path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["job"] == asdict(job):
                found[job] = kept
    todo = [job for job in wanted if job not in found]
    print(f"{len(found)} rows are there, {len(todo)} to measure", file=sys.stderr, flush=True)
    started = time.perf_counter()
    for done, (job, row) in enumerate(_as_they_come(todo, workers), 1):
        found[job] = row
        if parts is not None:
            parts.mkdir(parents=True, exist_ok=True)
            (parts / f"{job.title}.json").write_text(json.dumps(row), encoding="utf-8")
        print(
            f"[{done}/{len(todo)}, {time.perf_counter() - started:.0f} s] {job.title}: {_told(row)}",
            file=sys.stderr,
            flush=True,
        )
    return [found[job] for job in wanted]


def _as_they_come(todo: list[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Yield each job with its row as soon as it is there; without workers in this process, one after the other."""
    if not workers:
        yield from ((job, run(job)) for job in todo)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, job): job for job in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _told(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"refused: {row['refused']}"
    figures = row["free"]["all"]
    return (
        f"{row['calls']} calls, success {figures['success']:.1f} %, changed {figures['changed']:.1f} %, "
        f"{figures['psnr']:.1f} dB outside, {row['seconds']:.2f} s a picture"
    )


def tune(models: list[str], names: list[str], count: int, budget: int, workers: int, parts: Path) -> None:
    """Print the best setting of each entry: the highest sum of success in percent and kept PSNR in dB."""
    wanted = [
        Job(model, name, Setting(cfg, strength), False, count, budget, held_out=False)
        for model in models
        for name in names
        for cfg in TUNING["cfg"]
        for strength in TUNING["strength"]
    ]
    rows = [row for row in run_all(wanted, workers, parts / "tuning") if "refused" not in row]

    def worth(row: dict[str, Any]) -> float:
        return row["free"]["all"]["success"] + row["free"]["all"]["psnr"]

    for model in models:
        for name in names:
            mine = [row for row in rows if (row["job"]["model"], row["job"]["entry"]) == (model, name)]
            for row in sorted(mine, key=worth, reverse=True)[:3]:
                print(f"{model} {name} {row['job']['setting']}: {_told(row)}")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = list(entries())
    parser.add_argument("--count", type=int, help="triples of each kind of edit (50, or 4 to tune)")
    parser.add_argument("--budget", type=int, default=BUDGET, help=f"network calls for a picture ({BUDGET})")
    parser.add_argument("--entries", nargs="+", default=known, choices=known, metavar="ENTRY", help="all by default")
    parser.add_argument("--kinds", nargs="+", default=list(MODELS), choices=MODELS, help="demo models, both")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (2); 0 for none but this")
    parser.add_argument("--output", type=Path, default=provenance.RESULTS, help="folder of the results")
    parser.add_argument("--no-papers", action="store_true", help="leave out the rows at the guidance of papers")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--tune", action="store_true", help="look for settings instead, on other pictures")
    chosen = parser.parse_args(arguments)
    parts = chosen.output / "parts"
    if chosen.tune:
        tune(chosen.kinds, chosen.entries, chosen.count or 4, chosen.budget, chosen.workers, parts)
        return
    count = chosen.count or 50
    wanted = jobs(chosen.kinds, chosen.entries, count, chosen.budget, not chosen.no_papers)
    if chosen.fresh:
        for job in wanted:
            (parts / f"{job.title}.json").unlink(missing_ok=True)
    torch.set_num_threads(1)
    where = provenance.provenance()
    rows = run_all(wanted, chosen.workers, parts)
    editing_report.write(rows, bounds(count), where, chosen.output)


if __name__ == "__main__":
    main()
