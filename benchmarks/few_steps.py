"""What the LCM-LoRA of the eps demo model is worth: pictures drawn and edited in few steps, with it and without.

    python benchmarks/few_steps.py [--count 120] [--seed 0]

Drawn: held-out captions by multistep consistency sampling at cfg 1, judged by the rule-based reader.
Edited: held-out pictures by InfEdit, a quarter each to another object colour, background, shape and place, judged by
the reader against the target caption, and the PSNR of what had to stay: everything two pixels or more away from the
object before and after, or for another background the inside of the object. Without ComfyUI, in float32.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "_standalone.py"))["load_package"]()
sys.path.insert(0, str(ROOT / "benchmarks"))

import numpy as np  # noqa: E402
import provenance  # noqa: E402
import torch  # noqa: E402
from torch.nn.functional import max_pool2d  # noqa: E402

from retrace.demo import lcm, measure, models, world  # noqa: E402
from retrace.inversion import Denoiser, InfEdit  # noqa: E402

KINDS = {"colour": world.COLOURS, "background": world.COLOURS, "shape": world.SHAPES, "position": world.POSITIONS}
# Model, steps, target cfg. 15 steps at 2.3 are InfEdit's own settings for models that are not distilled.
EDITS = (
    ("without", 15, 2.3),
    ("without", 4, 2.3),
    ("without", 4, 1.0),
    ("with LoRA", 4, 1.0),
    ("without", 2, 1.0),
    ("with LoRA", 2, 1.0),
)


def targets(sources: list[world.Scene], seed: int) -> tuple[list[world.Scene], np.ndarray]:
    """Each scene with one word changed, and which; the word is drawn by a seed."""
    rng = np.random.default_rng(seed)
    changed, kinds = [], []
    for i, scene in enumerate(sources):
        kind = list(KINDS)[i % len(KINDS)]
        taken = (scene.colour, scene.background) if KINDS[kind] is world.COLOURS else (getattr(scene, kind),)
        free = [word for word in KINDS[kind] if word not in taken]
        changed.append(scene.changed(**{kind: free[rng.integers(len(free))]}))
        kinds.append(kind)
    return changed, np.array(kinds)


def kept(before: np.ndarray, after: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Pixels that the edit has no business in, bool, shape (B, 64, 64)."""
    grown = max_pool2d(torch.from_numpy(np.maximum(before, after))[:, None], 5, 1, 2)[:, 0].numpy()
    return np.where((kinds == "background")[:, None, None], before == 1.0, grown == 0.0)


def decibels(pictures: np.ndarray, wanted: np.ndarray, where: np.ndarray) -> np.ndarray:
    """PSNR of each picture over some of its pixels."""
    error = ((pictures.astype(np.float64) - wanted) ** 2).mean(-1)
    return np.array([10 * np.log10(255**2 / e[w].mean()) for e, w in zip(error, where, strict=True)])


def denoiser(model: Any, captions: list[str], cfg: float) -> Denoiser:
    """The model under captions at that of the 50 distilled timesteps which is nearest to a sigma."""
    share = lcm.kept().double().numpy()
    trained = np.sqrt((1 - share) / share)
    known = slice(lcm.SKIP - 1, None, lcm.SKIP)
    guided = measure.denoiser(model, captions, cfg)
    states, _ = models.encode_text(model, captions)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        timestep = float(np.abs(np.log(trained[known]) - np.log(sigma)).argmin() * lcm.SKIP + lcm.SKIP - 1)
        if cfg != 1.0:
            return guided(x.float(), sigma, timestep).double()
        out = model.denoiser(x.float() / (1 + sigma**2) ** 0.5, torch.full((len(x),), timestep), states).sample
        return x - sigma * out.double()

    return Denoiser(denoise, "ve", float(trained[0]))


@torch.inference_mode()
def edited(model: Any, clean: torch.Tensor, pairs: tuple[list[str], list[str]], steps: int, cfg: float) -> np.ndarray:
    """Pictures that InfEdit makes of latents at strength 1, levels as the host's `sgm_uniform` on LCM sampling."""
    _, sigmas = lcm.levels(steps)
    pictures = []
    for first in range(0, len(clean), measure.BATCH):
        rows = slice(first, first + measure.BATCH)
        source, target = denoiser(model, pairs[0][rows], 1.0), denoiser(model, pairs[1][rows], cfg)
        rising = tuple(sigmas[::-1])
        pictures.append(
            measure.decode(model, InfEdit().edit(source, target, clean[rows], rising, steps, first).float())
        )
    return np.concatenate(pictures)


def right(scenes: list[world.Scene], pictures: np.ndarray) -> np.ndarray:
    """Whether the reader finds all that a scene says."""
    return np.all(list(measure.verdicts(scenes, pictures).values()), axis=0)


def draw(networks: dict[str, Any], count: int, seed: int) -> list[list[str]]:
    """Rows of the first table."""
    scenes = measure.unseen(count, seed)
    captions = [scene.caption for scene in scenes]
    rows = []
    for steps in (1, 2, 4):
        for name, model in networks.items():
            pictures = lcm.sample(model, captions, steps, 1.0, seed)
            rows.append([str(steps), name, f"{100 * right(scenes, pictures).mean():.1f}"])
    return rows


def edit(networks: dict[str, Any], count: int, seed: int) -> list[list[str]]:
    """Rows of the second table."""
    sources = measure.unseen(count, seed + 1)
    wanted, kinds = targets(sources, seed)
    pictures, before = world.render(sources, seed + 1)
    where = kept(before, world.render(wanted, seed + 1)[1], kinds)
    vae = networks["without"].vae
    with torch.inference_mode():
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        clean = (vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor).double()
    captions = ([scene.caption for scene in sources], [scene.caption for scene in wanted])
    rows = []

    def row(name: str, steps: str, cfg: str, calls: str, made: np.ndarray) -> None:
        done, stayed = right(wanted, made), decibels(made, pictures, where)
        each: Callable[[str], str] = lambda kind: f"{100 * done[kinds == kind].mean():.0f}"  # noqa: E731
        rows.append([name, steps, cfg, calls, f"{100 * done.mean():.1f}", *map(each, KINDS), f"{stayed.mean():.2f}"])
        print(" ".join(rows[-1]), flush=True)

    with torch.inference_mode():
        row("autoencoder alone", "", "", "0", measure.decode(networks["without"], clean.float()))
    for name, steps, cfg in EDITS:
        made = edited(networks[name], clean, captions, steps, cfg)
        row(name, str(steps), f"{cfg:g}", str(steps * (2 if cfg == 1.0 else 3)), made)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="captions, and pictures to edit")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    about = provenance.provenance()
    networks = {"without": models.load("eps"), "with LoRA": models.load("eps")}
    lcm.apply(networks["with LoRA"].denoiser)
    drawn = draw(networks, chosen.count, chosen.seed)
    print(provenance.table(["steps", "model", "right in %"], drawn), flush=True)
    changed = edit(networks, chosen.count, chosen.seed)
    head = ["model", "steps", "target cfg", "calls", "right in %", *KINDS, "what had to stay, dB"]
    text = "\n\n".join(
        [
            "# Few steps on the eps demo model",
            f"{chosen.count} held-out captions and edits, `python benchmarks/few_steps.py`.",
            "## Drawn",
            provenance.table(["steps", "model", "right in %"], drawn),
            "## Edited by InfEdit",
            provenance.table(head, changed),
            "\n".join(f"- {name}: {value}" for name, value in about.items()),
        ]
    )
    (provenance.RESULTS / "few_steps.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
