"""Templates of attention control."""

from __future__ import annotations

from collections.abc import Callable

from retrace_tests.workflows.definitions import _decode, _prompt, _side_by_side, _start
from retrace_tests.workflows.graph import Graph, Node
from retrace_tests.workflows.parts import Start


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


def masactrl() -> Graph:
    graph = Graph("masactrl")
    start = _start(
        graph, "eps", size="big", colour="red", shape="square", position="middle", background="yellow", seed=0
    )
    # Without a word on colours: the look is to come from the source.
    targets = (
        ("Another shape", _prompt(graph, start, 1, "Target prompt: another shape", "a big star")),
        ("Another place", _prompt(graph, start, 1, "Target prompt: another place", "a big square on the left")),
    )
    negative = _prompt(graph, start, 1, "Negative prompt", "")
    inversion = _inverted(graph, start)
    plan = graph.add(
        "AttentionInject",
        2,
        "MasaCtrl: keys and values of the source",
        model=start.model[0],
        preset="masactrl",
        layers="all",
        start=0.1,
        end=1.0,
    )
    decoded = []
    for change, target in targets:
        for title, extra in ((f"{change}, without", {}), (f"{change}, MasaCtrl", {"attention": plan[0]})):
            edited = graph.add(
                "Resample",
                3,
                title,
                model=start.model[0],
                inversion=inversion[0],
                positive=target[0],
                negative=negative[0],
                **extra,
            )
            decoded.append(_decode(graph, start, 4, f"Decode: {title.lower()}", edited[0])[0])
    title = "Source | shape, without | MasaCtrl | place, without | MasaCtrl"
    _side_by_side(graph, 4, title, start.picture[0], *decoded)
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise, and the plan", 2)
    graph.group("And back, four times", 3)
    graph.group("Look", 4, 5)
    return graph


def plug_and_play() -> Graph:
    graph = Graph("plug_and_play")
    start = _start(
        graph, "eps", size="big", colour="green", shape="triangle", position="left", background="white", seed=2
    )
    # Without a word on the place: the layout is to come from the source.
    target = _prompt(graph, start, 1, "Target prompt: other colours", "a big purple triangle on a yellow background")
    negative = _prompt(graph, start, 1, "Negative prompt", "")
    inversion = _inverted(graph, start)
    # SD1.5's own are output:4-11 and block 4 of 12; this UNet has four output blocks.
    attention = {"model": start.model[0], "layers": "output:0-3", "end": 0.5}
    structure = graph.add("AttentionInject", 2, "Queries and keys alone", preset="structure", **attention)
    whole = graph.add(
        "AttentionInject", 2, "Plug-and-play: with the feature", preset="pnp", **attention, feature_block=1
    )
    edits = (("Without", {}), ("Queries and keys", {"attention": structure[0]}), ("PnP", {"attention": whole[0]}))
    decoded = []
    for title, extra in edits:
        edited = graph.add(
            "Resample",
            3,
            title,
            model=start.model[0],
            inversion=inversion[0],
            cfg=7.5,
            positive=target[0],
            negative=negative[0],
            **extra,
        )
        decoded.append(_decode(graph, start, 4, f"Decode: {title.lower()}", edited[0])[0])
    _side_by_side(graph, 4, "Source | without | queries and keys | plug-and-play", start.picture[0], *decoded)
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise, and the plans", 2)
    graph.group("And back, three times", 3)
    graph.group("Look", 4, 5)
    return graph


def _inverted(graph: Graph, start: Start) -> Node:
    return graph.add(
        "Invert",
        2,
        "Invert: with its path",
        model=start.model[0],
        source=start.source[0],
        latent=start.latent[0],
        steps=10,
        method="ddim",
        keep_path=True,
    )


WORKFLOWS: tuple[Callable[[], Graph], ...] = (attention_inject, masactrl, plug_and_play)
