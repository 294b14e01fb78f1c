"""What rules cost: time of all attention calls of one evaluation, and memory of a cache over a run.

    python benchmarks/attention.py [--repeats 5] [--size 512] [--only time | memory]

Two rows, source and target, through the 32 attention calls of an SD1.5 UNet at a picture size, and through the joint
calls of a transformer with 24 heads; random operands, float32, processor time. Nothing else of a network runs, so that
every ratio is an upper bound of what a user sees. The same prompt-to-prompt edit with explicit probabilities runs in
turns with ours. Memory is counted on tensors of the real size without numbers, see attention_memory.py.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "_standalone.py"))["load_package"]()

import attention_memory  # noqa: E402
import torch  # noqa: E402
from provenance import provenance, table, write  # noqa: E402
from torch import Tensor  # noqa: E402

from retrace.attention import (  # noqa: E402
    AttentionPlan,
    Call,
    Probe,
    Rows,
    Settings,
    Site,
    Step,
    get_preset,
)

HEADS, TEXT, JOINT_TEXT = 8, 77, 256
# Self- and cross-attention of SD1.5: stack and block, side as a share of the latent's, channels.
BLOCKS = [
    *((("input", 1), 1, 320), (("input", 2), 1, 320), (("input", 4), 2, 640), (("input", 5), 2, 640)),
    *((("input", 7), 4, 1280), (("input", 8), 4, 1280), (("middle", 0), 8, 1280)),
    *((("output", 3 + i), 4, 1280) for i in range(3)),
    *((("output", 6 + i), 2, 640) for i in range(3)),
    *((("output", 9 + i), 1, 320) for i in range(3)),
]
ROWS = Rows(("source", "target"), ("cond", "cond"), (0, 0))
STEP = Step(0, 50, 1.0)
# Wanted at most, over the same two rows without rules.
WANTED = {"swap": 1.10, "value map": 1.10, "two terms": 1.6, "probe": 1.15, "explicit": None}


class Words:
    """A token map that replaces a word: half of the words are mapped, or all."""

    def __init__(self, all_words: bool, length: int = TEXT) -> None:
        self.alpha = torch.ones(length) if all_words else (torch.arange(length) % 2).float()

    def taken(self, site: Site, step: Step) -> Tensor:
        """S diag(alpha)."""
        return torch.eye(len(self.alpha)).roll(1, 0) * self.alpha

    def own(self, site: Site, step: Step) -> Tensor:
        """1 - alpha."""
        return 1.0 - self.alpha

    def reweighted(self, site: Site, step: Step) -> Tensor:
        """Weights."""
        return 1.0 + self.alpha

    def is_active(self, step: Step) -> bool:
        """Always."""
        return True


class Ignored:
    """An accumulator that keeps nothing."""

    def add(self, *_: Any) -> None:
        """Forget."""


def unet(size: int) -> list[tuple[Site, tuple[Tensor, Tensor, Tensor]]]:
    """Sites of SD1.5 with operands as the host lays them out, for a picture of size x size pixels."""
    latent = (1, size // 8, size // 8)
    calls = []
    for number, ((stack, index), down, channels) in enumerate(BLOCKS):
        side = latent[1] // down
        grid, tokens, depth = (1, side, side), side * side, number / (len(BLOCKS) - 1)
        place = (stack, index, 0)
        plain = Site(*place, "self", number, depth, (0, tokens), None, grid, latent)
        crossed = Site(*place, "cross", number, depth, (0, tokens), (0, TEXT), grid, latent)
        calls.append((plain, operands(tokens, tokens, channels)))
        calls.append((crossed, operands(tokens, TEXT, channels)))
    return calls


def transformer(size: int) -> list[tuple[Site, tuple[Tensor, Tensor, Tensor]]]:
    """One joint call of a Flux block with 256 text tokens."""
    side, text = size // 16, JOINT_TEXT
    tokens = side * side
    site = Site("single", 0, 0, "joint", 0, 0.5, (text, text + tokens), (0, text), (1, side, side), (1, side, side))
    return [(site, operands(text + tokens, text + tokens, 24 * 128, heads=24))]


def operands(queries: int, keys: int, channels: int, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    """Unit normals, (2, heads, tokens, d) seen through (2, tokens, channels)."""

    def one(tokens: int) -> Tensor:
        return torch.randn(2, tokens, channels).unflatten(2, (heads, -1)).transpose(1, 2)

    return one(queries), one(keys), one(keys)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The ordinary call."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def explicit(site: Site, q: Tensor, k: Tensor, v: Tensor, words: Words) -> Tensor:
    """Prompt-to-prompt on probabilities: self maps up to half the latent's side, words everywhere."""
    if site.kind == "self" and site.grid[1] * 2 > site.latent[1]:
        return attend(q, k, v)
    maps = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    if site.kind == "self":
        maps[1] = maps[0]
    else:
        maps[1] = maps[0] @ words.taken(site, STEP) + maps[1] * words.own(site, STEP)
    return maps @ v


def plans(family: str) -> list[tuple[str, str, AttentionPlan]]:
    """Name, kind of cost and plan of what is measured; every rule acts on every site that it can."""
    about: dict[str, Any] = {"layers": "all", "start": 0.0, "end": 1.0}

    def preset(name: str, variant: str = "", **more: Any) -> AttentionPlan:
        return get_preset(name).build(Settings(variant=variant, **{**about, **more}), family)

    length = TEXT if family == "sd15" else JOINT_TEXT
    some, every = Words(False, length), Words(True, length)
    off = {"start": 0.0, "end": 0.0}
    listed = [
        ("masactrl k, v", "swap", preset("masactrl")),
        ("structure q, k", "swap", preset("structure")),
        ("values", "swap", preset("rf_edit", group="image")),
        ("reweight", "value map", preset("p2p", "reweight", text=some)),
        ("replace, all words", "value map", preset("p2p", "joint", text=every, **off)),
        ("replace, some words", "two terms", preset("p2p", "text", text=some, **off)),
        ("prompt-to-prompt", "two terms", preset("p2p", "text", text=some)),
    ]
    limit = 0.25 if family == "sd15" else None
    probe = Probe("words", (1, 2), Ignored, limit=limit)
    return [*listed, ("word maps", "probe", AttentionPlan(probes=(probe,)))]


def seconds(run: Callable[[], Any]) -> float:
    """Processor time of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measured(calls: list[Any], family: str, repeats: int) -> list[dict[str, Any]]:
    """Median and range of the ratios to plain calls, all in turns."""
    words = Words(False)
    runs: dict[str, tuple[str, Callable[[], Any]]] = {}
    for name, kind, plan in plans(family):
        run = plan.start()
        run.chunks = ("cond",)
        runs[name] = (kind, lambda run=run: [run.run(site, ROWS, STEP, Call(*each, attend)) for site, each in calls])
    if family == "sd15":
        runs["prompt-to-prompt, explicit"] = (
            "explicit",
            lambda: [explicit(site, *each, words) for site, each in calls],
        )

    def plain() -> None:
        for _, each in calls:
            attend(*each)

    plain()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (_, run) in runs.items():
            before = seconds(plain)
            found[name].append(seconds(run) / before)
    return [
        {"network": family, "edit": name, "kind": runs[name][0], "median": statistics.median(each), "all": sorted(each)}
        for name, each in found.items()
    ]


def time_part(size: int, repeats: int) -> tuple[str, list[dict[str, Any]]]:
    """Ratios as text, and their data."""
    with torch.inference_mode():
        rows = measured(unet(size), "sd15", repeats)
        rows += measured(transformer(size), "flux", repeats)
    cells = []
    for row in rows:
        wanted = WANTED[row["kind"]]
        least, most = row["all"][0], row["all"][-1]
        limit = "-" if wanted is None else f"{wanted:.2f}"
        cells.append([row["network"], row["edit"], f"**{row['median']:.2f}**", f"{least:.2f} to {most:.2f}", limit])
    text = (
        "# Cost of rules inside attention\n\n"
        f"All attention calls of an evaluation of two rows at {size} x {size} pixels, over the same calls "
        f"without rules: processor time, float32, {repeats} runs in turns. The rest of a network is left out, so "
        "that these are upper bounds.\n\n" + table(["network", "edit", "ratio (median)", "all", "wanted"], cells)
    )
    return text, rows


def memory_part() -> tuple[str, list[list[str]]]:
    """What a cache holds as text, and its data."""
    rows = attention_memory.rows_of([attention_memory.rf_edit(), attention_memory.masactrl()])
    text = (
        "## Memory of a cache\n\n"
        "A source is evaluated and leaves what the edit reads, then the edit is evaluated. Gigabytes in float16, "
        "counted from outside of the cache over all evaluations: what the rules ask for, the limit of the whole, what "
        "of it may stay on the device; what lay on the device and in main memory between two evaluations at most; and "
        "the most that was alive on the device in any call beyond a run without rules, with what is on its way to main "
        "memory or back.\n\n" + table(attention_memory.HEAD, rows)
    )
    return text, rows


def main() -> None:
    """Measure and write benchmarks/results/attention.md, or attention_time.md and attention_memory.md alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--only", choices=["time", "memory"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    about = provenance()
    data: dict[str, Any] = {"provenance": about, "size": given.size}
    texts = []
    if given.only != "memory":
        text, data["rows"] = time_part(given.size, given.repeats)
        texts.append(text)
    if given.only != "time":
        text, data["memory"] = memory_part()
        texts.append(text)
    write("attention" if given.only is None else f"attention_{given.only}", "\n\n".join(texts), data)


if __name__ == "__main__":
    main()
