"""Restoration of a clip of Shapes in which the object moves: flicker and PSNR, alone and together, without ComfyUI.

    python benchmarks/restoration_clip.py [--frames 8] [--steps 30] [--kind eps]

Each frame came at half the size and with noise of 10 levels; the object moves by one pixel a frame. Flicker is the rms
of the difference between neighbouring frames less that of the truth, in levels of 255.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "_standalone.py"))["load_package"]()
sys.path.insert(0, str(ROOT / "benchmarks"))

import numpy as np  # noqa: E402
import provenance  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from restoration import LEVELS, NOISE, SEED, SHAPE, Bench  # noqa: E402
from retrace.demo import world  # noqa: E402
from retrace.restoration.levels import weights  # noqa: E402
from retrace.restoration.measurement import Measurement  # noqa: E402
from retrace.restoration.operators import LowResolution  # noqa: E402
from retrace.restoration.solvers.dds import dds  # noqa: E402
from retrace.restoration.solvers.fresh import fresh_noise  # noqa: E402
from retrace.restoration.solvers.latent import EncoderAdjoint, autoencoder_noise  # noqa: E402

SCENE = world.Scene("big", "red", "circle", "middle", "cyan")
# (smoothing over time, shared noise)
SETTINGS = ((0.0, False), (0.0, True), (0.5, True), (1.0, True), (2.0, True), (5.0, True))


def clip(frames: int) -> Tensor:
    """A circle that moves to the right by a pixel a frame: shape (frames, 3, 64, 64) in [-1, 1]."""
    grain = np.random.default_rng(0).normal(0.0, 2.0, (64, 64, 3))
    ground, paint = (np.array(world.COLOURS[c], float) for c in (SCENE.background, SCENE.colour))
    drawn = []
    for t in range(frames):
        mask = world.coverage(SCENE.shape, (32.0 + t - frames / 2, 32.0), world.SIZES[SCENE.size][0])[..., None]
        drawn.append(np.clip(ground * (1 - mask) + paint * mask + grain, 0, 255))
    return torch.from_numpy(np.stack(drawn)).float().permute(0, 3, 1, 2) / LEVELS - 1.0


def main() -> None:
    """Read the command line, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--kind", choices=("eps", "flow"), default="eps")
    given = parser.parse_args()
    torch.set_num_threads(1)
    where = provenance.provenance()
    bench = Bench(given.kind, given.frames, given.steps)
    bench.field = bench.model.field(bench.state, bench.model.prompt([SCENE.caption] * given.frames))
    truth = clip(given.frames)
    rows = []
    with torch.inference_mode():
        operator = LowResolution(SHAPE, 2, "box")
        noise = torch.randn(given.frames, *operator.out_shape, generator=torch.Generator().manual_seed(3))
        photo = Measurement(operator, operator.forward(truth) + NOISE / LEVELS * noise, NOISE / LEVELS)
        for smoothing, shared in SETTINGS:
            joined = smoothing > 0.0
            started = time.perf_counter()
            lost = autoencoder_noise(photo, photo.initial(), bench.decode, bench.encode, joined)
            measured = photo.with_noise(lost)
            consistency = EncoderAdjoint(measured, bench.decode, bench.encode, joined=joined, smoothing=smoothing)
            fresh = fresh_noise(bench.state, SEED, shared)
            space = bench.field.space
            start = weights(bench.sigmas[0], space)[1] * fresh()
            restored = bench.decode(dds(bench.field, start, bench.sigmas, space, consistency, fresh)).clamp(-1.0, 1.0)
            error = (restored - truth).square().flatten(1).mean(dim=1)
            flicker = (restored.diff(dim=0) - truth.diff(dim=0)).square().mean().sqrt()
            rows.append(
                {
                    "smoothing": smoothing,
                    "shared": shared,
                    "psnr": float((10.0 * torch.log10(4.0 / error)).mean()),
                    "flicker": float(flicker) * LEVELS,
                    "chi2": float(photo.chi2(restored).mean()),
                    "seconds": time.perf_counter() - started,
                }
            )
            print(rows[-1], file=sys.stderr)
    head = ["temporal_smoothing", "share_noise", "PSNR", "flicker", "chi2", "seconds"]
    cells = [
        [
            f"{row['smoothing']:g}",
            "on" if row["shared"] else "off",
            f"{row['psnr']:.2f}",
            f"{row['flicker']:.2f}",
            f"{row['chi2']:.2f}",
            f"{row['seconds']:.1f}",
        ]
        for row in rows
    ]
    text = (
        "# Restoration of a clip that moves\n\n"
        f"{given.frames} frames of '{SCENE.caption}', one pixel a frame to the right, at half the size with noise of "
        f"{NOISE:g} levels; {given.kind} model, {given.steps} steps of DDS, encoder adjoint, one seed. Flicker is in "
        "levels of 255.\n\n" + provenance.table(head, cells)
    )
    provenance.write("restoration_clip", text, {"provenance": where, "rows": rows})


if __name__ == "__main__":
    main()
