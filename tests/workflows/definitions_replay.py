"""Templates of the methods whose way down holds on to the source."""

from __future__ import annotations

from retrace_tests.workflows.graph import Graph
from retrace_tests.workflows.parts import decode, prompt, side_by_side, start


def exact_at_any_cfg() -> Graph:
    graph = Graph("exact_at_any_cfg")
    begin = start(graph, "eps", size="big", colour="red", shape="circle", position="left", background="blue", seed=3)
    target = prompt(graph, begin, 1, "Target prompt", "a big green circle on the left of a blue background")
    empty = prompt(graph, begin, 1, "Empty prompt", "")
    shared = {"model": begin.model[0], "source": begin.source[0], "latent": begin.latent[0], "steps": 12}
    guided = {"cfg": 7.5, "negative": empty[0]}
    plain = graph.add("Invert", 2, "DDIM inversion, to compare", **shared, method="ddim")
    direct = graph.add("DirectInversion", 2, "Direct Inversion for cfg 7.5", **shared, **guided)
    maps = graph.add("NoiseMapInvert", 2, "Noise maps at cfg 7.5", **shared, **guided)
    latents = [
        graph.add(
            "Resample",
            3,
            f"Source prompt at cfg 7.5: {name}",
            model=begin.model[0],
            inversion=inversion[0],
            positive=begin.source[0],
            **guided,
        )
        for name, inversion in (("DDIM", plain), ("direct", direct), ("noise maps", maps))
    ]
    latents += [
        graph.add(
            "Resample",
            4,
            f"Target prompt at cfg 7.5: {name}",
            model=begin.model[0],
            inversion=inversion[0],
            positive=target[0],
            **guided,
        )
        for name, inversion in (("direct", direct), ("noise maps", maps))
    ]
    decoded = [decode(graph, begin, 5, "Decode", latent[0])[0] for latent in latents]
    side_by_side(
        graph,
        6,
        "Source | DDIM | direct | noise maps | direct, edited | noise maps, edited",
        begin.picture[0],
        *decoded,
    )
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise, 12 steps", 2)
    graph.group("And back at cfg 7.5", 3)
    graph.group("Edit at cfg 7.5", 4)
    graph.group("Look", 5, 7)
    return graph


def rf_inversion() -> Graph:
    graph = Graph("rf_inversion")
    begin = start(
        graph, "flow", size="big", colour="yellow", shape="square", position="right", background="purple", seed=5
    )
    target = prompt(graph, begin, 1, "Target prompt", "a big white star on the right of a purple background")
    empty = prompt(graph, begin, 1, "Empty prompt: nothing said of the source", "")
    decoded = []
    for stop in (0.25, 0.8, 0.9):
        inversion = graph.add(
            "RFInversion",
            2,
            f"RF-Inversion, pulled until {stop:g}",
            model=begin.model[0],
            source=empty[0],
            latent=begin.latent[0],
            scheduler="simple",
            stop=stop,
        )
        edit = graph.add(
            "Resample",
            3,
            f"Edit, pulled until {stop:g}",
            model=begin.model[0],
            inversion=inversion[0],
            cfg=3.0,
            positive=target[0],
            negative=empty[0],
        )
        decoded.append(decode(graph, begin, 4, f"Decode: {stop:g}", edit[0])[0])
    side_by_side(graph, 4, "Source | pulled until 0.25 | 0.8 | 0.9", begin.picture[0], *decoded)
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise", 2)
    graph.group("And back, pulled", 3)
    graph.group("Look", 4, 5)
    return graph


def negative_prompt_inversion() -> Graph:
    graph = Graph("negative_prompt_inversion")
    begin = start(graph, "eps", size="big", colour="white", shape="ring", position="left", background="red", seed=8)
    target = prompt(graph, begin, 1, "Target prompt", "a big yellow ring on the left of a red background")
    empty = prompt(graph, begin, 1, "Empty prompt, to compare", "")
    inversion = graph.add(
        "Invert",
        2,
        "Invert at cfg 1",
        model=begin.model[0],
        source=begin.source[0],
        latent=begin.latent[0],
        method="ddim",
    )
    lost = graph.add(
        "Resample",
        3,
        "Source prompt at cfg 7.5, empty negative",
        model=begin.model[0],
        inversion=inversion[0],
        cfg=7.5,
        positive=begin.source[0],
        negative=empty[0],
    )
    shared = {"model": begin.model[0], "inversion": inversion[0]}
    back = graph.add("NegativePromptInversion", 3, "Source prompt at cfg 7.5", **shared, target=begin.source[0])
    plain = graph.add("NegativePromptInversion", 4, "Edit: plain", **shared, target=target[0], cfg=2.0)
    held = graph.add(
        "NegativePromptInversion", 4, "Edit: small changes held back", **shared, target=target[0], cfg=2.0, prox="l1"
    )
    decoded = [decode(graph, begin, 5, "Decode", latent[0])[0] for latent in (lost, back, plain, held)]
    side_by_side(
        graph, 5, "Source | empty negative | source as negative | edit | edit, held back", begin.picture[0], *decoded
    )
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise", 2)
    graph.group("And back at cfg 7.5", 3)
    graph.group("Edit", 4)
    graph.group("Look", 5, 6)
    return graph
