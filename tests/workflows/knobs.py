"""The picture strips of the help pages, which make.py writes.

Each strip is the source and then the result at a few values of a node's main knob. Seeds are fixed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

from retrace_tests.workflows.graph import ROOT, Link, Node
from retrace_tests.workflows.parts import Scene
from retrace_tests.workflows.server import Server

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


Cells = Iterator[tuple[str, Node | Link]]
STRIPS: dict[str, Callable[[], Strip]] = {}


def of(name: str, *settings: Any) -> Callable[[Callable[[Strip], Cells]], Callable[[Strip], Cells]]:
    """Take what a function yields for the cells of a node's strip; settings are those of Strip."""

    def take(cells: Callable[[Strip], Cells]) -> Callable[[Strip], Cells]:
        def make() -> Strip:
            strip = Strip(*settings)
            for caption, latent in cells(strip):
                strip.show(caption, latent)
            return strip

        STRIPS[name] = make
        return cells

    return take


@of("Resample")
def resample(strip: Strip) -> Cells:
    whole = strip.inverted()
    for cfg in (1.0, 3.0, 7.5):
        yield f"cfg {cfg:g}", strip.edit(whole, cfg)
    for strength in (0.7, 0.5):
        yield f"7.5, strength {strength:g}", strip.edit(strip.inverted(strength=strength), 7.5)


@of("InfEdit")
def infedit(strip: Strip) -> Cells:
    for cfg, eta in ((1.0, 1.0), (2.3, 1.0), (5.0, 1.0), (2.3, 0.5), (2.3, 0.0)):
        yield f"cfg {cfg:g}, eta {eta:g}", strip.paired("InfEdit", steps=STEPS, target_cfg=cfg, eta=eta, seed=1)


@of("FlowEdit", "flow")
def flowedit(strip: Strip) -> Cells:
    for count, cfg in ((4, 3.0), (7, 3.0), (10, 3.0), (10, 1.0), (10, 6.0)):
        settings = {"n_max": count, "source_cfg": 1.0, "target_cfg": cfg}
        yield f"n_max {count}, cfg {cfg:g}", strip.paired("FlowEdit", steps=STEPS, **settings, seed=1)


@of("NegativePromptInversion")
def negative_prompt(strip: Strip) -> Cells:
    links = {"model": strip.model, "inversion": strip.inverted(method="ddim"), "target": strip.target}
    for cfg, prox in ((1.0, "none"), (2.0, "none"), (5.0, "none"), (2.0, "l0"), (2.0, "l1")):
        yield f"cfg {cfg:g}, {prox}", strip.add("NegativePromptInversion", 3, **links, cfg=cfg, prox=prox)[0]


@of("DirectInversion")
def direct(strip: Strip) -> Cells:
    for carry in (0.0, 0.5, 1.0):
        inversion = strip.inverted("DirectInversion", cfg=5.0, negative=strip.empty, carry=carry)
        yield f"carry {carry:g}", strip.edit(inversion)


@of("NoiseMapInvert")
def noise_map(strip: Strip) -> Cells:
    for strength in (0.3, 0.5, 0.7, 0.9):
        yield f"strength {strength:g}", strip.edit(strip.inverted("NoiseMapInvert", strength=strength, seed=1))


@of("RFInversion", "flow", "a big white star on the left of a blue background")
def rf_inversion(strip: Strip) -> Cells:
    for stop in (0.2, 0.5, 0.7, 0.8, 0.9):
        inversion = strip.inverted("RFInversion", source=strip.empty, scheduler="simple", stop=stop)
        yield f"stop {stop:g}", strip.edit(inversion, 3.0)


def knob(kind: str, name: str, *values: Any, steps: int = STEPS) -> None:
    """A strip of edits at values of one setting of an inverting node."""

    def cells(strip: Strip) -> Cells:
        for value in values:
            shown = value if isinstance(value, (str, bool)) else f"{value:g}"
            yield f"{name} {shown}", strip.edit(strip.inverted(kind, steps=steps, **{name: value}), 3.0)

    of(kind)(cells)


def round_trip(kind: str, steps: int, *values: int) -> None:
    """A strip of reconstructions at numbers of iterations."""

    def cells(strip: Strip) -> Cells:
        yield "Invert, euler", strip.back(None, strip.inverted(method="euler", steps=steps))
        for value in values:
            yield f"iterations {value}", strip.back(None, strip.inverted(kind, steps=steps, iterations=value))

    of(kind)(cells)


# Fewer steps than the help pages of these two ask for show the method's own noise and not its knob.
knob("EDICTCouple", "p", 0.9, 0.93, 0.97, steps=50)
knob("BELMInvert", "reseed", True, False, steps=50)
knob("BDIAInvert", "gamma", 0.7, 0.85, 1.0)
round_trip("FixedPointInvert", 6, 1, 2, 5, 10)
round_trip("SPDInvert", 8, 2, 10, 25)


@of("NullTextOptimize")
def null_text(strip: Strip) -> Cells:
    inversion = strip.inverted(method="ddim", keep_path=True)
    yield "not fitted", strip.edit(inversion, 7.5, positive=strip.source)
    links, fitted = {"model": strip.model, "inversion": inversion, "negative": strip.empty}, None
    for count in (1, 3, 10):
        fitted = strip.add("NullTextOptimize", 3, **links, cfg=7.5, inner_steps=count)[0]
        yield f"inner_steps {count}", strip.back(None, fitted)
    yield "10, edited", strip.edit(fitted, 7.5, negative=None)


@of("NoiseOptimize")
def noise_optimize(strip: Strip) -> Cells:
    inversion = strip.inverted(method="ddim", steps=6)
    yield "not moved", strip.edit(inversion, 5.0)
    grown = strip.add("GrowMask", 2, mask=strip.picture[1], expand=4)
    ground = strip.add("InvertMask", 2, mask=grown[0])
    links = {"model": strip.model, "inversion": inversion, "reference": strip.latent}
    prompts = {"positive": strip.target, "negative": strip.empty, "mask": ground[0]}
    moved = strip.add("NoiseOptimize", 3, **links, cfg=5.0, iterations=8, learning_rate=0.05, **prompts)
    yield "iterations 8", moved[1]


@of("AttentionInject")
def attention_inject(strip: Strip) -> Cells:
    inversion = strip.inverted(method="euler", keep_path=True)
    yield "without", strip.edit(inversion, 7.5)
    for preset, end in (("structure", 0.4), ("structure", 1.0), ("masactrl", 0.4), ("masactrl", 1.0)):
        plan = strip.add("AttentionInject", 2, model=strip.model, preset=preset, layers="all", start=0.0, end=end)
        yield f"{preset}, end {end:g}", strip.edit(inversion, 7.5, attention=plan[0])


def prompt_plan(strip: Strip, target: str = TARGET, **settings: Any) -> Node:
    texts = {"source_text": SENTENCE, "target_text": target}
    return strip.add("PromptToPrompt", 1, model=strip.model, clip=strip.clip, **texts, **settings)


@of("PromptToPrompt")
def prompt_to_prompt(strip: Strip) -> Cells:
    inversion = strip.inverted(method="ddim", keep_path=True)
    for end in (0.0, 0.4, 1.0):
        plan = prompt_plan(strip, mode="replace", cross_end=end)
        yield f"cross_end {end:g}", strip.edit(inversion, 4.0, positive=plan[1], attention=plan[2])
    for weight in ("red:-4", "red:4"):
        plan = prompt_plan(strip, SENTENCE, mode="reweight", weights=weight, cross_end=1.0)
        yield f"weights {weight}", strip.edit(inversion, 4.0, positive=plan[1], attention=plan[2])


@of("LocalBlend")
def local_blend(strip: Strip) -> Cells:
    inversion = strip.inverted(method="ddim", keep_path=True)
    plan = prompt_plan(strip, mode="replace", cross_end=0.4)
    yield "without", strip.edit(inversion, 7.5, positive=plan[1], attention=plan[2])
    for threshold in (0.2, 0.5, 0.8):
        blend = strip.add("LocalBlend", 2, attention=plan[2], words="circle", threshold=threshold)
        yield f"threshold {threshold:g}", strip.edit(inversion, 7.5, positive=plan[1], attention=blend[0])


@of("WordMask")
def word_mask(strip: Strip) -> Cells:
    links = {"model": strip.model, "clip": strip.clip, "latent": strip.latent, "image": strip.picture[0]}
    for words in ("circle", "red", "blue", "background", "left"):
        strip.cell(words, strip.add("WordMask", 2, **links, text=SENTENCE, words=words, seed=1)[0])
    yield from ()


def restored(kind: str, steps: int, name: str, *values: float) -> None:
    """A strip of restorations of a picture with a hole and noise, at values of one setting."""

    def cells(strip: Strip) -> Cells:
        add = strip.add
        ground = add("SolidMask", 1, value=0.0, width=64, height=64)
        patch = add("SolidMask", 1, value=1.0, width=22, height=26)
        hole = add("MaskComposite", 1, destination=ground[0], source=patch[0], x=24, y=14, operation="add")
        operator = add("DamageMask", 2, mask=hole[0])
        damaged = add("ApplyDamage", 2, image=strip.picture[0], operator=operator[0], noise=10.0, seed=2)
        links = {"latent_image": add("VAEEncode", 2, pixels=damaged[0], vae=strip.vae)}
        links["noise"] = add("RandomNoise", 3, noise_seed=1)
        links["sigmas"] = add("BasicScheduler", 3, model=strip.model, scheduler="normal", steps=steps)
        links["guider"] = add("BasicGuider", 3, model=strip.model, conditioning=strip.source)
        subject = {"operator": operator[0], "damaged": damaged[0], "vae": strip.vae, "noise": 10.0}
        strip.cell("damaged", damaged[0])
        for value in values:
            sampler = add(kind, 3, **subject, **{name: value})
            yield f"{name} {value:g}", add("SamplerCustomAdvanced", 4, sampler=sampler, **links)[0]

    of(kind)(cells)


restored("RestoreDDS", 20, "trust", 0.1, 1.0, 10.0)
restored("RestoreREDDiff", 60, "prior", 0.02, 0.25, 2.0)
restored("RestoreGuided", 50, "measurement_weight", 0.1, 1.0, 3.0)


def write(server: Server, info: dict[str, Any], name: str) -> None:
    """Run one strip and write it."""
    from PIL import Image, ImageDraw, ImageFont

    strip = STRIPS[name]()
    outcome = server.run(strip.to_api(info), LONGEST)
    if not outcome.succeeded:
        raise SystemExit(f"The strip of {name} must run, got {outcome.error}; see its function.")
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
