"""Template of InfEdit with its attention control."""

from __future__ import annotations

from retrace_tests.workflows.graph import Graph
from retrace_tests.workflows.parts import decode, side_by_side, start

WORDS = {"size": "big", "colour": "yellow", "shape": "star", "position": "right", "background": "purple"}
CAPTION = "a big yellow star on the right of a purple background"


def infedit_unified() -> Graph:
    graph = Graph("infedit_unified")
    begin = start(graph, "eps", lcm=True, **WORDS, seed=3)
    sampling = graph.add("ModelSamplingDiscrete", 1, "LCM sampling", model=begin.model[0], sampling="lcm")
    texts = {"source_text": CAPTION, "model": sampling[0], "clip": begin.model[1]}
    shape = graph.add(
        "UnifiedAttentionControl", 2, "Another shape", **texts, target_text=CAPTION.replace("star", "square")
    )
    colour = graph.add(
        "UnifiedAttentionControl",
        2,
        "Another colour: hold on to the source to the end",
        **texts,
        target_text=CAPTION.replace("yellow", "green"),
        cross_end=1.0,
        self_end=1.0,
    )
    edits = (
        ("Another shape, no control", shape, {}),
        ("Another shape, with control", shape, {"attention": shape[2]}),
        ("Another colour, with control", colour, {"attention": colour[2]}),
    )
    decoded = []
    for title, plan, extra in edits:
        edited = graph.add(
            "InfEdit",
            3,
            title,
            model=sampling[0],
            source=plan[0],
            target=plan[1],
            latent=begin.latent[0],
            steps=4,
            target_cfg=1.0,
            **extra,
        )
        decoded.append(decode(graph, begin, 4, f"Decode: {title.lower()}", edited[0])[0])
    side_by_side(graph, 4, "Source | shape, no control | shape | colour", begin.picture[0], *decoded)
    graph.group("Picture and model", 0, 1)
    graph.group("Both prompts, and what attention does", 2)
    graph.group("InfEdit, 4 steps", 3)
    graph.group("Look", 4, 5)
    return graph
