"""What Invert costs over the stock KSampler: wall time, processor time and peak memory, inside ComfyUI.

    python benchmarks/overhead.py [--steps 20] [--repeats 15] [--channels 64]

Both run euler over the same schedule with the same number of model calls, on the same UNet of SD1.5 type with seeded
weights, in turns within one process of the host, so that whatever else the machine does meets both alike. The script
starts that process itself, in the newest ComfyUI that COMFYUI_PATH names or that lies in the home folder.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import re
import runpy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import in_host

ROOT = Path(__file__).resolve().parents[1]
# A call must take at least this long for a ratio of runs to say something about models that people use.
SHORTEST_CALL = 0.1
WANTED = 1.05
CONTEXT, TOKENS = 256, 77


def unet(channels: int, inputs: int = 4) -> Any:
    """Build a UNet of SD1.5 type as the host has it, with seeded weights.

    Args:
        channels: Width of its first level; the levels are 1, 2 and 4 times as wide.
        inputs: Channels of its state; with 3 they are those of a picture in [-1, 1].
    """
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = comfy.supported_models.SD15(
        {
            "image_size": 32,
            "in_channels": inputs,
            "out_channels": inputs,
            "model_channels": channels,
            "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4],
            "transformer_depth": [1, 1, 1, 1, 1, 1],
            "transformer_depth_output": [1] * 9,
            "transformer_depth_middle": 1,
            "num_heads": 8,
            "num_head_channels": -1,
            "use_spatial_transformer": True,
            "context_dim": CONTEXT,
            "use_linear_in_transformer": False,
            "adm_in_channels": None,
            "legacy": False,
            "use_temporal_attention": False,
            "dtype": torch.float32,
        }
    )
    if inputs == 3:
        config.latent_format = comfy.latent_formats.LatentFormat()
        config.latent_format.latent_channels = 3
    with torch.inference_mode():
        model = comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.EPS)
        generator = torch.Generator().manual_seed(0)
        for name, value in model.diffusion_model.named_parameters():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
            else:
                value.fill_(1.0 if name.endswith("weight") else 0.0)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


class Counter:
    """Counts the forwards of a network without touching them."""

    def __init__(self, network: Any) -> None:
        self.calls = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1


def peak_reset() -> None:
    """Forget the process's peak of resident memory, after giving back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak of resident memory since the last reset."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def measure(run: Callable[[], Any], counter: Counter) -> dict[str, float]:
    """Run once; seconds on the wall and of the processor, peak of resident bytes, forwards."""
    peak_reset()
    before, wall, processor = counter.calls, time.perf_counter(), time.process_time()
    run()
    return {
        "wall": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
        "peak": float(peak_bytes()),
        "calls": float(counter.calls - before),
    }


def inside(steps: int, repeats: int, channels: int, size: int) -> None:
    """Run in the host's process and write the result."""
    import comfy.options

    # The host reads the command line when it is imported.
    own, sys.argv = sys.argv, ["main.py", "--cpu", "--disable-api-nodes"]
    comfy.options.enable_args_parsing()
    import comfyui_version
    import torch

    torch.set_num_threads(1)
    import nodes as host_nodes

    sys.argv = own
    pack = runpy.run_path(str(ROOT / "_standalone.py"))["load_package"]()
    invert_node = importlib.import_module(f"{pack.__name__}.nodes.inverting.invert").Invert
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import provenance

    model = unet(channels)
    counter = Counter(model.model.diffusion_model)
    generator = torch.Generator().manual_seed(1)
    positive = [[torch.randn(1, TOKENS, CONTEXT, generator=generator), {}]]
    latent = {"samples": torch.randn(1, 4, size, size, generator=generator)}
    sampler = host_nodes.KSampler()

    def stock() -> None:
        with torch.inference_mode():
            sampler.sample(model, 0, steps, 1.0, "euler", "normal", positive, positive, latent, 1.0)

    def ours() -> None:
        with torch.inference_mode():
            # As the host calls a node.
            invert_node.EXECUTE_NORMALIZED(
                model=model,
                source=positive,
                latent=latent,
                steps=steps,
                scheduler="normal",
                method="euler",
                cfg=1.0,
                strength=1.0,
            )

    where = provenance.provenance()
    for warm in (stock, ours, stock, ours):
        warm()
    runs: list[dict[str, dict[str, float]]] = []
    for i in range(repeats):
        order = (("stock", stock), ("ours", ours)) if i % 2 == 0 else (("ours", ours), ("stock", stock))
        runs.append({name: measure(run, counter) for name, run in order})
    calls = {run[name]["calls"] for run in runs for name in ("stock", "ours")}
    if calls != {float(steps)}:
        raise SystemExit(f"both must make {steps} model calls, got {sorted(calls)}; the comparison is off.")
    call = statistics.median(run["stock"]["wall"] for run in runs) / steps
    if call < SHORTEST_CALL:
        raise SystemExit(f"a model call must take at least {SHORTEST_CALL} s, got {call:.3f} s; raise --channels.")

    rows, ratios = [], {}
    for key, label, unit in (
        ("wall", "wall time", "s"),
        ("processor", "processor time", "s"),
        ("peak", "peak resident memory", "MiB"),
    ):
        scale = 2.0**20 if key == "peak" else 1.0
        stock_values = [run["stock"][key] / scale for run in runs]
        our_values = [run["ours"][key] / scale for run in runs]
        pairs = sorted(b / a for a, b in zip(stock_values, our_values, strict=True))
        quarter = len(pairs) // 4
        ratios[key] = {"median": statistics.median(pairs), "low": pairs[quarter], "high": pairs[-1 - quarter]}
        digits = 0 if key == "peak" else 2
        rows.append(
            [
                label,
                f"{statistics.median(stock_values):.{digits}f} {unit}",
                f"{statistics.median(our_values):.{digits}f} {unit}",
                f"**{ratios[key]['median']:.3f}**",
                f"{pairs[quarter]:.3f} to {pairs[-1 - quarter]:.3f}",
                f"{pairs[0]:.3f} to {pairs[-1]:.3f}",
            ]
        )
    parameters = sum(value.numel() for value in model.model.diffusion_model.parameters()) / 1e6
    head = ["", "KSampler", "Invert", "ratio (median of pairs)", "middle half", "all"]
    text = "\n\n".join(
        [
            "# Overhead of Invert over the stock KSampler",
            f"Euler, {steps} steps, {steps} model calls each (counted), batch 1, latent {size} x {size}, UNet of SD1.5 "
            f"type with {parameters:.0f} million parameters, {call:.2f} s a call; "
            f"ComfyUI {comfyui_version.__version__}; {repeats} pairs of runs in turns in one process. "
            f"Wanted: at most {WANTED}.",
            provenance.table(head, rows),
        ]
    )
    data = {
        "provenance": where,
        "host": comfyui_version.__version__,
        "steps": steps,
        "size": size,
        "million_parameters": parameters,
        "seconds_per_call": call,
        "ratios": ratios,
        "runs": runs,
    }
    provenance.write("overhead", text, data)


def main() -> None:
    """Read the command line and start the host's process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps, and so model calls, of a run (20)")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of runs (15)")
    parser.add_argument("--channels", type=int, default=64, help="width of the UNet's first level (64)")
    parser.add_argument("--size", type=int, default=32, help="sides of the latent (32)")
    chosen = parser.parse_args()
    if in_host.is_inside():
        inside(chosen.steps, chosen.repeats, chosen.channels, chosen.size)
        return
    in_host.run_inside(__file__)


if __name__ == "__main__":
    main()
