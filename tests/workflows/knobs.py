"""Write the picture strips of the help pages: `python tests/workflows/knobs.py Resample InfEdit`, no name for all.

Each strip is the source and then the result at a few values of a node's main knob, run in a ComfyUI of its own, the
oldest that `COMFYUI_PATH` names or that lies in the home folder. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if "retrace_tests" not in sys.modules:  # run as a script
    _tests = ModuleType("retrace_tests")
    _tests.__path__ = [str(ROOT / "tests")]
    sys.modules["retrace_tests"] = _tests

from retrace_tests.hosts import find_hosts  # noqa: E402
from retrace_tests.workflows.graph import Link, Node  # noqa: E402
from retrace_tests.workflows.parts import Scene  # noqa: E402
from retrace_tests.workflows.server import Server  # noqa: E402

FOLDER = ROOT / "web" / "docs"
SIDE = 128
CAPTION = 16
GAP = 4
QUALITY = 85
STEPS = 10
# Seconds for one strip, on a slow machine too.
LONGEST = 1800.0
SENTENCE = "a big red circle on the left of a blue background"
TARGET = "a big green circle on the left of a blue background"


class Strip(Scene):
    """The graph of one strip: a picture, its prompts, and the cells that are shown."""

    def __init__(self, kind: str = "eps", target: str = TARGET) -> None:
        super().__init__("knobs", kind, SENTENCE, seed=3)
        self.target, self.empty = self.prompt(None, target), self.prompt(None, "")
        self.cells: list[tuple[str, Node]] = []
        self.cell("source", self.picture[0])

    def cell(self, caption: str, picture: Link) -> None:
        self.cells.append((caption, self.add("SaveImage", 5, images=picture, filename_prefix="knobs/cell")))

    def show(self, caption: str, latent: Node | Link) -> None:
        self.cell(caption, self.decode(latent, 4)[0])

    def inverted(self, kind: str = "Invert", **settings: Any) -> Node:
        return self.invert(None, kind, **{"steps": STEPS, **settings})

    def edit(self, inversion: Node, cfg: float = 5.0, **settings: Any) -> Node:
        return self.back(None, inversion, **{"cfg": cfg, "positive": self.target, "negative": self.empty, **settings})

    def paired(self, kind: str, **settings: Any) -> Node:
        return self.invert(None, kind, target=self.target, negative=self.empty, **settings)


def resample() -> Strip:
    strip = Strip()
    whole = strip.inverted()
    for cfg in (1.0, 3.0, 7.5):
        strip.show(f"cfg {cfg:g}", strip.edit(whole, cfg))
    for strength in (0.7, 0.5):
        strip.show(f"7.5, strength {strength:g}", strip.edit(strip.inverted(strength=strength), 7.5))
    return strip


def infedit() -> Strip:
    strip = Strip()
    for cfg, eta in ((1.0, 1.0), (2.3, 1.0), (5.0, 1.0), (2.3, 0.5), (2.3, 0.0)):
        latent = strip.paired("InfEdit", steps=STEPS, target_cfg=cfg, eta=eta, seed=1)
        strip.show(f"cfg {cfg:g}, eta {eta:g}", latent)
    return strip


def flowedit() -> Strip:
    strip = Strip("flow")
    for count, cfg in ((4, 3.0), (7, 3.0), (10, 3.0), (10, 1.0), (10, 6.0)):
        latent = strip.paired("FlowEdit", steps=STEPS, n_max=count, source_cfg=1.0, target_cfg=cfg, seed=1)
        strip.show(f"n_max {count}, cfg {cfg:g}", latent)
    return strip


def null_text() -> Strip:
    strip = Strip()
    inversion = strip.inverted(method="ddim", keep_path=True)
    strip.show("not fitted", strip.edit(inversion, 7.5, positive=strip.source))
    fitted = None
    for count in (1, 3, 10):
        fitted = strip.add(
            "NullTextOptimize",
            3,
            model=strip.model,
            inversion=inversion,
            negative=strip.empty,
            cfg=7.5,
            inner_steps=count,
        )[0]
        strip.show(f"inner_steps {count}", strip.back(None, fitted))
    assert fitted is not None
    strip.show("10, edited", strip.edit(fitted, 7.5, negative=None))
    return strip


def noise_optimize() -> Strip:
    strip = Strip()
    inversion = strip.inverted(method="ddim", steps=6)
    strip.show("not moved", strip.edit(inversion, 5.0))
    grown = strip.add("GrowMask", 2, mask=strip.picture[1], expand=4)
    ground = strip.add("InvertMask", 2, mask=grown[0])
    for count in (8,):
        moved = strip.add(
            "NoiseOptimize",
            3,
            model=strip.model,
            inversion=inversion,
            reference=strip.latent,
            cfg=5.0,
            iterations=count,
            learning_rate=0.05,
            positive=strip.target,
            negative=strip.empty,
            mask=ground[0],
        )
        strip.show(f"iterations {count}", moved[1])
    return strip


def negative_prompt() -> Strip:
    strip = Strip()
    inversion = strip.inverted(method="ddim")
    for cfg, prox in ((1.0, "none"), (2.0, "none"), (5.0, "none"), (2.0, "l0"), (2.0, "l1")):
        node = strip.add(
            "NegativePromptInversion",
            3,
            model=strip.model,
            inversion=inversion,
            target=strip.target,
            cfg=cfg,
            prox=prox,
        )
        strip.show(f"cfg {cfg:g}, {prox}", node[0])
    return strip


def direct() -> Strip:
    strip = Strip()
    for carry in (0.0, 0.5, 1.0):
        strip.show(
            f"carry {carry:g}",
            strip.edit(strip.inverted("DirectInversion", cfg=5.0, negative=strip.empty, carry=carry)),
        )
    return strip


def noise_map() -> Strip:
    strip = Strip()
    for strength in (0.3, 0.5, 0.7, 0.9):
        strip.show(f"strength {strength:g}", strip.edit(strip.inverted("NoiseMapInvert", strength=strength, seed=1)))
    return strip


def rf_inversion() -> Strip:
    strip = Strip("flow", "a big white star on the left of a blue background")
    for stop in (0.2, 0.5, 0.7, 0.8, 0.9):
        inversion = strip.inverted("RFInversion", source=strip.empty, scheduler="simple", stop=stop)
        strip.show(f"stop {stop:g}", strip.edit(inversion, 3.0))
    return strip


def knob(kind: str, name: str, *values: Any, steps: int = STEPS) -> Callable[[], Strip]:
    """A strip of edits at values of one setting of an inverting node."""

    def make() -> Strip:
        strip = Strip()
        for value in values:
            shown = value if isinstance(value, (str, bool)) else f"{value:g}"
            strip.show(f"{name} {shown}", strip.edit(strip.inverted(kind, steps=steps, **{name: value}), 3.0))
        return strip

    return make


def round_trip(kind: str, steps: int, *values: int) -> Callable[[], Strip]:
    """A strip of reconstructions at numbers of iterations."""

    def make() -> Strip:
        strip = Strip()
        strip.show("Invert, euler", strip.back(None, strip.inverted(method="euler", steps=steps)))
        for value in values:
            strip.show(f"iterations {value}", strip.back(None, strip.inverted(kind, steps=steps, iterations=value)))
        return strip

    return make


def attention_inject() -> Strip:
    strip = Strip()
    inversion = strip.inverted(method="euler", keep_path=True)
    strip.show("without", strip.edit(inversion, 7.5))
    for preset, end in (("structure", 0.4), ("structure", 1.0), ("masactrl", 0.4), ("masactrl", 1.0)):
        plan = strip.add("AttentionInject", 2, model=strip.model, preset=preset, layers="all", start=0.0, end=end)
        strip.show(f"{preset}, end {end:g}", strip.edit(inversion, 7.5, attention=plan[0]))
    return strip


def prompt_plan(strip: Strip, target: str = TARGET, **settings: Any) -> Node:
    return strip.add(
        "PromptToPrompt", 1, model=strip.model, clip=strip.clip, source_text=SENTENCE, target_text=target, **settings
    )


def prompt_to_prompt() -> Strip:
    strip = Strip()
    inversion = strip.inverted(method="ddim", keep_path=True)
    for end in (0.0, 0.4, 1.0):
        plan = prompt_plan(strip, mode="replace", cross_end=end)
        strip.show(f"cross_end {end:g}", strip.edit(inversion, 4.0, positive=plan[1], attention=plan[2]))
    for weight in ("red:-4", "red:4"):
        plan = prompt_plan(strip, SENTENCE, mode="reweight", weights=weight, cross_end=1.0)
        strip.show(f"weights {weight}", strip.edit(inversion, 4.0, positive=plan[1], attention=plan[2]))
    return strip


def local_blend() -> Strip:
    strip = Strip()
    inversion = strip.inverted(method="ddim", keep_path=True)
    plan = prompt_plan(strip, mode="replace", cross_end=0.4)
    strip.show("without", strip.edit(inversion, 7.5, positive=plan[1], attention=plan[2]))
    for threshold in (0.2, 0.5, 0.8):
        blend = strip.add("LocalBlend", 2, attention=plan[2], words="circle", threshold=threshold)
        strip.show(f"threshold {threshold:g}", strip.edit(inversion, 7.5, positive=plan[1], attention=blend[0]))
    return strip


def word_mask() -> Strip:
    strip = Strip()
    for words in ("circle", "red", "blue", "background", "left"):
        found = strip.add(
            "WordMask",
            2,
            model=strip.model,
            clip=strip.clip,
            text=SENTENCE,
            words=words,
            latent=strip.latent,
            image=strip.picture[0],
            seed=1,
        )
        strip.cell(words, found[0])
    return strip


def restored(kind: str, steps: int, name: str, *values: float) -> Callable[[], Strip]:
    """A strip of restorations of a picture with a hole and noise, at values of one setting."""

    def make() -> Strip:
        strip = Strip()
        add = strip.add
        ground = add("SolidMask", 1, value=0.0, width=64, height=64)
        patch = add("SolidMask", 1, value=1.0, width=22, height=26)
        hole = add("MaskComposite", 1, destination=ground[0], source=patch[0], x=24, y=14, operation="add")
        operator = add("DamageMask", 2, mask=hole[0])
        damaged = add("ApplyDamage", 2, image=strip.picture[0], operator=operator[0], noise=10.0, seed=2)
        latent = add("VAEEncode", 2, pixels=damaged[0], vae=strip.vae)
        noise = add("RandomNoise", 3, noise_seed=1)
        sigmas = add("BasicScheduler", 3, model=strip.model, scheduler="normal", steps=steps)
        guider = add("BasicGuider", 3, model=strip.model, conditioning=strip.source)
        subject = {"operator": operator[0], "damaged": damaged[0], "vae": strip.vae, "noise": 10.0}
        strip.cell("damaged", damaged[0])
        for value in values:
            sampler = add(kind, 3, **subject, **{name: value})
            drawn = add(
                "SamplerCustomAdvanced",
                4,
                noise=noise[0],
                guider=guider[0],
                sampler=sampler[0],
                sigmas=sigmas[0],
                latent_image=latent[0],
            )
            strip.show(f"{name} {value:g}", drawn[0])
        return strip

    return make


STRIPS: dict[str, Callable[[], Strip]] = {
    "Resample": resample,
    "InfEdit": infedit,
    "FlowEdit": flowedit,
    "NegativePromptInversion": negative_prompt,
    "DirectInversion": direct,
    "NoiseMapInvert": noise_map,
    "RFInversion": rf_inversion,
    # Fewer steps than the help pages of these two ask for show the method's own noise and not its knob.
    "EDICTCouple": knob("EDICTCouple", "p", 0.9, 0.93, 0.97, steps=50),
    "BELMInvert": knob("BELMInvert", "reseed", True, False, steps=50),
    "BDIAInvert": knob("BDIAInvert", "gamma", 0.7, 0.85, 1.0),
    "FixedPointInvert": round_trip("FixedPointInvert", 6, 1, 2, 5, 10),
    "SPDInvert": round_trip("SPDInvert", 8, 2, 10, 25),
    "NullTextOptimize": null_text,
    "NoiseOptimize": noise_optimize,
    "AttentionInject": attention_inject,
    "PromptToPrompt": prompt_to_prompt,
    "LocalBlend": local_blend,
    "WordMask": word_mask,
    "RestoreDDS": restored("RestoreDDS", 20, "trust", 0.1, 1.0, 10.0),
    "RestoreREDDiff": restored("RestoreREDDiff", 60, "prior", 0.02, 0.25, 2.0),
    "RestoreGuided": restored("RestoreGuided", 50, "measurement_weight", 0.1, 1.0, 3.0),
}


def write(server: Server, info: dict[str, Any], name: str) -> None:
    """Run one strip and write it.

    Raises:
        SystemExit: If it does not run.
    """
    from PIL import Image, ImageDraw, ImageFont

    strip = STRIPS[name]()
    outcome = server.run(strip.to_api(info), LONGEST)
    if not outcome.succeeded:
        raise SystemExit(
            f"The strip of {name} must run, got {(outcome.error or {}).get('exception_message')}; see its function."
        )
    sheet = Image.new("RGB", (len(strip.cells) * (SIDE + GAP) - GAP, SIDE + CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for i, (caption, node) in enumerate(strip.cells):
        (file,) = outcome.files(str(node.number))
        picture = Image.open(io.BytesIO(server.view(file))).convert("RGB")
        left = i * (SIDE + GAP)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, 0))
        draw.text((left + SIDE // 2, SIDE + CAPTION // 2), caption, "black", font, anchor="mm")
    target = FOLDER / f"{name}.jpg"
    sheet.save(target, quality=QUALITY, optimize=True)
    print(f"{target.name}: {target.stat().st_size} bytes, {outcome.seconds:.1f} s", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", nargs="*", metavar="node", help=f"of {', '.join(STRIPS)}")
    wanted = parser.parse_args().nodes or list(STRIPS)
    unknown = sorted(set(wanted) - set(STRIPS))
    if unknown:
        raise SystemExit(f"nodes must be among those with a strip, got {unknown}; see --help.")
    hosts = find_hosts()
    if not hosts:
        raise SystemExit("COMFYUI_PATH must name a ComfyUI checkout, got none; set it and run this again.")
    failures = []
    with Server(hosts[0]) as server:
        info = server.object_info()
        for name in wanted:
            try:
                write(server, info, name)
            except (SystemExit, ValueError, RuntimeError) as error:
                failures.append(f"{name}: {error}")
                print(failures[-1], flush=True)
    if failures:
        raise SystemExit(f"Every strip must run, got {len(failures)} that did not; see above.")


if __name__ == "__main__":
    main()
