"""Restoration of held-out Shapes pictures by both demo models, against plain baselines, without ComfyUI.

    python benchmarks/restoration.py [--pictures 8] [--steps 30] [--kinds eps flow] [--damages mask small ...]

Every picture is damaged, with noise, and restored under its caption at cfg 1 from one seed. PSNR and SSIM are against
the truth, chi2 is |A x - y|^2 / (m sigma^2) with the noise that was added alone, `reads` is the share of pictures in
which the rule-based reader finds all five words of the caption. The autoencoder's own round trip of the truth is the
ceiling of everything that comes through it.
"""

from __future__ import annotations

import argparse
import functools
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "_standalone.py"))["load_package"]()
sys.path.insert(0, str(ROOT / "benchmarks"))

import provenance  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from retrace.backends.shapes import shapes_model  # noqa: E402
from retrace.demo import measure, world  # noqa: E402
from retrace.inversion.metrics import ssim  # noqa: E402
from retrace.restoration.levels import weights  # noqa: E402
from retrace.restoration.measurement import Measurement  # noqa: E402
from retrace.restoration.operators import (  # noqa: E402
    JPEG,
    BlackWhite,
    GaussianBlur,
    LowResolution,
    Mask,
    Noise,
    Operator,
    quality_tables,
)
from retrace.restoration.solvers.dds import dds  # noqa: E402
from retrace.restoration.solvers.fresh import fresh_noise  # noqa: E402
from retrace.restoration.solvers.latent import DecodeCorrectEncode, EncoderAdjoint, autoencoder_noise  # noqa: E402

SHAPE = (3, 64, 64)
LEVELS = 127.5
NOISE = 10.0  # levels of 255, where nothing else is said
SEED = 11


def hole() -> Tensor:
    """A square of 24 pixels is missing."""
    keep = torch.ones(1, 64, 64)
    keep[:, 20:44, 24:48] = 0.0
    return keep


# Name: the operator, the noise that is added, what it is in words.
DAMAGES: dict[str, tuple[Callable[[], Operator], float, str]] = {
    "mask": (lambda: Mask(SHAPE, hole()), NOISE, "24 x 24 of 64 x 64 missing"),
    "small": (lambda: LowResolution(SHAPE, 4, "bicubic"), NOISE, "4 times smaller, bicubic"),
    "blur": (lambda: GaussianBlur(SHAPE, 2.0), NOISE, "Gaussian blur of 2 pixels"),
    "grey": (lambda: BlackWhite(SHAPE), NOISE, "black and white"),
    "jpeg": (lambda: JPEG(SHAPE, quality_tables(10)), 0.0, "JPEG of quality 10, 4:2:0"),
    "noise": (lambda: Noise(SHAPE), 40.0, "noise of 40 levels"),
}


class Bench:
    """One model with its pictures, and how often its parts were asked."""

    def __init__(self, kind: str, count: int, steps: int) -> None:
        self.scenes = measure.unseen(count, 1)
        drawn, _ = world.render(self.scenes, 5)
        self.truth = torch.from_numpy(drawn).float().permute(0, 3, 1, 2) / LEVELS - 1.0
        self.model = shapes_model(kind)
        self._vae = self.model.vae
        self._scale = self._vae.config.scaling_factor
        state = torch.zeros(count, 4, 16, 16)
        self.state = state
        self.field = self.model.field(state, self.model.prompt([scene.caption for scene in self.scenes]))
        self.sigmas = tuple(float(s) for s in reversed(self.model.levels(16, 16).grid(steps)))
        self.calls = {"decode": 0, "encode": 0}

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of latents, not clipped."""
        self.calls["decode"] += 1
        return self._vae.decode(z / self._scale).sample

    def encode(self, x: Tensor) -> Tensor:
        """Latents of pictures."""
        self.calls["encode"] += 1
        return self._vae.encode(x).latent_dist.mean * self._scale

    def sample(self, consistency: Any) -> Tensor:
        """Pictures by DDS from pure noise."""
        fresh = fresh_noise(self.state, SEED)
        b = weights(self.sigmas[0], self.field.space)[1]
        return self.decode(dds(self.field, b * fresh(), self.sigmas, self.field.space, consistency, fresh))


def methods(bench: Bench, measured: Measurement, name: str) -> dict[str, Callable[[], Tensor]]:
    """What is compared, by name."""
    guess = measured.initial()

    def with_loss() -> Measurement:
        return measured.with_noise(autoencoder_noise(measured, guess, bench.decode, bench.encode))

    found: dict[str, Callable[[], Tensor]] = {
        "first guess (Tikhonov, JPEG decode)": lambda: guess,
        "first guess through the VAE": lambda: bench.decode(bench.encode(guess)),
        "model alone, no photo": lambda: bench.sample(lambda d, *_: d),
    }
    if name == "small":
        up = functools.partial(torch.nn.functional.interpolate, size=SHAPE[1:], mode="bicubic", align_corners=False)
        found["bicubic"] = lambda: up(measured.y * measured.operator.norm).clamp(-1.0, 1.0)
    if name == "mask":
        # What a stock sampler does with a noise mask: the latent outside is that of the photo.
        cells = torch.nn.functional.max_pool2d(1.0 - hole()[None], 4)
        kept = bench.encode(guess)
        found["latent mask (stock)"] = lambda: bench.sample(lambda d, *_: cells * d + (1 - cells) * kept)
    found["DDS, encoder adjoint"] = lambda: bench.sample(EncoderAdjoint(with_loss(), bench.decode, bench.encode))
    found["DDS, decode correct encode"] = lambda: bench.sample(
        DecodeCorrectEncode(with_loss(), bench.decode, bench.encode)
    )
    return found


def figures(bench: Bench, measured: Measurement, restored: Tensor) -> dict[str, float]:
    """Figures of restored pictures."""
    shown = restored.clamp(-1.0, 1.0)
    error = (shown - bench.truth).square().flatten(1).mean(dim=1)
    pictures = ((shown + 1.0) * LEVELS).round().byte().permute(0, 2, 3, 1).numpy()
    read = measure.verdicts(bench.scenes, pictures)
    words = [read[title] for title in measure.COLUMNS]
    return {
        "psnr": float((10.0 * torch.log10(4.0 / error)).mean()),
        "ssim": ssim((shown + 1.0) / 2.0, (bench.truth + 1.0) / 2.0),
        "chi2": float(measured.chi2(restored).mean()),
        "reads": float(torch.tensor([[bool(v) for v in column] for column in words]).all(dim=0).float().mean()),
    }


def run(kind: str, names: Sequence[str], count: int, steps: int) -> list[dict[str, Any]]:
    """Measure one model."""
    bench = Bench(kind, count, steps)
    rows = []
    with torch.inference_mode():
        ceiling = bench.decode(bench.encode(bench.truth))
        for name in names:
            make, level, words = DAMAGES[name]
            operator = make()
            noise = torch.randn(count, *operator.out_shape, generator=torch.Generator().manual_seed(3))
            damaged = operator.seen(operator.forward(bench.truth) + level / LEVELS * noise)
            measured = Measurement(operator, damaged, max(level, 2.0) / LEVELS)
            for method, restore in {
                "(the truth through the VAE)": lambda: ceiling,
                **methods(bench, measured, name),
            }.items():
                bench.calls.update(decode=0, encode=0)
                asked, started = bench.field.evaluations, time.perf_counter()
                restored = restore()
                seconds = time.perf_counter() - started
                row = {"model": kind, "damage": name, "words": words, "noise": level, "method": method}
                row |= figures(bench, measured, restored)
                row |= {"seconds": seconds, "calls": bench.field.evaluations - asked, **bench.calls}
                rows.append(row)
                print(f"{kind} {name} {method}: {row['psnr']:.2f} dB, chi2 {row['chi2']:.2f}", file=sys.stderr)
    return rows


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of one model and damage."""
    head = ["method", "PSNR", "SSIM", "chi2", "reads", "model calls", "decodes", "encodes", "seconds"]
    cells = [
        [
            row["method"],
            f"{row['psnr']:.2f}",
            f"{row['ssim']:.3f}",
            f"{row['chi2']:.2f}",
            f"{100 * row['reads']:.0f} %",
            *(str(row[part]) for part in ("calls", "decode", "encode")),
            f"{row['seconds']:.1f}",
        ]
        for row in rows
    ]
    return provenance.table(head, cells)


def main() -> None:
    """Read the command line, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--kinds", nargs="+", choices=("eps", "flow"), default=["eps", "flow"])
    parser.add_argument("--damages", nargs="+", choices=tuple(DAMAGES), default=list(DAMAGES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    where = provenance.provenance()
    rows = [row for kind in given.kinds for row in run(kind, given.damages, given.pictures, given.steps)]
    parts = [
        "# Restoration of held-out Shapes pictures",
        f"{given.pictures} pictures, {given.steps} steps of DDS at cfg 1 under the caption, one seed; trust 1. The "
        "truth through the VAE is the ceiling.",
    ]
    for kind in given.kinds:
        for name in given.damages:
            chosen = [row for row in rows if (row["model"], row["damage"]) == (kind, name)]
            noise = f", noise of {chosen[0]['noise']:g} levels" if chosen[0]["noise"] else ""
            title = chosen[0]["words"] + (noise if name != "noise" else "")
            parts += [f"## {kind}: {title}", as_table(chosen)]
    provenance.write("restoration", "\n\n".join(parts), {"provenance": where, "rows": rows})


if __name__ == "__main__":
    main()
