"""Templates of few-step models."""

from __future__ import annotations

from retrace_tests.workflows.graph import Graph
from retrace_tests.workflows.parts import decode, prompt, side_by_side, start


def lcm_infedit() -> Graph:
    graph = Graph("lcm_infedit")
    words = {"size": "big", "colour": "purple", "shape": "square", "position": "top", "background": "yellow"}
    begin = start(graph, "eps", lcm=True, **words, seed=8)
    target = prompt(
        graph, begin, 1, "Target prompt: another shape", "a big purple cross at the top of a yellow background"
    )
    drawn = prompt(graph, begin, 1, "Prompt of a new picture", "a small red star on the left of a white background")
    negative = prompt(graph, begin, 1, "Negative prompt", "")
    sampling = graph.add("ModelSamplingDiscrete", 2, "LCM sampling", model=begin.model[0], sampling="lcm")
    edited = graph.add(
        "InfEdit",
        3,
        "InfEdit, 4 steps",
        model=sampling[0],
        source=begin.source[0],
        target=target[0],
        latent=begin.latent[0],
        steps=4,
        target_cfg=1.0,
    )
    # EmptyLatentImage counts in eighths of a picture, this model in quarters.
    empty = graph.add("LatentMultiply", 2, "An empty latent of that size", samples=begin.latent[0], multiplier=0.0)
    new = graph.add(
        "KSampler",
        3,
        "A new picture, 4 steps",
        model=sampling[0],
        seed=2,
        steps=4,
        cfg=1.0,
        sampler_name="lcm",
        scheduler="sgm_uniform",
        positive=drawn[0],
        negative=negative[0],
        latent_image=empty[0],
        denoise=1.0,
    )
    first = decode(graph, begin, 4, "Decode the edit", edited[0])
    second = decode(graph, begin, 4, "Decode the new picture", new[0])
    side_by_side(graph, 4, "Source | edit | new picture", begin.picture[0], first[0], second[0])
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("For few steps", 2)
    graph.group("Edit, and draw", 3)
    graph.group("Look", 4, 5)
    return graph
