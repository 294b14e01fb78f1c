"""What methods cost beyond the model calls that they make: time and peak memory, inside ComfyUI.

    python benchmarks/cost.py [--steps 5] [--repeats 5] [--channels 64] [--only NAME ...]

Each method of the registry goes there and back; the paired edits, null-text optimisation and the gradient of a whole
walk run too. Each run takes turns with a bare one: the same number of calls of the same network, and of its gradients,
and nothing else. Null-text is measured by what three more inner steps take. The last part counts the bytes that the
gradient of a whole walk holds at 10 and at 100 steps.

The network is that of overhead.py. The script starts the newest ComfyUI that COMFYUI_PATH names or that lies in the
home folder.
"""

from __future__ import annotations

import argparse
import importlib
import math
import runpy
import statistics
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import in_host

ROOT = Path(__file__).resolve().parents[1]
# Wanted by kind of row: time over that of the bare calls.
WANTED = {"plain": 1.05, "null-text": 1.15}
# Short settings where the defaults would take minutes and say nothing more about a call.
ITERATIONS = 2
MEMORY_STEPS = (10, 100)


class Row(NamedTuple):
    """A run and its bare calls.

    Attributes:
        name: What runs.
        kind: "plain", "gradient" or "null-text".
        run: Runs it.
        bare: Makes the same calls of the network and of its gradient.
        calls: Forwards of the network that the run must make.
    """

    name: str
    kind: str
    run: Callable[[], Any]
    bare: Callable[[], Any]
    calls: int


class Bench:
    """The network, its conditioning and the pack, and what is made of them."""

    def __init__(self, steps: int, channels: int, size: int) -> None:
        import overhead
        import torch

        pack = runpy.run_path(str(ROOT / "_standalone.py"))["load_package"]()
        self.pack, self.steps, self.size = pack.__name__, steps, size
        self.model = overhead.unet(channels)
        self.counter = overhead.Counter(self.model.model.diffusion_model)
        draw = torch.Generator().manual_seed(1)
        shape = (1, overhead.TOKENS, overhead.CONTEXT)
        self.source, self.target, self.negative = ([[torch.randn(shape, generator=draw), {}]] for _ in range(3))
        self.latent = {"samples": torch.randn(1, 4, size, size, generator=draw)}
        self.levels = self.part("nodes.host.schedule").rising_sigmas(self.model, "normal", steps)

    def part(self, dotted: str) -> Any:
        """A module of the pack."""
        return importlib.import_module(f"{self.pack}.{dotted}")

    def forwards(self, count: int) -> None:
        """Bare calls of the network, as the host makes them for a sampler."""
        import torch

        with torch.inference_mode():
            for _ in range(count):
                self._call(self.latent["samples"].double(), self.source[0][0])

    def backwards(self, count: int, of_embedding: bool = False) -> None:
        """Bare calls with the gradient at the state, or at the embedding."""
        import torch

        with self.part("nodes.host.gradients").differentiable(self.model.model):
            for _ in range(count):
                x, text = self.latent["samples"].double().clone(), self.source[0][0].clone()
                leaf = (text if of_embedding else x).requires_grad_(True)
                torch.autograd.grad(self._call(x, text).sum(), leaf)

    def _call(self, x: Any, text: Any) -> Any:
        import torch

        sigma = torch.full((1,), 1.0, dtype=x.dtype)
        return self.model.model.apply_model(x, sigma, c_crossattn=text, transformer_options={})

    def branch(self, prompt: Any = None) -> Any:
        """A prompt, that of the source if none is given, as a branch of a run at cfg 1."""
        return self.part("nodes.host.session").Branch(self.source if prompt is None else prompt)

    def there_and_back(self, name: str) -> Row:
        """A method of the registry, up and down."""
        import torch

        inversion, runs = self.part("inversion"), self.part("nodes.inverting.runs")
        cls = inversion.METHODS[name]
        shorter = {"iterations": ITERATIONS, "stop": 0.0} if cls.needs_gradients else {}
        known = {setting.name for setting in cls.parameters()}
        method = inversion.get_method(name, {key: value for key, value in shorter.items() if key in known})
        updates = ITERATIONS * self.steps if cls.needs_gradients else 0

        def run() -> None:
            with torch.inference_mode():
                climb = runs.Climb(self.levels, self.steps, method)
                runs.run_replay(self.model, runs.run_invert(self.model, self.branch(), self.latent, climb))

        calls = method.evaluations(self.steps) + method.evaluations(self.steps, rising=False)

        def bare() -> None:
            self.forwards(calls - updates)
            self.backwards(updates)

        return Row(name, "gradient" if updates else "plain", run, bare, calls)

    def paired(self, cls: Any) -> Row:
        """An edit without an inversion."""
        import torch

        rule, edits = cls(), self.part("nodes.editing.inversion_free_run")

        def run() -> None:
            with torch.inference_mode():
                start = edits.Start(self.levels, self.steps, 0)
                sides = self.branch(), self.branch(self.target)
                edits.run_inversion_free(self.model, *sides, self.latent, rule, start)

        calls = sum(rule.evaluations(self.steps))
        return Row(rule.name, "plain", run, lambda: self.forwards(calls), calls)

    def null_text(self) -> Row:
        """Inner steps of null-text optimisation: a run with three more in each step, less one without."""
        import overhead
        import torch

        more, steps = 3, 2
        fit, runs = self.part("nodes.inverting.null_text_run"), self.part("nodes.inverting.runs")
        climb = runs.climb_of(
            self.model, steps, "normal", 1.0, self.part("inversion").get_method("ddim"), keep_path=True
        )
        with torch.inference_mode():
            inversion = runs.run_invert(self.model, self.branch(), self.latent, climb)

        def timed(inner: int) -> dict[str, float]:
            settings = inversion.NullText(inner_steps=inner, stop=0.0, stop_growth=0.0)

            def run() -> None:
                with torch.inference_mode():
                    fit.run_null_text(self.model, inversion, self.negative, settings, save_unfinished=False)

            return overhead.measure(run, self.counter)

        def run() -> dict[str, float]:
            few, many = timed(1), timed(1 + more)
            spent = {key: many[key] - few[key] for key in ("wall", "processor", "calls")}
            return {**spent, "peak": many["peak"]}

        return Row("null-text, inner step", "null-text", run, lambda: self.backwards(more * steps, True), more * steps)

    def gradient(self) -> Row:
        """The gradient of a loss on the end of a walk of Euler steps, at its start."""
        calls = 2 * self.steps

        def bare() -> None:
            self.forwards(self.steps)
            self.backwards(self.steps)

        return Row("gradient of the walk", "gradient", lambda: self.walk_gradient(self.levels[::-1]), bare, calls)

    def walk_gradient(self, falling: Sequence[float], around: Callable[[Any], Any] = lambda denoiser: denoiser) -> None:
        """Differentiate a walk in a run of the host; `around` may wrap the denoiser."""
        import torch

        inversion, session = self.part("inversion"), self.part("nodes.host.session")

        def script(run: Any) -> Any:
            denoiser, stepper = run.denoiser(), inversion.get_method("euler").down
            x = float(falling[0]) * self.latent["samples"].double()
            return inversion.walk_gradient(around(denoiser), x, falling, stepper, lambda end: end.square().sum())

        samples = self.latent["samples"]
        with torch.inference_mode():
            session.Guider(self.model, {"source": self.branch()}).run(samples, tuple(falling), script, gradients=True)

    def rows(self) -> list[Row]:
        """Everything that there is to measure."""
        inversion = self.part("inversion")
        methods = [self.there_and_back(name) for name in inversion.METHODS]
        # Kinds of these take more branches at once, which only their own nodes make.
        edits = [self.paired(cls) for cls in inversion.InversionFreeEdit.__subclasses__()]
        return [*methods, *edits, self.null_text(), self.gradient()]

    def held(self, steps: int) -> int:
        """Most bytes of tensors that the gradient of so many steps holds when it asks the network."""
        counting = _counting()
        falling = [14.0 * (1.0 - index / steps) ** 2 for index in range(steps)] + [0.0]

        def around(denoiser: Any) -> Any:
            def denoise(x: Any, sigma: float) -> Any:
                counting.look()
                return denoiser(x, sigma)

            return self.part("inversion").Denoiser(denoise, denoiser.space, denoiser.sigma_floor)

        with counting:
            self.walk_gradient(falling, around)
        return int(counting.most)


def _counting() -> Any:
    """A mode that knows the bytes of all tensors that were made in it and are alive."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.made: list[Any] = []
            self.most = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            for each in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(each, torch.Tensor):
                    self.made.append(weakref.ref(each))
            return out

        def look(self) -> None:
            alive = [tensor for tensor in (ref() for ref in self.made) if tensor is not None]
            storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
            self.made = [ref for ref in self.made if ref() is not None]
            self.most = max(self.most, sum(storages.values()))

    return Counting()


def turns(row: Row, counter: Any, repeats: int) -> list[dict[str, dict[str, float]]]:
    """Run a row and its bare calls in turns, after one of each to warm up."""
    import overhead

    def ours() -> dict[str, float]:
        # Null-text takes its own measures, of which one is a difference.
        return dict(row.run()) if row.kind == "null-text" else overhead.measure(row.run, counter)

    def bare() -> dict[str, float]:
        return overhead.measure(row.bare, counter)

    ours(), bare()
    runs = []
    for index in range(repeats):
        order = (("bare", bare), ("ours", ours)) if index % 2 == 0 else (("ours", ours), ("bare", bare))
        runs.append({name: run() for name, run in order})
    made = {run[name]["calls"] for run in runs for name in ("bare", "ours")}
    if made != {float(row.calls)}:
        raise SystemExit(f"{row.name} must make {row.calls} calls, got {sorted(made)}; the comparison is off.")
    return runs


def inside(steps: int, repeats: int, channels: int, size: int, only: Sequence[str]) -> None:
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
    bench = Bench(steps, channels, size)
    rows, found = [], {}
    for row in bench.rows():
        if only and row.name not in only:
            continue
        runs = turns(row, bench.counter, repeats)
        # Of null-text's two runs only a difference is known, whose peak is that of the longer one.
        ratios = {
            key: sorted(run["ours"][key] / run["bare"][key] for run in runs) for key in ("wall", "processor", "peak")
        }
        median = {key: statistics.median(values) for key, values in ratios.items()}
        found[row.name] = {"kind": row.kind, "calls": row.calls, "ratios": median, "runs": runs}
        wall, quarter = ratios["wall"], repeats // 4
        seconds = statistics.median(run["ours"]["wall"] for run in runs)
        cells = [row.name, str(row.calls), f"{seconds:.2f} s", f"**{median['wall']:.3f}**"]
        cells += [f"{wall[quarter]:.3f} to {wall[-1 - quarter]:.3f}", f"{median['processor']:.3f}"]
        cells += [f"{median['peak']:.3f}", f"{WANTED[row.kind]:.2f}" if row.kind in WANTED else "-"]
        rows.append(cells)
        print(" | ".join(cells), flush=True)
    latent = bench.latent["samples"].numel() * 8
    few, many = (0, 0) if only and "memory" not in only else (bench.held(count) for count in MEMORY_STEPS)
    growth = (many - few) / (latent * (MEMORY_STEPS[1] - MEMORY_STEPS[0]))
    plain = [data for data in found.values() if data["kind"] == "plain"]
    calls = [run["bare"]["wall"] / data["calls"] for data in plain for run in data["runs"]]
    call = statistics.median(calls) if calls else math.nan
    parameters = sum(value.numel() for value in bench.model.model.diffusion_model.parameters()) / 1e6
    head = ["", "calls", "time", "over bare calls", "middle half", "processor time", "peak memory", "wanted"]
    text = "\n\n".join(
        [
            "# Cost of methods over the bare calls of their network",
            f"There and back in {steps} steps at cfg 1, batch 1, latent {size} x {size}, UNet of SD1.5 type with "
            f"{parameters:.0f} million parameters, {call:.2f} s a call; ComfyUI {comfyui_version.__version__}; medians "
            f"of {repeats} pairs of runs in turns in one process. The bare run makes the same number of calls of the "
            "network, and for methods with gradients of its gradient, without a sampler. Forwards are counted. "
            "Null-text: what three more inner steps in each step add, over forward and backward of the network.",
            provenance.table(head, rows),
            f"Gradient of a whole walk: at most {few / 2**20:.1f} MiB of tensors alive at {MEMORY_STEPS[0]} steps and "
            f"{many / 2**20:.1f} MiB at {MEMORY_STEPS[1]}: **{growth:.3f}** latents (float64) for each step more. "
            "Wanted: at most 1.",
        ]
    )
    data = {
        "provenance": where,
        "host": comfyui_version.__version__,
        "steps": steps,
        "size": size,
        "million_parameters": parameters,
        "seconds_per_call": call,
        "rows": found,
        "gradient_bytes": {str(count): value for count, value in zip(MEMORY_STEPS, (few, many), strict=True)},
        "latents_a_step": growth,
    }
    provenance.write("cost", text, data)


def main() -> None:
    """Read the command line and start the host's process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps of every run (5)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs (5)")
    parser.add_argument("--channels", type=int, default=64, help="width of the UNet's first level (64)")
    parser.add_argument("--size", type=int, default=32, help="sides of the latent (32)")
    parser.add_argument("--only", nargs="*", default=[], help="rows to measure, and 'memory'; all without it")
    chosen = parser.parse_args()
    if in_host.is_inside():
        inside(chosen.steps, chosen.repeats, chosen.channels, chosen.size, chosen.only)
        return
    in_host.run_inside(__file__)


if __name__ == "__main__":
    main()
