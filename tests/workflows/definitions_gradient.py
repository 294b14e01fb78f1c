"""Templates of the methods that differentiate the model."""

from __future__ import annotations

from retrace_tests.workflows.graph import Graph
from retrace_tests.workflows.parts import decode, prompt, side_by_side, start


def spd_inversion() -> Graph:
    graph = Graph("spd_inversion")
    begin = start(graph, "eps", size="big", colour="cyan", shape="ring", position="right", background="red", seed=8)
    shared = {"model": begin.model[0], "source": begin.source[0], "latent": begin.latent[0], "steps": 10}
    plain = graph.add("Invert", 2, "DDIM, where the descent starts", **shared, method="ddim")
    solved = graph.add("SPDInvert", 2, **shared, iterations=10)
    decoded = []
    for name, inversion in (("DDIM", plain), ("SPDInv", solved)):
        back = graph.add("Resample", 3, f"Reconstruct: {name}", model=begin.model[0], inversion=inversion[0])
        graph.add(
            "InversionReport",
            4,
            f"Report: {name}",
            inversion=inversion[0],
            model=begin.model[0],
            vae=begin.vae,
            reconstructed=back[0],
        )
        decoded.append(decode(graph, begin, 5, f"Decode: {name}", back[0])[0])
    side_by_side(graph, 5, "Source | DDIM | SPDInv", begin.picture[0], *decoded)
    graph.group("Picture and model", 0, 1)
    graph.group("Into the noise, 10 steps", 2)
    graph.group("And back", 3)
    graph.group("Compare", 4)
    graph.group("Look", 5, 6)
    return graph


def noise_optimize() -> Graph:
    graph = Graph("noise_optimize")
    begin = start(graph, "eps", size="big", colour="red", shape="circle", position="left", background="blue", seed=3)
    target = prompt(graph, begin, 1, "Target prompt", "a big green circle on the left of a blue background")
    empty = prompt(graph, begin, 1, "Negative prompt", "")
    grown = graph.add("GrowMask", 2, "Grow the mask to cover the edge", mask=begin.picture[1], expand=4)
    ground = graph.add("InvertMask", 2, "The background", mask=grown[0])
    inversion = graph.add(
        "Invert",
        2,
        model=begin.model[0],
        source=begin.source[0],
        latent=begin.latent[0],
        steps=6,
        method="ddim",
    )
    edit = graph.add(
        "Resample",
        3,
        "Edit, as it is",
        model=begin.model[0],
        inversion=inversion[0],
        cfg=5.0,
        positive=target[0],
        negative=empty[0],
    )
    moved = graph.add(
        "NoiseOptimize",
        3,
        "Edit whose background meets the source",
        model=begin.model[0],
        inversion=inversion[0],
        reference=begin.latent[0],
        cfg=5.0,
        iterations=8,
        learning_rate=0.05,
        positive=target[0],
        negative=empty[0],
        mask=ground[0],
    )
    plain = decode(graph, begin, 4, "Decode the edit", edit[0])
    fitting = decode(graph, begin, 4, "Decode the one that fits", moved[1])
    graph.add("PreviewImage", 5, "Loss of every iteration", images=moved[2])
    side_by_side(graph, 4, "Source | edit | edit with its noise optimised", begin.picture[0], plain[0], fitting[0])
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise", 2)
    graph.group("Edit, twice", 3)
    graph.group("Look", 4, 5)
    return graph
