"""Templates of attention control."""

from __future__ import annotations

from collections.abc import Callable

from retrace_tests.workflows.definitions import _decode, _prompt, _side_by_side, _start
from retrace_tests.workflows.graph import Graph


def attention_inject() -> Graph:
    graph = Graph("attention_inject")
    start = _start(
        graph, "eps", size="small", colour="white", shape="square", position="top", background="purple", seed=2
    )
    target = _prompt(graph, start, 1, "Target prompt", "a small green square at the top of a purple background")
    negative = _prompt(graph, start, 1, "Negative prompt", "")
    inversion = graph.add(
        "Invert",
        2,
        "Invert in 6 steps",
        model=start.model[0],
        source=start.source[0],
        latent=start.latent[0],
        steps=6,
        method="euler",
        keep_path=True,
    )
    plan = graph.add(
        "AttentionInject",
        2,
        "Structure: queries and keys of the source",
        model=start.model[0],
        preset="structure",
        layers="all",
        start=0.0,
        end=1.0,
    )
    sites = graph.add("AttentionSites", 3, "What the model offers", model=start.model[0], latent=start.latent[0])
    graph.add("PreviewAny", 4, "Layers for AttentionInject", source=sites[0])
    shared = {
        "model": start.model[0],
        "inversion": inversion[0],
        "cfg": 7.5,
        "positive": target[0],
        "negative": negative[0],
    }
    plain = graph.add("Resample", 3, "Edit without attention control", **shared)
    attended = graph.add("Resample", 3, "Edit with attention control", **shared, attention=plan[0])
    first = _decode(graph, start, 4, "Decode the first", plain[0])
    second = _decode(graph, start, 4, "Decode the second", attended[0])
    _side_by_side(graph, 4, "Source | without | with attention control", start.picture[0], first[0], second[0])
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise, and the plan", 2)
    graph.group("And back, twice", 3)
    graph.group("Look", 4, 5)
    return graph


WORKFLOWS: tuple[Callable[[], Graph], ...] = (attention_inject,)
