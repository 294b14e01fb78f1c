"""Templates of edits that read from their source inside attention, and of what knows words."""

from __future__ import annotations

from retrace_tests.workflows.graph import Graph
from retrace_tests.workflows.parts import Scene


def attention_inject() -> Graph:
    scene = Scene("attention_inject", "eps", "a small white square at the top of a purple background", seed=2)
    target, negative = scene.prompts("a small green square at the top of a purple background")
    inversion = scene.invert("Invert in 6 steps", steps=6, method="euler", keep_path=True)
    settings = {"preset": "structure", "layers": "all", "start": 0.0, "end": 1.0}
    plan = scene.add("AttentionInject", 2, "Structure: queries and keys of the source", model=scene.model, **settings)
    sites = scene.add("AttentionSites", 3, "What the model offers", model=scene.model, latent=scene.latent)
    scene.add("PreviewAny", 4, "Layers for AttentionInject", source=sites)
    wanted = {"cfg": 7.5, "positive": target, "negative": negative}
    plain = scene.back("Edit without attention control", inversion, **wanted)
    attended = scene.back("Edit with attention control", inversion, **wanted, attention=plan)
    scene.look(4, "Source | without | with attention control", scene.picture[0], plain, attended)
    return scene.frame("Picture, model and prompts | Into the noise, and the plan | And back, twice | Look", 2, 1, 1, 2)


def masactrl() -> Graph:
    scene = Scene("masactrl", "eps", "a big red square on a yellow background")
    # Without a word on colours: the look is to come from the source.
    texts = {"shape": "a big star", "place": "a big square on the left"}
    targets = {name: scene.prompt(f"Target prompt: another {name}", text) for name, text in texts.items()}
    negative = scene.prompt("Negative prompt", "")
    inversion = scene.invert("Invert: with its path", steps=10, method="ddim", keep_path=True)
    settings = {"preset": "masactrl", "layers": "all", "start": 0.1, "end": 1.0}
    plan = scene.add("AttentionInject", 2, "MasaCtrl: keys and values of the source", model=scene.model, **settings)
    edits = [
        scene.back(f"Another {name}, {how}", inversion, positive=target, negative=negative, **attention)
        for name, target in targets.items()
        for how, attention in (("without", {}), ("MasaCtrl", {"attention": plan}))
    ]
    scene.look(4, "Source | shape, without | MasaCtrl | place, without | MasaCtrl", scene.picture[0], *edits)
    titles = "Picture, model and prompts | Into the noise, and the plan | And back, four times | Look"
    return scene.frame(titles, 2, 1, 1, 2)


def plug_and_play() -> Graph:
    scene = Scene("plug_and_play", "eps", "a big green triangle on the left of a white background", seed=2)
    # Without a word on the place: the layout is to come from the source.
    target = scene.prompt("Target prompt: other colours", "a big purple triangle on a yellow background")
    negative = scene.prompt("Negative prompt", "")
    inversion = scene.invert("Invert: with its path", steps=10, method="ddim", keep_path=True)
    # SD1.5's own are output:4-11 and block 4 of 12; this UNet has four output blocks.
    settings = {"model": scene.model, "layers": "output:0-3", "end": 0.5}
    structure = scene.add("AttentionInject", 2, "Queries and keys alone", preset="structure", **settings)
    pnp = {"preset": "pnp", "feature_block": 1}
    whole = scene.add("AttentionInject", 2, "Plug-and-play: with the feature", **settings, **pnp)
    edits = [
        scene.back(title, inversion, cfg=7.5, positive=target, negative=negative, **attention)
        for title, attention in (
            ("Without", {}),
            ("Queries and keys", {"attention": structure}),
            ("PnP", {"attention": whole}),
        )
    ]
    scene.look(4, "Source | without | queries and keys | plug-and-play", scene.picture[0], *edits)
    titles = "Picture, model and prompts | Into the noise, and the plans | And back, three times | Look"
    return scene.frame(titles, 2, 1, 1, 2)


def kv_edit() -> Graph:
    scene = Scene("kv_edit", "flow", "a big red circle on the right of a blue background", seed=6)
    target = scene.prompt("Target prompt", "a small white triangle on the right of a purple background")
    settings = {"steps": 12, "scheduler": "simple", "method": "midpoint", "keep_path": True}
    inversion = scene.invert("Invert: with its path", **settings)
    mask = scene.grown("Where it is made anew")
    about = "Keys and values outside the mask"
    plan = scene.add("AttentionInject", 2, about, model=scene.model, preset="kv_edit", mask=mask)
    edits = [
        scene.back(title, inversion, positive=target, cfg=1.0, **held)
        for title, held in (
            ("No mask", {}),
            ("Keys and values alone", {"attention": plan}),
            ("Mask on the latent alone", {"mask": mask}),
            ("KV-Edit: mask on both", {"mask": mask, "attention": plan}),
        )
    ]
    scene.look(4, "Source | no mask | keys and values | latent | KV-Edit", scene.picture[0], *edits)
    return scene.frame("Picture, model and prompts | Into the noise | And back | Look", 2, 1, 1, 2)


def prompt_to_prompt() -> Graph:
    caption = "a big red circle on the left of a blue background"
    scene = Scene("prompt_to_prompt", "eps", caption, seed=3, about=None)
    empty = scene.prompt("Empty prompt", "")
    edits = {
        "Replace": {"target_text": caption.replace("red", "green"), "mode": "replace"},
        "Refine": {"target_text": caption.replace("a blue", "a purple"), "mode": "refine", "cross_end": 0.4},
        "Reweight": {"target_text": caption, "mode": "reweight", "weights": "red:-4", "cross_end": 1.0},
    }
    texts = {"model": scene.model, "clip": scene.clip, "source_text": caption}
    plans = [scene.add("PromptToPrompt", 1, title, **texts, **settings) for title, settings in edits.items()]
    inversion = scene.invert("Invert: with its path", source=plans[0], steps=16, method="ddim", keep_path=True)
    where = {"attention": plans[0][2], "words": "circle", "threshold": 0.5}
    blended = scene.add("LocalBlend", 2, "Only where the circle is", **where)
    shown = [
        scene.back(title, inversion, cfg=4.0, positive=plan[1], negative=empty, attention=attention)
        for title, plan, attention in zip(edits, plans, (blended, plans[1][2], plans[2][2]), strict=True)
    ]
    scene.look(4, "Source | replace | refine | reweight", scene.picture[0], *shown)
    return scene.frame("Picture, model and prompts | Into the noise | And back, three times | Look", 2, 1, 1, 2)


def word_mask() -> Graph:
    scene = Scene("word_mask", "eps", "a big yellow star on the right of a purple background", seed=8)
    target, empty = scene.prompts("a big green star on the right of a purple background", "Empty prompt")
    about = {"model": scene.model, "clip": scene.clip, "text": scene.picture[2], "words": "star", "grow": 2}
    found = scene.add("WordMask", 1, **about, latent=scene.latent, image=scene.picture)
    inversion = scene.invert(keep_path=True)
    wanted = {"cfg": 4.0, "positive": target, "negative": empty, "mask": found[1]}
    edit = scene.back("Edit inside the word's mask", inversion, 2, **wanted)
    white = scene.add("MaskToImage", 3, "The mask as a picture", mask=found[1])
    scene.look(3, "Source | heat | mask | edit", scene.picture[0], found[0], white[0], edit)
    return scene.frame("Picture, model and prompts | Edit there | Look", 2, 1, 2)
