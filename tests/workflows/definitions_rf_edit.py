"""Templates of edits that read the source's keys and values."""

from __future__ import annotations

from retrace_tests.workflows.graph import Graph
from retrace_tests.workflows.parts import decode, prompt, side_by_side, start


def rf_edit() -> Graph:
    graph = Graph("rf_edit")
    begin = start(
        graph, "flow", size="big", colour="green", shape="triangle", position="left", background="purple", seed=4
    )
    target = prompt(graph, begin, 1, "Target prompt", "a big yellow triangle on the left of a blue background")
    shared = {
        "model": begin.model[0],
        "source": begin.source[0],
        "target": target[0],
        "latent": begin.latent[0],
        "steps": 10,
    }
    plain = graph.add("RFEdit", 2, "RF-Solver alone: nothing read", **shared, inject=0)
    most = graph.add("RFEdit", 2, "The first 9 of 10 steps read", **shared, inject=9, layers="all")
    every = graph.add("RFEdit", 2, "All 10 steps read", **shared, inject=10, layers="all")
    fire = graph.add(
        "RFEdit", 2, "FireFlow: half the calls", **shared, method="fireflow", inject=10, layers="all", aligned=True
    )
    graph.add("PreviewAny", 3, "What was kept", source=every[2])
    decoded = [decode(graph, begin, 3, "Decode", edit[0])[0] for edit in (plain, most, every, fire)]
    side_by_side(graph, 4, "Source | alone | 9 steps | 10 steps | FireFlow, 10 steps", begin.picture[0], *decoded)
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise and back", 2)
    graph.group("Look", 3, 5)
    return graph


def kv_edit() -> Graph:
    graph = Graph("kv_edit")
    begin = start(graph, "flow", size="big", colour="red", shape="circle", position="right", background="blue", seed=6)
    target = prompt(graph, begin, 1, "Target prompt", "a small white triangle on the right of a purple background")
    inversion = graph.add(
        "Invert",
        2,
        "Invert: with its path",
        model=begin.model[0],
        source=begin.source[0],
        latent=begin.latent[0],
        steps=12,
        scheduler="simple",
        method="midpoint",
        keep_path=True,
    )
    mask = graph.add("GrowMask", 2, "Where it is made anew", mask=begin.picture[1], expand=4)
    plan = graph.add(
        "AttentionInject", 2, "Keys and values outside the mask", model=begin.model[0], preset="kv_edit", mask=mask[0]
    )
    shared = {"model": begin.model[0], "inversion": inversion[0], "positive": target[0], "cfg": 1.0}
    free = graph.add("Resample", 3, "No mask", **shared)
    read = graph.add("Resample", 3, "Keys and values alone", **shared, attention=plan[0])
    pasted = graph.add("Resample", 3, "Mask on the latent alone", **shared, mask=mask[0])
    kept = graph.add("Resample", 3, "KV-Edit: mask on both", **shared, mask=mask[0], attention=plan[0])
    decoded = [decode(graph, begin, 4, "Decode", edit[0])[0] for edit in (free, read, pasted, kept)]
    side_by_side(graph, 5, "Source | no mask | keys and values | latent | KV-Edit", begin.picture[0], *decoded)
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise", 2)
    graph.group("And back", 3)
    graph.group("Look", 4, 6)
    return graph
