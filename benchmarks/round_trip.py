"""Relative round-trip error against model calls, for every registered method, on both demo models.

    python benchmarks/round_trip.py [--steps 5 10 20 40] [--pictures 8] [--methods euler midpoint]

Held-out pictures of the Shapes world are inverted all the way under their captions and reconstructed, without ComfyUI.
The error is ||back - x0|| / ||x0|| in the latent, the calls are those of both directions, and the noise figure is the
standard deviation of the inverted noise over the expected one.
"""

from __future__ import annotations

import argparse
import math
import runpy
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "_standalone.py"))["load_package"]()
sys.path.insert(0, str(ROOT / "benchmarks"))

import provenance  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from retrace.backends.shapes import shapes_model  # noqa: E402
from retrace.demo import world  # noqa: E402
from retrace.inversion import METHODS, invert, noise_std, replay  # noqa: E402

KINDS = {"eps": "eps UNet (SD1.5 type)", "flow": "rectified-flow MMDiT (SD3 type)"}
# Every how many of the held-out scenes one is taken: prime to the world's own periods, so that the words vary.
STRIDE = 37
# Below this the axis of errors ends: rounding of float64 states.
FLOOR = 1e-16
# The comparison that the table closes with: 20 Euler steps against midpoint at the same number of calls.
EULER_STEPS = 20
INK, PAPER, GRID = "#202428", "#ffffff", "#d8dce0"
COLOURS = (
    *("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#0a7ea4", "#57606a", "#bc4c00", "#116329"),
    *("#54aeff", "#fa4549", "#d4a72c"),
)


def pictures(count: int) -> tuple[torch.Tensor, list[str]]:
    """Return held-out pictures, shape (count, 3, 64, 64), values in [0, 1], and their captions."""
    scenes = list(world.scenes(held_out=True))[::STRIDE]
    if not 1 <= count <= len(scenes):
        raise SystemExit(f"--pictures must be between 1 and {len(scenes)}, got {count}; choose fewer.")
    chosen = scenes[:count]
    drawn, _ = world.render(chosen, seed=0)
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255.0, [scene.caption for scene in chosen]


def round_trips(kind: str, methods: Sequence[str], steps: Sequence[int], count: int) -> list[dict[str, Any]]:
    """Measure every method at every number of steps on one model."""
    model = shapes_model(kind)
    drawn, captions = pictures(count)
    found = []
    with torch.no_grad():  # some methods differentiate the model, which inference mode forbids
        x0 = model.encode(drawn)
        denoiser = model.denoiser(x0, model.prompt(captions))
        for name in methods:
            for n in steps:
                called = denoiser.evaluations
                row = {"model": kind, "method": name, "steps": n}
                try:
                    record = invert(denoiser, x0, model.schedule(*x0.shape[2:]).grid(n), n, name)
                    back = replay(record, denoiser)
                except ValueError as error:
                    # A method may ask for more steps than these, or leave the finite numbers: that is a result too.
                    found.append({**row, "refused": str(error)})
                    continue
                errors = ((back - x0).flatten(1).norm(dim=1) / x0.flatten(1).norm(dim=1)).tolist()
                found.append(
                    {
                        **row,
                        "calls": denoiser.evaluations - called,
                        "errors": errors,
                        "error": statistics.median(errors),
                        "noise_std": noise_std(record.x, record.x0, record.sigma, record.space),
                    }
                )
                print(f"{kind} {name} {n} steps: {found[-1]['calls']} calls, {found[-1]['error']:.2e}", file=sys.stderr)
    return found


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of one model."""
    head = ["method", "steps", "calls, up and down", "relative error (median)", "worst picture", "noise std / expected"]
    cells = []
    for row in rows:
        if "refused" in row:
            cells.append([row["method"], str(row["steps"]), "", "refused", row["refused"], ""])
            continue
        figures = [f"{row['error']:.2e}", f"{max(row['errors']):.2e}", f"{row['noise_std']:.3f}"]
        cells.append([row["method"], str(row["steps"]), str(row["calls"]), *figures])
    return provenance.table(head, cells)


def euler_against_midpoint(rows: Sequence[dict[str, Any]]) -> str | None:
    """Return the sentence that compares the two at equal calls, None when one of them was not measured."""
    measured = {(row["method"], row.get("calls")): row for row in rows if row["method"] in ("euler", "midpoint")}
    euler = next((row for row in rows if row["method"] == "euler" and row["steps"] == EULER_STEPS), None)
    if euler is None or ("midpoint", euler["calls"]) not in measured:
        return None
    midpoint = measured["midpoint", euler["calls"]]
    return (
        f"At {euler['calls']} calls: Euler with {euler['steps']} steps {euler['error']:.2e}, midpoint with "
        f"{midpoint['steps']} steps {midpoint['error']:.2e}, which is {euler['error'] / midpoint['error']:.1f} times "
        "nearer to the source."
    )


def plot(found: dict[str, list[dict[str, Any]]], methods: Sequence[str], path: Path) -> None:
    """Draw error against calls, one panel a model, both axes logarithmic."""
    width, height, left, top, bottom, legend = 560, 470, 76, 48, 58, 150
    canvas = Image.new("RGB", (width * len(found) + legend, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    rows = [row for part in found.values() for row in part if "error" in row]
    calls = [row["calls"] for row in rows]
    errors = [max(row["error"], FLOOR) for row in rows]
    x_low, x_high = math.log10(min(calls)) - 0.05, math.log10(max(calls)) + 0.05
    y_low, y_high = math.floor(math.log10(min(errors))), math.ceil(math.log10(max(errors)))
    for panel, (kind, part) in enumerate(found.items()):
        x0, x1 = panel * width + left, (panel + 1) * width - 20
        y0, y1 = top, height - bottom

        place = partial(_place, (x0, y0, x1, y1), (x_low, x_high), (y_low, y_high))
        draw.text(((x0 + x1) / 2, 24), KINDS[kind], INK, font, anchor="mm")
        draw.text(((x0 + x1) / 2, height - 16), "model calls, up and down", INK, font, anchor="mm")
        every = 1 if y_high - y_low <= 8 else 2
        for power in range(y_low, y_high + 1, every):
            _, y = place(calls[0], 10.0**power)
            draw.line((x0, y, x1, y), GRID)
            draw.text((x0 - 8, y), f"1e{power}", INK, font, anchor="rm")
        for n in (5, 10, 20, 40, 80, 160, 320, 640):
            if x_low <= math.log10(n) <= x_high:
                x, _ = place(n, errors[0])
                draw.line((x, y0, x, y1), GRID)
                draw.text((x, y1 + 14), str(n), INK, font, anchor="mm")
        draw.rectangle((x0, y0, x1, y1), outline=INK)
        for name, colour in zip(methods, COLOURS, strict=False):
            points = [place(row["calls"], row["error"]) for row in part if row["method"] == name and "error" in row]
            draw.line(points, colour, 2)
            for x, y in points:
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    for i, (name, colour) in enumerate(zip(methods, COLOURS, strict=False)):
        x, y = width * len(found) + 4, top + 12 + 24 * i
        draw.line((x, y, x + 26, y), colour, 2)
        draw.ellipse((x + 9, y - 4, x + 17, y + 4), fill=colour)
        draw.text((x + 34, y), name, INK, font, anchor="lm")
    draw.text((8, 24), "error", INK, font, anchor="lm")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, optimize=True)


def _place(
    box: tuple[int, int, int, int], across: tuple[float, float], up: tuple[int, int], calls: float, error: float
) -> tuple[float, float]:
    """Return where a point of the plot lies; across and up are the axes' ranges in powers of ten."""
    x0, y0, x1, y1 = box
    x = (math.log10(calls) - across[0]) / (across[1] - across[0])
    y = (math.log10(max(error, FLOOR)) - up[0]) / max(1, up[1] - up[0])
    return x0 + x * (x1 - x0), y1 - y * (y1 - y0)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 40], help="steps of the schedule")
    parser.add_argument("--pictures", type=int, default=8, help="held-out pictures (8)")
    parser.add_argument("--methods", nargs="+", default=sorted(METHODS), choices=sorted(METHODS), help="all by default")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="demo models, both")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    where = provenance.provenance()
    found = {kind: round_trips(kind, chosen.methods, chosen.steps, chosen.pictures) for kind in chosen.kinds}
    parts = [
        "# Round trips of the methods",
        f"{chosen.pictures} held-out pictures of the Shapes world, inverted all the way under their captions at cfg 1 "
        "and reconstructed; states in float64, networks in float32. A call is one forward of the network.",
        "![error against model calls](round_trip.png)",
    ]
    for kind, rows in found.items():
        parts += [f"## {KINDS[kind]}", as_table(rows)]
        comparison = euler_against_midpoint(rows)
        parts += [comparison] if comparison else []
    plot(found, chosen.methods, provenance.RESULTS / "round_trip.png")
    provenance.write("round_trip", "\n\n".join(parts), {"provenance": where, "found": found})


if __name__ == "__main__":
    main()
