"""Tables, plot and contact sheet of the editing benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import provenance
from editing_attention import NOTE
from editing_methods import BASELINE, BUDGET, entries
from editing_triples import KINDS
from PIL import Image, ImageDraw, ImageFont

from retrace.backends.pictures import grid, save_image

TITLES = {"eps": "eps UNet (SD1.5 type)", "flow": "rectified-flow MMDiT (SD3 type)"}
NAME = "editing"
INK, PAPER, GRID, FRONT = "#202428", "#ffffff", "#d8dce0", "#1a7f37"
OWN, OTHER, BASE = "#1f6feb", "#9a9fa5", "#d1242f"
SHEET_SIDE = 80
Row = dict[str, Any]


def label(row: Row) -> str:
    """Return a row's name, with its guidance where that is the paper's."""
    job, entry = row["job"], entries()[row["job"]["entry"]]
    own = entry.settings[job["model"]].cfg
    return job["entry"] if job["setting"]["cfg"] == own else f"{job['entry']}, paper's cfg"


def is_own(row: Row) -> bool:
    """Whether a row is at the setting of its entry."""
    return row["job"]["masked"]


def front(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other one beats in success and in PSNR, best success first."""

    def at(row: Row) -> tuple[float, float]:
        return row["free"]["all"]["success"], row["free"]["all"]["psnr"]

    def beaten(row: Row) -> bool:
        return any(
            at(other) != at(row) and all(theirs >= ours for theirs, ours in zip(at(other), at(row), strict=True))
            for other in rows
        )

    return sorted((row for row in rows if not beaten(row)), key=at, reverse=True)


def _sorted(rows: Sequence[Row], variant: str) -> list[Row]:
    return sorted(rows, key=lambda row: (-row[variant]["all"]["success"], -row[variant]["all"]["psnr"]))


def _figures(part: dict[str, dict[str, float]]) -> list[str]:
    every = part["all"]
    return [
        f"{every['success']:.1f}",
        f"{every['changed']:.1f}",
        f"{every['psnr']:.2f}",
        f"{every['psnr_rebuilt']:.2f}",
        f"{every['ssim']:.4f}",
        f"{every['structure']:.1f}",
    ]


def free_table(rows: Sequence[Row], bounds: Row) -> str:
    """Return the table of the edits of the whole picture, best first."""
    head = [
        "method",
        "cfg",
        "network calls",
        "success %",
        "wanted change alone %",
        "PSNR outside dB",
        "the same, of the VAE's source",
        "SSIM outside",
        "structure distance",
        *(f"success %: {title}" for title in KINDS.values()),
        "s a picture",
    ]
    cells = []
    for row in _sorted(rows, "free"):
        bold = "**" if row["job"]["entry"] == BASELINE else ""
        kinds = [f"{row['free'][kind]['success']:.0f}" for kind in KINDS]
        call = f"{row['calls']}{'*' if row['calls'] > row['job']['budget'] else ''}"
        cells.append(
            [
                f"{bold}{label(row)}{bold}",
                f"{row['job']['setting']['cfg']:g}",
                call,
                *_figures(row["free"]),
                *kinds,
                f"{row['seconds']:.2f}",
            ]
        )
    for key, title in (("target", "target as drawn, through the VAE"), ("source", "source, through the VAE")):
        kinds = [f"{bounds[key][kind]['success']:.0f}" for kind in KINDS]
        cells.append([f"*{title}*", "", "", *_figures(bounds[key]), *kinds, ""])
    return provenance.table(head, cells)


def masked_table(rows: Sequence[Row], bounds: Row) -> str:
    """Return the table of the edits inside a mask, best first."""
    head = [
        "method",
        "cfg",
        "success %",
        "wanted change alone %",
        "PSNR outside dB",
        "the same, of the VAE's source",
        "SSIM outside",
        "latent outside",
    ]
    cells = [
        [
            label(row),
            f"{row['job']['setting']['cfg']:g}",
            *_figures(row["masked"])[:5],
            "bit-equal" if row["equal_outside"] else "CHANGED",
        ]
        for row in _sorted(rows, "masked")
    ]
    cells.append(["*source, through the VAE*", "", *_figures(bounds["source"])[:5], ""])
    return provenance.table(head, cells)


def verdict(rows: Sequence[Row]) -> str:
    """Say in words which rows win and which do not."""
    base = next((row for row in rows if row["job"]["entry"] == BASELINE), None)
    own = [row for row in rows if is_own(row) and row["job"]["entry"] != BASELINE]
    best = front(own)
    lines = [
        "- Not beaten by any other in both success and PSNR outside: "
        + "; ".join(
            f"{label(row)} ({row['free']['all']['success']:.1f} %, {row['free']['all']['psnr']:.2f} dB)" for row in best
        )
        + "."
    ]
    if base is None:
        return lines[0]
    at = base["free"]["all"]
    parts: dict[str, list[str]] = {"both": [], "success": [], "psnr": [], "none": []}
    for row in _sorted(own, "free"):
        figures = row["free"]["all"]
        better = [name for name in ("success", "psnr") if figures[name] > at[name]]
        parts["both" if len(better) == 2 else better[0] if better else "none"].append(label(row))
    said = {
        "both": "Better than the baseline in both",
        "success": "Better in success, not in PSNR",
        "psnr": "Better in PSNR, not in success",
        "none": "No better than the baseline in either",
    }
    lines += [f"- {said[key]}: {', '.join(names)}." for key, names in parts.items() if names]
    return "\n".join(lines)


def attention_table(rows: Sequence[Row]) -> str | None:
    """Return each row that reads from the source inside attention beside its plain twin, None without such rows."""
    cells = []
    for row in rows:
        name, setting = row["job"]["entry"], row["job"]["setting"]
        if " + " not in name:
            continue
        method = name.split(" + ")[0]
        twins = [
            other
            for other in rows
            if other["job"]["setting"] == setting
            and (other["job"]["entry"] == method or (method, other["job"]["entry"]) == ("ddim", BASELINE))
        ]
        if not twins:
            continue
        plain, read = twins[0]["free"]["all"], row["free"]["all"]
        cells.append(
            [
                name,
                f"{setting['cfg']:g}",
                f"{plain['success']:.1f}",
                f"{read['success']:.1f}",
                f"{plain['psnr_rebuilt']:.2f}",
                f"{read['psnr_rebuilt']:.2f}",
                f"{read['psnr_rebuilt'] - plain['psnr_rebuilt']:+.2f}",
            ]
        )
    head = ["method", "cfg", "success % without", "with", "PSNR outside, of the VAE's source, without", "with", "gain"]
    return provenance.table(head, cells) if cells else None


def above_baseline(rows: Sequence[Row]) -> str:
    """Say how far over the baseline rows at no lower success come outside, against the source through the VAE."""
    base = next((row["free"]["all"] for row in rows if row["job"]["entry"] == BASELINE), None)
    if base is None:
        return ""
    ahead = [row for row in rows if is_own(row) and row["free"]["all"]["success"] >= base["success"]]
    gains = [
        (row["free"]["all"]["psnr_rebuilt"] - base["psnr_rebuilt"], label(row))
        for row in ahead
        if row["job"]["entry"] != BASELINE
    ]
    told = "; ".join(f"{name} {gain:+.1f} dB" for gain, name in sorted(gains, reverse=True))
    return (
        "- At no lower success than the baseline, PSNR outside of the VAE's source over its "
        f"{base['psnr_rebuilt']:.2f} dB: {told or 'none'}."
    )


def plot(found: dict[str, list[Row]], bounds: Row, path: Path) -> None:
    """Draw PSNR outside against success, one panel a model; numbers stand for the rows of the legend."""
    width, height, left, top, bottom, legend = 520, 500, 60, 48, 58, 300
    names = list(dict.fromkeys(label(row) for rows in found.values() for row in rows))
    canvas = Image.new("RGB", (width * len(found) + legend, max(height, top + 20 * len(names) + 40)), PAPER)
    draw, font, small = ImageDraw.Draw(canvas), ImageFont.load_default(14), ImageFont.load_default(12)
    bound = bounds["source"]["all"]["psnr"]
    values = [row["free"]["all"]["psnr"] for rows in found.values() for row in rows]
    low, high = 5 * math.floor(min(values) / 5), 5 * math.ceil(max(*values, bound) / 5)
    for panel, (kind, rows) in enumerate(found.items()):
        x0, x1, y0, y1 = panel * width + left, (panel + 1) * width - 24, top, height - bottom

        def place(success: float, decibels: float, box=(x0, x1, y0, y1)) -> tuple[float, float]:
            right, up = success / 100.0, (decibels - low) / (high - low)
            return box[0] + right * (box[1] - box[0]), box[3] - up * (box[3] - box[2])

        draw.text(((x0 + x1) / 2, 24), TITLES[kind], INK, font, anchor="mm")
        draw.text(((x0 + x1) / 2, height - 16), "edits read as wanted, %", INK, font, anchor="mm")
        for percent in range(0, 101, 20):
            x, _ = place(percent, low)
            draw.line((x, y0, x, y1), GRID)
            draw.text((x, y1 + 14), str(percent), INK, font, anchor="mm")
        for decibels in range(low, high + 1, 5):
            _, y = place(0, decibels)
            draw.line((x0, y, x1, y), GRID)
            draw.text((x0 - 8, y), str(decibels), INK, font, anchor="rm")
        draw.line((*place(0, bound), *place(100, bound)), FRONT)
        draw.text(place(1, bound), "the VAE alone", FRONT, small, anchor="ld")
        ceiling = bounds["target"]["all"]["success"]
        draw.line((*place(ceiling, low), *place(ceiling, high)), FRONT)
        best = [place(r["free"]["all"]["success"], r["free"]["all"]["psnr"]) for r in front([*filter(is_own, rows)])]
        draw.line(best, FRONT, 2)
        draw.rectangle((x0, y0, x1, y1), outline=INK)
        # The rows at their own setting are drawn last, over the others.
        for row in sorted(rows, key=is_own):
            x, y = place(row["free"]["all"]["success"], row["free"]["all"]["psnr"])
            colour = BASE if row["job"]["entry"] == BASELINE else OWN if is_own(row) else OTHER
            draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill=colour, outline=PAPER)
            draw.text((x, y), str(names.index(label(row)) + 1), PAPER, small, anchor="mm")
    for i, name in enumerate(names):
        draw.text((width * len(found) + 8, top + 20 * i), f"{i + 1}  {name}", INK, font, anchor="lm")
    draw.text((8, 24), "PSNR dB", INK, font, anchor="lm")
    save_image(canvas, path)


def sheet(found: dict[str, list[Row]], bounds: Row, path: Path) -> None:
    """Draw the first triple of each kind: the source and what every row at its own setting made of it."""
    rows = []
    for kind, part in found.items():
        shown = [row for row in part if is_own(row)]
        for i, (_, source, target) in enumerate(bounds["captions"]):
            cells = [("source", _image(bounds["shown"][i]))]
            cells += [(label(row).replace(", ", ",\n"), _image(row["shown"][i])) for row in shown]
            rows.append((f"{kind}: {source}  ->  {target}", cells))
    save_image(grid(rows, SHEET_SIDE), path)


def _image(pixels: Sequence[Any]) -> Image.Image:
    return Image.fromarray(np.array(pixels, np.uint8), "RGB")


def write(rows: list[Row], bounds: Row, where: dict[str, str], output: Path) -> None:
    """Write editing.md, .json, .png (plot) and .jpg (contact sheet) into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    count = rows[0]["job"]["count"]
    budget = rows[0]["job"]["budget"]
    measured = [row for row in rows if "refused" not in row]
    found = {kind: [row for row in measured if row["job"]["model"] == kind] for kind in TITLES}
    found = {kind: part for kind, part in found.items() if part}
    plot(found, bounds, output / f"{NAME}.png")
    sheet(found, bounds, output / f"{NAME}.jpg")
    total = count * len(KINDS)
    names = dict.fromkeys(row["job"]["entry"] for row in measured)
    by_hand = ", ".join(name for name in names if entries()[name].by_hand)
    untuned = f", but for those of {by_hand}, which were chosen by hand" if by_hand else ""
    parts = [
        "# Edits of held-out pictures",
        f"{total} triples of a picture of the Shapes world, its caption and a target caption, {count} for each kind of "
        f"edit ({', '.join(KINDS.values())}); no combination of shape and colours in them was trained on. Every method "
        f"may make {budget} calls of the network for a picture, up and down together, a guided step counting two; with "
        "a * one goes beyond. Networks in float32, states in float64, one thread.",
        "- *success*: the rule-based reader sees the target in every word: the wanted change, and size, colour, shape, "
        "place and background as they were. *Wanted change alone* asks for that word only.\n"
        "- *outside*: pixels that the edit has no reason to touch. For a new background that is the object; else all "
        "but the object and where the target's object would stand. PSNR is the mean over pictures, against the "
        "original; what the VAE alone costs is the bound. *The same, of the VAE's source* is against the source "
        "through the VAE, so that only what the edit itself moved counts; 8 bits a channel end it at about 59 dB. "
        "Inside a mask of latent cells the latent outside is the source's, but the decoder looks across the border.\n"
        "- *structure distance*: mean squared difference of the cosine self-similarity of features behind the middle "
        "block of the demo VAE's encoder, times 1000, from the target as the world draws it with the source's shades "
        "and place.\n"
        "- *cfg* is the guidance under the target; all invert at cfg 1, and direct inversion records "
        "its correction at the cfg of the target. The settings come from `editing.py --tune` on 16 pictures whose "
        "combinations were trained on: the best sum of success in % and PSNR in dB at cfg 1, 2 and 3, all from pure "
        f"noise{untuned}. A row named after the paper's cfg, where there is one, stands beside.",
        f"The reader itself: the sources through the VAE are read right in {bounds['source_read_right']:.1f} %, the "
        f"targets as the world draws them in {bounds['target']['all']['success']:.1f} %, which is the ceiling of "
        f"success. The standard error of a share is at most {50.0 / math.sqrt(total):.1f} points.",
        f"![success against PSNR outside]({NAME}.png)",
        f"![the first triple of each kind]({NAME}.jpg)",
    ]
    for kind, part in found.items():
        said = "\n".join(filter(None, (verdict(part), above_baseline(part))))
        parts += [f"## {TITLES[kind]}", free_table(part, bounds), said]
        if (twins := attention_table(part)) is not None:
            parts += ["The same methods with and without what attention reads from the source:", twins]
        masked = max((row.get("masked_count", 0) for row in part), default=0)
        parts += [
            f"Inside a mask of the pixels that may change, the first {masked} triples:",
            masked_table([*filter(is_own, part)], bounds),
        ]
    told = [f"- {entry.name}: {entry.note}." for entry in entries().values() if entry.note and entry.name in names]
    parts += ["\n".join(told)] if told else []
    if any(" + " in name for name in names):
        parts += ["## What was tried inside attention", NOTE.strip()]
    refused = [f"- {row['job']['model']}, {label(row)}: {row['refused']}" for row in rows if "refused" in row]
    parts += ["Refused:\n" + "\n".join(refused)] if refused else []
    commits = sorted({row["provenance"]["commit"] for row in rows})
    if len(commits) > 1:
        parts.append(f"The rows were measured at several commits: {', '.join(commits)}.")
    kept = [{name: value for name, value in row.items() if name != "shown"} for row in rows]
    limits = {name: value for name, value in bounds.items() if name != "shown"}
    data = {"provenance": where, "budget": BUDGET, "bounds": limits, "rows": kept}
    provenance.write(NAME, "\n\n".join(parts), data, output)
