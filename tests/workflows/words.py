"""Templates of the nodes that know words."""

from __future__ import annotations

from collections.abc import Callable

from retrace_tests.workflows.definitions import _side_by_side
from retrace_tests.workflows.graph import Graph

CAPTION = "a big red circle on the left of a blue background"
STEPS = 16


def prompt_to_prompt() -> Graph:
    graph = Graph("prompt_to_prompt")
    model = graph.add("LoadShapesModel", 0, kind="eps")
    picture = graph.add(
        "ShapesPicture", 0, "The picture", size="big", colour="red", shape="circle", position="left", seed=3
    )
    latent = graph.add("VAEEncode", 0, pixels=picture[0], vae=model[2])
    empty = graph.add("CLIPTextEncode", 0, "Empty prompt", text="", clip=model[1])
    edits = (
        ("Replace", {"target_text": CAPTION.replace("red", "green"), "mode": "replace"}),
        ("Refine", {"target_text": CAPTION.replace("a blue", "a purple"), "mode": "refine", "cross_end": 0.4}),
        (
            "Reweight",
            {"target_text": CAPTION, "mode": "reweight", "weights": "red:-4", "cross_end": 1.0},
        ),
    )
    plans = [
        graph.add("PromptToPrompt", 1, title, model=model[0], clip=model[1], source_text=CAPTION, **settings)
        for title, settings in edits
    ]
    inversion = graph.add(
        "Invert",
        2,
        "Invert: with its path",
        model=model[0],
        source=plans[0][0],
        latent=latent[0],
        steps=STEPS,
        method="ddim",
        keep_path=True,
    )
    blended = graph.add(
        "LocalBlend", 2, "Only where the circle is", attention=plans[0][2], words="circle", threshold=0.5
    )
    shown = []
    for (title, _), plan, attention in zip(edits, plans, (blended[0], plans[1][2], plans[2][2]), strict=True):
        edit = graph.add(
            "Resample",
            3,
            title,
            model=model[0],
            inversion=inversion[0],
            cfg=4.0,
            positive=plan[1],
            negative=empty[0],
            attention=attention,
        )
        shown.append(graph.add("VAEDecode", 4, f"Decode: {title}", samples=edit[0], vae=model[2])[0])
    _side_by_side(graph, 4, "Source | replace | refine | reweight", picture[0], *shown)
    graph.group("Picture and model", 0)
    graph.group("Source and target prompts", 1)
    graph.group("Into the noise", 2)
    graph.group("And back, three times", 3)
    graph.group("Look", 4, 5)
    return graph


def word_mask() -> Graph:
    graph = Graph("word_mask")
    model = graph.add("LoadShapesModel", 0, kind="eps")
    picture = graph.add(
        "ShapesPicture",
        0,
        "The picture",
        size="big",
        colour="yellow",
        shape="star",
        position="right",
        background="purple",
        seed=8,
    )
    latent = graph.add("VAEEncode", 0, pixels=picture[0], vae=model[2])
    found = graph.add(
        "WordMask",
        1,
        model=model[0],
        clip=model[1],
        text=picture[2],
        words="star",
        grow=2,
        latent=latent[0],
        image=picture[0],
    )
    source = graph.add("CLIPTextEncode", 1, "Source prompt", text=picture[2], clip=model[1])
    target = graph.add(
        "CLIPTextEncode",
        1,
        "Target prompt",
        text="a big green star on the right of a purple background",
        clip=model[1],
    )
    empty = graph.add("CLIPTextEncode", 1, "Empty prompt", text="", clip=model[1])
    inversion = graph.add("Invert", 2, model=model[0], source=source[0], latent=latent[0], keep_path=True)
    edit = graph.add(
        "Resample",
        2,
        "Edit inside the word's mask",
        model=model[0],
        inversion=inversion[0],
        cfg=4.0,
        positive=target[0],
        negative=empty[0],
        mask=found[1],
    )
    white = graph.add("MaskToImage", 3, "The mask as a picture", mask=found[1])
    edited = graph.add("VAEDecode", 3, "Decode the edit", samples=edit[0], vae=model[2])
    _side_by_side(graph, 3, "Source | heat | mask | edit", picture[0], found[0], white[0], edited[0])
    graph.group("Picture and model", 0)
    graph.group("Where is the star?", 1)
    graph.group("Edit there", 2)
    graph.group("Look", 3, 4)
    return graph


WORKFLOWS: tuple[Callable[[], Graph], ...] = (prompt_to_prompt, word_mask)
