"""Templates of edits in one node."""

from __future__ import annotations

from retrace_tests.workflows.graph import Graph
from retrace_tests.workflows.parts import Scene, words_of


def infedit() -> Graph:
    scene = Scene("infedit", "eps", "a big red star on the left of a cyan background", seed=4)
    texts = {
        "another colour": "a big blue star on the left of a cyan background",
        "another shape": "a big red circle on the left of a cyan background",
    }
    targets = {name: scene.prompt(f"Target prompt: {name}", text) for name, text in texts.items()}
    negative = scene.prompt("Negative prompt", "")
    pair = {"kind": "InfEdit", "negative": negative}
    edits = [scene.invert(f"InfEdit: {name}", target=target, **pair) for name, target in targets.items()]
    scene.look(3, "Source | another colour | another shape", scene.picture[0], *edits)
    return scene.frame("Picture, model and prompts | Edit, without an inversion | Look", 2, 1, 2)


def flow_edit() -> Graph:
    scene = Scene("flow_edit", "flow", "a big yellow square on the right of a purple background", seed=5)
    ground = scene.prompt("Target prompt: another background", "a big yellow square on the right of a green background")
    colour = scene.prompt("Target prompt: another colour", "a big red square on the right of a purple background")
    negative = scene.prompt("Negative prompt", "")
    free = scene.invert("FlowEdit: everywhere", "FlowEdit", target=ground, negative=negative)
    inside = {"target": colour, "negative": negative, "mask": scene.grown()}
    masked = scene.invert("FlowEdit: inside the mask", "FlowEdit", **inside)
    scene.look(3, "Source | another background | another colour", scene.picture[0], free, masked)
    return scene.frame("Picture, model and prompts | Edit, without an inversion | Look", 2, 1, 2)


def lcm_infedit() -> Graph:
    scene = Scene("lcm_infedit", "eps", "a big purple square at the top of a yellow background", seed=8, lcm=True)
    target = scene.prompt("Target prompt: another shape", "a big purple cross at the top of a yellow background")
    drawn = scene.prompt("Prompt of a new picture", "a small red star on the left of a white background")
    negative = scene.prompt("Negative prompt", "")
    sampling = scene.add("ModelSamplingDiscrete", 2, "LCM sampling", model=scene.model, sampling="lcm")
    few = {"model": sampling, "target": target, "steps": 4, "target_cfg": 1.0}
    edited = scene.invert("InfEdit, 4 steps", "InfEdit", 3, **few)
    # EmptyLatentImage counts in eighths of a picture, this model in quarters.
    empty = scene.add("LatentMultiply", 2, "An empty latent of that size", samples=scene.latent, multiplier=0.0)
    links = {"model": sampling, "positive": drawn, "negative": negative, "latent_image": empty}
    lcm = {"sampler_name": "lcm", "scheduler": "sgm_uniform", "denoise": 1.0}
    new = scene.add("KSampler", 3, "A new picture, 4 steps", **links, seed=2, steps=4, cfg=1.0, **lcm)
    scene.look(4, "Source | edit | new picture", scene.picture[0], edited, new)
    return scene.frame("Picture, model and prompts | For few steps | Edit, and draw | Look", 2, 1, 1, 2)


def infedit_unified() -> Graph:
    caption = "a big yellow star on the right of a purple background"
    scene = Scene("infedit_unified", "eps", caption, seed=3, lcm=True)
    sampling = scene.add("ModelSamplingDiscrete", 1, "LCM sampling", model=scene.model, sampling="lcm")
    texts = {"source_text": caption, "model": sampling, "clip": scene.clip}
    shape = {"target_text": caption.replace("star", "square")}
    colour = {"target_text": caption.replace("yellow", "green"), "cross_end": 1.0, "self_end": 1.0}
    to_the_end = "Another colour: hold on to the source to the end"
    other_shape = scene.add("UnifiedAttentionControl", 2, "Another shape", **texts, **shape)
    other_colour = scene.add("UnifiedAttentionControl", 2, to_the_end, **texts, **colour)
    edits = []
    for title, plan, attention in (
        ("Another shape, no control", other_shape, {}),
        ("Another shape, with control", other_shape, {"attention": other_shape[2]}),
        ("Another colour, with control", other_colour, {"attention": other_colour[2]}),
    ):
        few = {"model": sampling, "source": plan[0], "target": plan[1], "steps": 4, "target_cfg": 1.0}
        edits.append(scene.invert(title, "InfEdit", 3, **few, **attention))
    scene.look(4, "Source | shape, no control | shape | colour", scene.picture[0], *edits)
    titles = "Picture and model | Both prompts, and what attention does | InfEdit, 4 steps | Look"
    return scene.frame(titles, 2, 1, 1, 2)


def rf_edit() -> Graph:
    scene = Scene("rf_edit", "flow", "a big green triangle on the left of a purple background", seed=4)
    target = scene.prompt("Target prompt", "a big yellow triangle on the left of a blue background")
    edits = [
        scene.invert(title, "RFEdit", target=target, steps=10, **settings)
        for title, settings in (
            ("RF-Solver alone: nothing read", {"inject": 0}),
            ("The first 9 of 10 steps read", {"inject": 9, "layers": "all"}),
            ("All 10 steps read", {"inject": 10, "layers": "all"}),
            ("FireFlow: half the calls", {"method": "fireflow", "inject": 10, "layers": "all", "aligned": True}),
        )
    ]
    scene.add("PreviewAny", 3, "What was kept", source=edits[2][2])
    scene.look(3, "Source | alone | 9 steps | 10 steps | FireFlow, 10 steps", scene.picture[0], *edits)
    return scene.frame("Picture, model and prompts | Into the noise and back | Look", 2, 1, 2)


def visctrl() -> Graph:
    scene = Scene("visctrl", "eps", "a big purple square on the right of a cyan background", seed=3)
    words = words_of("a big yellow cross on the right of a cyan background")
    reference = scene.add("ShapesPicture", 0, "The reference", **words, seed=3)
    shown = scene.add("VAEEncode", 1, "Encode the reference", pixels=reference, vae=scene.vae)
    about = scene.prompt("Prompt of the reference", reference[2])
    target = scene.prompt("Prompt of the target", "a big yellow cross on the right of a cyan background")
    grown = scene.grown("Where the target may change", 1, expand=6, tapered_corners=True)
    links = {"model": scene.model, "reference_prompt": about, "target_prompt": target, "reference": shown}
    links |= {"target": scene.latent, "mask": grown}
    settings = dict(start_step=0, cfg=1.0, later_start_step=0, later_cfg=1.0, start_layer=0, method="midpoint")
    edits = [
        scene.add("VisCtrl", 2, f"VisCtrl, passes: {passes}", **links, passes=passes, **settings) for passes in (1, 3)
    ]
    scene.look(3, "Reference | target | one pass | three", reference[0], scene.picture[0], *edits)
    return scene.frame("Target and reference | Carry it over | Look", 2, 1, 2)
