"""What restoring by DDS costs beyond the model calls that it makes, inside ComfyUI.

    python benchmarks/restoration_cost.py [--steps 4] [--repeats 5] [--channels 64] [--size 64] [--only NAME ...]

For a model of pictures: time of a run of the node's SAMPLER under the stock guider over that of as many bare calls of
the same network, in turns within one process. For a model of latents: how often the autoencoder was asked, counted in
the host's own VAE and compared with what is promised; a difference ends the script.

The network is that of overhead.py with three channels. The script starts the newest ComfyUI that COMFYUI_PATH names or
that lies in the home folder.
"""

from __future__ import annotations

import argparse
import importlib
import runpy
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import in_host

ROOT = Path(__file__).resolve().parents[1]
WANTED = 1.1
LATENT_STEPS = 3
DDS = {"noise": 4.0}


class Asked(NamedTuple):
    """Decodes and encodes: of a step, and once before the first."""

    decodes: int
    encodes: int
    decodes_before: int = 2
    encodes_before: int = 1


# Before the first step the size of the picture is asked for by a decode, and the autoencoder's loss is measured.
PROMISED: dict[str, tuple[dict[str, Any], Asked]] = {
    "encoder adjoint": ({}, Asked(2, 3)),
    "encoder adjoint, 2 inner steps": ({"inner_steps": 2}, Asked(3, 4)),
    "encoder adjoint, smoothing": ({"temporal_smoothing": 1.0, "share_noise": True}, Asked(2, 3)),
    "decode, correct, encode": ({"latent_method": "decode, correct, encode"}, Asked(3, 6)),
}


class Bench:
    """The host's nodes and the pack's."""

    def __init__(self, steps: int) -> None:
        pack = runpy.run_path(str(ROOT / "_standalone.py"))["load_package"]().__name__
        self.nodes = importlib.import_module(f"{pack}.nodes").NODES
        self.steps = steps

    def node(self, name: str, **inputs: Any) -> tuple[Any, ...]:
        """Outputs of a node of the pack, called as the host calls it."""
        import torch

        cls = next(node for node in self.nodes if node.define_schema().node_id == name)
        with torch.inference_mode():
            return tuple(cls.EXECUTE_NORMALIZED(**inputs).result)

    def damages(self, size: int) -> dict[str, Any]:
        """Operators by name."""
        import torch

        missing = torch.zeros(1, size, size)
        missing[:, size // 4 : size // 2, size // 4 : size // 2] = 1.0
        blur = {"radius": 2.0, "length": 9.0, "angle": 30.0, "edges": "reflect"}
        return {
            "missing area": self.node("DamageMask", mask=missing, grow=0)[0],
            "low resolution": self.node("DamageLowResolution", scale=4.0, filter="bicubic")[0],
            "Gaussian blur": self.node("DamageBlur", kind="gaussian", **blur)[0],
            "motion blur": self.node("DamageBlur", kind="motion", **blur)[0],
            "JPEG": self.node("DamageJPEG", file="(as set below)", quality=10, half_colour=True)[0],
        }

    def sampler(self, operator: Any, image: Any, vae: Any = None, **changes: Any) -> Any:
        """The SAMPLER of RestoreDDS for a picture that is damaged first."""
        (damaged,) = self.node("ApplyDamage", image=image, operator=operator, noise=4.0, seed=0)
        settings = {**DDS, **changes, "operator": operator, "damaged": damaged, "vae": vae}
        return self.node("RestoreDDS", **settings)[0]

    def run(self, model: Any, prompt: Any, sampler: Any, noise: Any, steps: int) -> Any:
        """Sample under the stock guider."""
        import comfy.samplers
        import torch

        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(prompt, prompt)
        guider.set_cfg(1.0)
        with torch.inference_mode():
            return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)


def pixels(bench: Bench, repeats: int, channels: int, size: int, only: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Measure a model of pictures; the text and what is behind it."""
    import overhead
    import torch

    model = overhead.unet(channels, 3)
    counter = overhead.Counter(model.model.diffusion_model)
    draw = torch.Generator().manual_seed(1)
    prompt = [[torch.randn(1, overhead.TOKENS, overhead.CONTEXT, generator=draw), {}]]
    noise = torch.randn(1, 3, size, size, generator=draw)
    image = torch.rand(1, size, size, 3, generator=draw)

    def bare() -> None:
        sigma = torch.full((1,), 1.0)
        with torch.inference_mode():
            for _ in range(bench.steps):
                model.model.apply_model(noise, sigma, c_crossattn=prompt[0][0], transformer_options={})

    rows, found = [], {}
    for name, operator in bench.damages(size).items():
        if only and name not in only:
            continue
        sampler = bench.sampler(operator, image)
        runs = turns(
            counter,
            bare,
            lambda sampler=sampler: bench.run(model, prompt, sampler, noise, bench.steps),  # type: ignore[misc]
            repeats,
        )
        made = {run[which]["calls"] for run in runs for which in ("bare", "ours")}
        if made != {float(bench.steps)}:
            raise SystemExit(f"{name} must make {bench.steps} calls, got {sorted(made)}; the comparison is off.")
        ratios = {key: sorted(run["ours"][key] / run["bare"][key] for run in runs) for key in ("wall", "processor")}
        median = {key: statistics.median(values) for key, values in ratios.items()}
        call = statistics.median(run["bare"]["processor"] for run in runs) / bench.steps
        found[name] = {"ratios": median, "runs": runs}
        quarter = repeats // 4
        rows.append(
            [
                name,
                f"{call:.2f} s",
                f"**{median['processor']:.3f}**",
                f"{ratios['processor'][quarter]:.3f} to {ratios['processor'][-1 - quarter]:.3f}",
                f"{median['wall']:.3f}",
                "reached" if median["processor"] <= WANTED else "**not reached**",
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
    parameters = sum(value.numel() for value in model.model.diffusion_model.parameters()) / 1e6
    head = ["damage", "a bare call", "DDS over bare calls", "middle half", "on the wall", f"wanted {WANTED}"]
    text = (
        f"Pictures of {size} x {size}, batch 1, {bench.steps} steps, a UNet of SD1.5 type on pixels with "
        f"{parameters:.0f} million parameters; medians of {repeats} pairs of runs in turns, in processor time. The "
        "run is that of the SAMPLER under the stock guider with all that the host does around it; the bare one makes "
        "as many calls of the network and nothing else. Forwards are counted.\n\n" + _table(head, rows)
    )
    return text, {"size": size, "million_parameters": parameters, "rows": found}


def turns(
    counter: Any, bare: Callable[[], Any], ours: Callable[[], Any], repeats: int
) -> list[dict[str, dict[str, float]]]:
    """Run both in turns, after one of each to warm up."""
    import overhead

    ours(), bare()
    runs = []
    for index in range(repeats):
        order = (("bare", bare), ("ours", ours)) if index % 2 == 0 else (("ours", ours), ("bare", bare))
        runs.append({name: overhead.measure(run, counter) for name, run in order})
    return runs


def latents(bench: Bench) -> tuple[str, list[dict[str, Any]]]:
    """Count what a model of latents asks of the host's VAE; the text and the counts."""
    import nodes as host_nodes
    import torch

    model, clip, vae = bench.node("LoadShapesModel", kind="eps")
    with torch.inference_mode():
        prompt = host_nodes.CLIPTextEncode().encode(clip, "a big red circle on a cyan background")[0]
    asked = {"decodes": 0, "encodes": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            asked[name] += 1

        return hook

    hooks = [
        vae.first_stage_model.decoder.register_forward_pre_hook(count("decodes")),
        vae.first_stage_model.encoder.register_forward_pre_hook(count("encodes")),
    ]
    draw = torch.Generator().manual_seed(1)
    image, noise = torch.rand(2, 64, 64, 3, generator=draw), torch.randn(2, 4, 16, 16, generator=draw)
    operator = bench.damages(64)["low resolution"]
    rows, found = [], []
    for name, (changes, promised) in PROMISED.items():
        asked.update(decodes=0, encodes=0)
        bench.run(model, prompt, bench.sampler(operator, image, vae, **changes), noise, LATENT_STEPS)
        wanted = {
            "decodes": promised.decodes * LATENT_STEPS + promised.decodes_before,
            "encodes": promised.encodes * LATENT_STEPS + promised.encodes_before,
        }
        if asked != wanted:
            raise SystemExit(f"{name} must make {wanted} in {LATENT_STEPS} steps, got {asked}; something is hidden.")
        found.append({"method": name, "steps": LATENT_STEPS, **asked})
        before = f"{promised.decodes_before} and {promised.encodes_before}"
        rows.append(
            [name, str(promised.decodes), str(promised.encodes), before, f"{asked['decodes']}, {asked['encodes']}"]
        )
        print(" | ".join(rows[-1]), flush=True)
    for hook in hooks:
        hook.remove()
    head = ["latent method", "decodes a step", "encodes a step", "before the first", f"counted in {LATENT_STEPS} steps"]
    text = (
        "A model of latents, batch 2: forwards of the host's VAE, counted by hooks. Before the first step one decode "
        "tells the size and one of each measures what the VAE loses. The VAEDecode behind the sampler is not in it.\n\n"
        + _table(head, rows)
    )
    return text, found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    import provenance

    return provenance.table(head, rows)


def inside(steps: int, repeats: int, channels: int, size: int, only: Sequence[str], output: Path) -> None:
    """Run in the host's process and write the result."""
    import comfy.options

    # The host reads the command line when it is imported.
    own, sys.argv = sys.argv, ["main.py", "--cpu", "--disable-api-nodes"]
    comfy.options.enable_args_parsing()
    import comfyui_version
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import nodes  # noqa: F401 - the host's, which its other modules expect to be there
    import provenance

    sys.argv = own
    where = provenance.provenance()
    bench = Bench(steps)
    counted, counts = latents(bench)
    timed, times = pixels(bench, repeats, channels, size, only)
    text = "\n\n".join(
        [
            "# Cost of restoring by DDS",
            f"ComfyUI {comfyui_version.__version__}.",
            "## A model of pictures",
            timed,
            "## A model of latents",
            counted,
        ]
    )
    data = {
        "provenance": where,
        "host": comfyui_version.__version__,
        "steps": steps,
        "pixels": times,
        "latents": counts,
    }
    provenance.write("restoration_cost", text, data, output)


def main() -> None:
    """Read the command line and start the host's process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="steps of every run (4)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs (5)")
    parser.add_argument("--channels", type=int, default=64, help="width of the UNet at its finest grid (64)")
    parser.add_argument("--size", type=int, default=64, help="sides of the pictures (64)")
    parser.add_argument("--only", nargs="*", default=[], help="damages to measure; all without it")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    chosen = parser.parse_args()
    if in_host.is_inside():
        inside(chosen.steps, chosen.repeats, chosen.channels, chosen.size, chosen.only, chosen.output)
        return
    in_host.run_inside(__file__)


if __name__ == "__main__":
    main()
