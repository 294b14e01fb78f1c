"""What works with which family of models: docs/models.md, from tiny random models of the ComfyUI at hand.

    python benchmarks/families.py            # the newest of COMFYUI_PATH or ~/ComfyUI*; --only Flux_dev Wan21_t2v

Every generating class of the host (tiny_families.py) is asked for everything a model can be asked for. A cell holds a
number or, as a footnote, the sentence of the refusal. A raw error of the host or of the pack stands as ERROR. Random
weights say nothing of quality: they show that the maths, the shapes and the places of tokens are right.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import in_host

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
STEPS = 4
COLUMNS = {
    "invert": "relative error of the latent, there and back by midpoint in 4 steps",
    "exact": "the same by EDICT",
    "mask": "largest change outside a mask",
    "attention": "relative change that MasaCtrl's attention makes to an edit",
    "InfEdit": "relative error of an edit to its own prompt",
    "FlowEdit": "the same",
    "null-text": "whether gradients reach the prompt",
}
# Relative errors of rounding alone.
ROUNDING = 1e-6


class Asked:
    """One family in the host, and what it is asked for: a method a column, by its name."""

    def __init__(self, call: Callable[..., Any], name: str) -> None:
        """Build the family's tiny model."""
        import tiny_families as tiny

        self._call = call
        self._model, self._latent = tiny.build(name), tiny.latent(name)
        self._source, self._target, self._negative = (tiny.conditioning(name, seed) for seed in (0, 9, 5))

    def cells(self) -> dict[str, Callable[[], str]]:
        """The columns."""
        return dict(
            zip(
                COLUMNS,
                (
                    lambda: self._back("midpoint"),
                    lambda: self._back("edict"),
                    self._masked,
                    self._attended,
                    lambda: self._unmoved("InfEdit"),
                    lambda: self._unmoved("FlowEdit", n_max=STEPS, n_min=0),
                    self._null_text,
                ),
                strict=True,
            )
        )

    def _inverted(self, method: str = "midpoint") -> Any:
        inputs = {"source": self._source, "latent": self._latent, "steps": STEPS, "method": method, "keep_path": True}
        return self._call("Invert", model=self._model, cfg=1.0, **inputs)[0]

    def _resampled(self, inversion: Any, **more: Any) -> Any:
        return self._call("Resample", model=self._model, inversion=inversion, cfg=1.0, **more)[0]["samples"]

    def _distance(self, one: Any, other: Any) -> float:
        return float((one.double() - other.double()).norm() / other.double().norm())

    def _back(self, method: str) -> str:
        return shown(self._distance(self._resampled(self._inverted(method)), self._latent["samples"]))

    def _masked(self) -> str:
        import torch

        mask, samples = torch.zeros(1, 64, 64), self._latent["samples"]
        mask[..., :32] = 1.0
        edited = self._resampled(self._inverted(), positive=self._target, mask=mask)
        kept = slice((samples.shape[-1] + 1) // 2, None)
        return shown(float((edited - samples)[..., kept].abs().max()))

    def _attended(self) -> str:
        inversion = self._inverted()
        (plan, *_) = self._call("AttentionInject", model=self._model, preset="masactrl", layers="all", end=1.0)
        plain, edited = (self._resampled(inversion, positive=self._target, attention=each) for each in (None, plan))
        moved = self._distance(edited, plain)
        return shown(moved) if moved > ROUNDING else "ERROR: no effect"

    def _unmoved(self, node: str, **more: Any) -> str:
        inputs = {"source": self._source, "target": self._source, "latent": self._latent, "steps": STEPS, "seed": 0}
        guidance = {"source_cfg": 1.0, "target_cfg": 1.0}
        edited = self._call(node, model=self._model, **inputs, **guidance, **more)[0]["samples"]
        return shown(self._distance(edited, self._latent["samples"]))

    def _null_text(self) -> str:
        inputs = {"negative": self._negative, "cfg": 2.0, "inner_steps": 1, "learning_rate": 1e-4}
        fitted = self._call("NullTextOptimize", model=self._model, inversion=self._inverted("euler"), **inputs)[0]
        return "yes" if fitted.embeddings else "ERROR: nothing fitted"


def shown(value: float) -> str:
    """A number in two digits."""
    return "0" if value == 0.0 else f"{value:.1e}"


def answered(cell: Callable[[], str]) -> tuple[str, str]:
    """What a cell holds, and the sentence where it was refused."""
    try:
        return cell(), ""
    except (ValueError, TypeError) as refusal:
        said = str(refusal)
        if "\n" not in said and " must " in said and said.endswith("."):
            return "-", said
        return f"ERROR: {type(refusal).__name__}", said
    except Exception as error:  # what a user would meet is what the page is for
        return f"ERROR: {type(error).__name__}", str(error).splitlines()[0] if str(error) else ""


def load(workspace: Path) -> Callable[..., Any]:
    """Start the host with the pack; returns what runs a node: (name, inputs) -> outputs."""
    import comfy.options

    (workspace / "custom_nodes").mkdir()
    sys.argv = ["main.py", "--cpu", "--disable-api-nodes", "--base-directory", str(workspace)]
    comfy.options.enable_args_parsing()
    import nodes
    import torch

    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    if not asyncio.run(nodes.load_custom_node(str(ROOT), set(nodes.NODE_CLASS_MAPPINGS))):
        raise SystemExit("the pack must load in this host, got an error; see above.")

    def call(name: str, **inputs: Any) -> Any:
        node = nodes.NODE_CLASS_MAPPINGS[name]
        usual = {each.id: each.default for each in node.widgets() if not each.optional}
        with torch.inference_mode():
            return node.EXECUTE_NORMALIZED(**{**usual, **inputs}).result

    return call


def inside(only: list[str]) -> int:
    """Run in the host's process and write the page; the number of errors is the status."""
    with tempfile.TemporaryDirectory() as scratch:
        call = load(Path(scratch))
        import comfyui_version
        import provenance
        import tiny_families

        where = provenance.provenance()
        rows, notes, errors, absent = [], dict[str, int](), 0, []
        for name, about in tiny_families.FAMILIES.items():
            if only and name not in only:
                continue
            if not hasattr(sys.modules["comfy.supported_models"], about.supported):
                absent.append(name)
                continue
            cells = []
            for column, cell in Asked(call, name).cells().items():
                text, said = answered(cell)
                if text == "-":
                    text = f"[^{notes.setdefault(said, len(notes) + 1)}]"
                if text.startswith("ERROR"):
                    errors += 1
                    print(name, column, text, said, flush=True)
                cells.append(text)
            rows.append([f"{name}, {about.note}" if about.note else name, *cells])
            print(*rows[-1], sep=" | ", flush=True)
        refused = sum(cell.startswith("[^") for row in rows for cell in row)
        told = "\n".join(f"- {column}: {meaning}" for column, meaning in COLUMNS.items())
        text = "\n\n".join(
            [
                "# Which model can do what",
                f"Written by `python benchmarks/families.py` from tiny random models of every generating class of "
                f"ComfyUI {comfyui_version.__version__}: {len(rows)} families, {len(rows) * len(COLUMNS)} cells, "
                f"{refused} refused in a sentence, {errors} errors. The networks are without training, and numbers say "
                "nothing of quality. Exact is 0, or about 1e-7 where the last step is the host's own float32.",
                told,
                provenance.table(["family", *COLUMNS], rows),
                "\n".join(f"[^{number}]: {said}" for said, number in notes.items()),
                *([f"Not in this host: {', '.join(absent)}."] if absent else []),
                "\n".join(f"- {key}: {value}" for key, value in where.items()),
            ]
        )
        if not only:
            PAGE.write_text(text + "\n", encoding="utf-8")
        print(text)
    return errors


def main() -> None:
    """Read the command line and start the host's process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="families, by name; writes no page")
    arguments = parser.parse_args()
    if in_host.is_inside():
        sys.path.insert(0, str(ROOT / "benchmarks"))
        raise SystemExit(min(inside(arguments.only), 1))
    in_host.run_inside(__file__)


if __name__ == "__main__":
    main()
