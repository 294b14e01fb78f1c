"""Template of VisCtrl."""

from __future__ import annotations

from retrace_tests.workflows.graph import Graph
from retrace_tests.workflows.parts import decode, prompt, side_by_side, start

REFERENCE = {"size": "big", "colour": "yellow", "shape": "cross", "position": "right", "background": "cyan"}
WORDS = {"size": "big", "colour": "purple", "shape": "square", "position": "right", "background": "cyan"}


def visctrl() -> Graph:
    graph = Graph("visctrl")
    begin = start(graph, "eps", **WORDS, seed=3)
    reference = graph.add("ShapesPicture", 0, "The reference", **REFERENCE, seed=3)
    shown = graph.add("VAEEncode", 1, "Encode the reference", pixels=reference[0], vae=begin.vae)
    about = graph.add("CLIPTextEncode", 1, "Prompt of the reference", text=reference[2], clip=begin.model[1])
    target = prompt(graph, begin, 1, "Prompt of the target", "a big yellow cross on the right of a cyan background")
    grown = graph.add(
        "GrowMask", 1, "Where the target may change", mask=begin.picture[1], expand=6, tapered_corners=True
    )
    decoded = []
    for passes in (1, 3):
        edited = graph.add(
            "VisCtrl",
            2,
            f"VisCtrl, passes: {passes}",
            model=begin.model[0],
            reference_prompt=about[0],
            target_prompt=target[0],
            reference=shown[0],
            target=begin.latent[0],
            passes=passes,
            start_step=0,
            cfg=1.0,
            later_start_step=0,
            later_cfg=1.0,
            start_layer=0,
            method="midpoint",
            mask=grown[0],
        )
        decoded.append(decode(graph, begin, 3, f"Decode: passes {passes}", edited[0])[0])
    side_by_side(graph, 3, "Reference | target | one pass | three", reference[0], begin.picture[0], *decoded)
    graph.group("Target and reference", 0, 1)
    graph.group("Carry it over", 2)
    graph.group("Look", 3, 4)
    return graph
