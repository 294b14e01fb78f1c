"""The templates."""

from __future__ import annotations

from collections.abc import Callable

from retrace_tests.workflows.definitions_gradient import noise_optimize, spd_inversion
from retrace_tests.workflows.definitions_lcm import lcm_infedit
from retrace_tests.workflows.definitions_replay import exact_at_any_cfg, negative_prompt_inversion, rf_inversion
from retrace_tests.workflows.definitions_restore import (
    restore_and_edit,
    restore_clip,
    restore_mask,
    restore_moving_clip,
    restore_small_jpeg,
    restore_three_ways,
)
from retrace_tests.workflows.definitions_rf_edit import kv_edit, rf_edit
from retrace_tests.workflows.definitions_unified import infedit_unified
from retrace_tests.workflows.definitions_visctrl import visctrl
from retrace_tests.workflows.graph import Graph
from retrace_tests.workflows.parts import decode as _decode
from retrace_tests.workflows.parts import prompt as _prompt
from retrace_tests.workflows.parts import side_by_side as _side_by_side
from retrace_tests.workflows.parts import start as _start

# The list's own entry for an empty folder: a template must not name a file of ours.
NOTHING_SAVED = "(nothing saved yet)"


def invert_and_reconstruct() -> Graph:
    graph = Graph("invert_and_reconstruct")
    start = _start(graph, "eps", size="big", colour="red", shape="star", position="left", background="cyan", seed=7)
    inversion = graph.add(
        "Invert", 2, model=start.model[0], source=start.source[0], latent=start.latent[0], keep_path=True
    )
    back = graph.add(
        "Resample", 3, "Resample: no positive, so it reconstructs", model=start.model[0], inversion=inversion[0]
    )
    report = graph.add(
        "InversionReport", 3, inversion=inversion[0], model=start.model[0], vae=start.vae, reconstructed=back[0]
    )
    decoded = _decode(graph, start, 4, "Decode the reconstruction", back[0])
    graph.add("PreviewImage", 5, "Errors by step, and the noise", images=report[1])
    _side_by_side(graph, 4, "Source | reconstruction", start.picture[0], decoded[0])
    graph.group("Picture and model", 0, 1)
    graph.group("Into the noise", 2)
    graph.group("And back", 3)
    graph.group("Look", 4, 5)
    return graph


def invert_and_edit() -> Graph:
    graph = Graph("invert_and_edit")
    start = _start(graph, "eps", size="big", colour="red", shape="circle", position="left", background="blue", seed=3)
    target = _prompt(graph, start, 1, "Target prompt", "a big green circle on the left of a blue background")
    negative = _prompt(graph, start, 1, "Negative prompt", "")
    inversion = graph.add("Invert", 2, model=start.model[0], source=start.source[0], latent=start.latent[0])
    back = graph.add("Resample", 3, "Reconstruct", model=start.model[0], inversion=inversion[0])
    edit = graph.add(
        "Resample",
        3,
        "Edit",
        model=start.model[0],
        inversion=inversion[0],
        cfg=3.0,
        positive=target[0],
        negative=negative[0],
    )
    decoded = _decode(graph, start, 4, "Decode the reconstruction", back[0])
    edited = _decode(graph, start, 4, "Decode the edit", edit[0])
    _side_by_side(graph, 4, "Source | reconstruction | edit", start.picture[0], decoded[0], edited[0])
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise", 2)
    graph.group("And back, twice", 3)
    graph.group("Look", 4, 5)
    return graph


def flow_rf_solver_edit() -> Graph:
    graph = Graph("flow_rf_solver_edit")
    start = _start(
        graph, "flow", size="big", colour="yellow", shape="square", position="right", background="purple", seed=5
    )
    target = _prompt(graph, start, 1, "Target prompt", "a big white square on the right of a purple background")
    negative = _prompt(graph, start, 1, "Negative prompt", "")
    solver = graph.add("RFSolverSample", 2, "RF-Solver, up and down")
    falling = graph.add("BasicScheduler", 2, model=start.model[0], scheduler="normal", steps=30)
    rising = graph.add("FlipSigmas", 2, sigmas=falling[0])
    quiet = graph.add("DisableNoise", 2)
    up_guider = graph.add(
        "BasicGuider", 3, "Guide up: source prompt", model=start.model[0], conditioning=start.source[0]
    )
    up = graph.add(
        "SamplerCustomAdvanced",
        3,
        "Invert: rising sigmas",
        noise=quiet[0],
        guider=up_guider[0],
        sampler=solver[0],
        sigmas=rising[0],
        latent_image=start.latent[0],
    )
    back = graph.add(
        "SamplerCustomAdvanced",
        4,
        "Reconstruct: falling sigmas",
        noise=quiet[0],
        guider=up_guider[0],
        sampler=solver[0],
        sigmas=falling[0],
        latent_image=up[0],
    )
    guider = graph.add(
        "CFGGuider", 4, "Guide down: target", model=start.model[0], positive=target[0], negative=negative[0], cfg=3.0
    )
    edit = graph.add(
        "SamplerCustomAdvanced",
        4,
        "Edit: falling sigmas",
        noise=quiet[0],
        guider=guider[0],
        sampler=solver[0],
        sigmas=falling[0],
        latent_image=up[0],
    )
    decoded = _decode(graph, start, 5, "Decode the reconstruction", back[0])
    edited = _decode(graph, start, 5, "Decode the edit", edit[0])
    _side_by_side(graph, 5, "Source | reconstruction | edit", start.picture[0], decoded[0], edited[0])
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Solver and sigmas", 2)
    graph.group("Into the noise", 3)
    graph.group("And back, twice", 4)
    graph.group("Look", 5, 6)
    return graph


def edit_inside_a_mask() -> Graph:
    graph = Graph("edit_inside_a_mask")
    start = _start(
        graph, "eps", size="big", colour="white", shape="cross", position="right", background="green", seed=11
    )
    target = _prompt(graph, start, 1, "Target prompt", "a big purple cross on the right of a green background")
    negative = _prompt(graph, start, 1, "Negative prompt", "")
    mask = graph.add("GrowMask", 2, "Grow the mask to cover the edge", mask=start.picture[1], expand=4)
    inversion = graph.add(
        "Invert", 2, model=start.model[0], source=start.source[0], latent=start.latent[0], keep_path=True
    )
    edit = graph.add(
        "Resample",
        3,
        "Edit inside the mask",
        model=start.model[0],
        inversion=inversion[0],
        cfg=5.0,
        positive=target[0],
        negative=negative[0],
        mask=mask[0],
    )
    shown = graph.add("MaskToImage", 3, "The mask as a picture", mask=mask[0])
    edited = _decode(graph, start, 4, "Decode the edit", edit[0])
    _side_by_side(graph, 4, "Source | mask | edit", start.picture[0], shown[0], edited[0])
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise", 2)
    graph.group("Edit", 3)
    graph.group("Look", 4, 5)
    return graph


def save_and_load() -> Graph:
    graph = Graph("save_and_load")
    start = _start(graph, "eps", size="small", colour="cyan", shape="ring", position="top", background="black", seed=2)
    target = _prompt(graph, start, 1, "Target prompt", "a small red ring at the top of a black background")
    negative = _prompt(graph, start, 1, "Negative prompt", "")
    inversion = graph.add("Invert", 2, model=start.model[0], source=start.source[0], latent=start.latent[0])
    saved = graph.add("SaveInversion", 3, inversion=inversion[0], filename_prefix=f"retrace/{graph.name}")
    loaded = graph.add("LoadInversion", 3, file=NOTHING_SAVED, path=saved[0])
    back = graph.add(
        "Resample",
        4,
        "Reconstruct: needs the source prompt",
        model=start.model[0],
        inversion=loaded[0],
        source=start.source[0],
    )
    edit = graph.add(
        "Resample",
        4,
        "Edit",
        model=start.model[0],
        inversion=loaded[0],
        cfg=3.0,
        positive=target[0],
        negative=negative[0],
    )
    decoded = _decode(graph, start, 5, "Decode the reconstruction", back[0])
    edited = _decode(graph, start, 5, "Decode the edit", edit[0])
    _side_by_side(graph, 5, "Source | reconstruction | edit", start.picture[0], decoded[0], edited[0])
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise", 2)
    graph.group("To a file and back", 3)
    graph.group("And back, twice", 4)
    graph.group("Look", 5, 6)
    return graph


def sampler_custom_advanced() -> Graph:
    graph = Graph("sampler_custom_advanced")
    start = _start(
        graph, "eps", size="big", colour="yellow", shape="triangle", position="middle", background="blue", seed=9
    )
    target = _prompt(graph, start, 1, "Target prompt", "a big red triangle on a blue background")
    negative = _prompt(graph, start, 1, "Negative prompt", "")
    inversion = graph.add("Invert", 2, model=start.model[0], source=start.source[0], latent=start.latent[0])
    guider = graph.add(
        "CFGGuider", 3, "Any stock guider", model=start.model[0], positive=target[0], negative=negative[0], cfg=3.0
    )
    resume = graph.add("InversionSampler", 3, inversion=inversion[0])
    quiet = graph.add("DisableNoise", 3)
    stock = graph.add("KSamplerSelect", 3, "A stock sampler", sampler_name="dpmpp_2m")
    exact = graph.add(
        "SamplerCustomAdvanced",
        4,
        "From the stored state",
        noise=quiet[0],
        guider=guider[0],
        sampler=resume[0],
        sigmas=inversion[3],
        latent_image=inversion[1],
    )
    near = graph.add(
        "SamplerCustomAdvanced",
        4,
        "From the inversion's NOISE",
        noise=inversion[2],
        guider=guider[0],
        sampler=stock[0],
        sigmas=inversion[3],
        latent_image=inversion[1],
    )
    first = _decode(graph, start, 5, "Decode the first", exact[0])
    second = _decode(graph, start, 5, "Decode the second", near[0])
    _side_by_side(graph, 5, "Source | stored state | stock sampler", start.picture[0], first[0], second[0])
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise", 2)
    graph.group("Guider and samplers", 3)
    graph.group("Two ways down", 4)
    graph.group("Look", 5, 6)
    return graph


def infedit() -> Graph:
    graph = Graph("infedit")
    start = _start(graph, "eps", size="big", colour="red", shape="star", position="left", background="cyan", seed=4)
    colour = _prompt(
        graph, start, 1, "Target prompt: another colour", "a big blue star on the left of a cyan background"
    )
    shape = _prompt(
        graph, start, 1, "Target prompt: another shape", "a big red circle on the left of a cyan background"
    )
    negative = _prompt(graph, start, 1, "Negative prompt", "")
    latents = [
        graph.add(
            "InfEdit",
            2,
            title,
            model=start.model[0],
            source=start.source[0],
            target=target[0],
            latent=start.latent[0],
            negative=negative[0],
        )
        for title, target in (("InfEdit: another colour", colour), ("InfEdit: another shape", shape))
    ]
    first = _decode(graph, start, 3, "Decode the first", latents[0][0])
    second = _decode(graph, start, 3, "Decode the second", latents[1][0])
    _side_by_side(graph, 3, "Source | another colour | another shape", start.picture[0], first[0], second[0])
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Edit, without an inversion", 2)
    graph.group("Look", 3, 4)
    return graph


def flow_edit() -> Graph:
    graph = Graph("flow_edit")
    start = _start(
        graph, "flow", size="big", colour="yellow", shape="square", position="right", background="purple", seed=5
    )
    ground = _prompt(
        graph, start, 1, "Target prompt: another background", "a big yellow square on the right of a green background"
    )
    colour = _prompt(
        graph, start, 1, "Target prompt: another colour", "a big red square on the right of a purple background"
    )
    negative = _prompt(graph, start, 1, "Negative prompt", "")
    mask = graph.add("GrowMask", 2, "Grow the mask to cover the edge", mask=start.picture[1], expand=4)
    shared = {
        "model": start.model[0],
        "source": start.source[0],
        "latent": start.latent[0],
        "negative": negative[0],
    }
    free = graph.add("FlowEdit", 2, "FlowEdit: everywhere", **shared, target=ground[0])
    inside = graph.add("FlowEdit", 2, "FlowEdit: inside the mask", **shared, target=colour[0], mask=mask[0])
    first = _decode(graph, start, 3, "Decode the first", free[0])
    second = _decode(graph, start, 3, "Decode the second", inside[0])
    _side_by_side(graph, 3, "Source | another background | another colour", start.picture[0], first[0], second[0])
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Edit, without an inversion", 2)
    graph.group("Look", 3, 4)
    return graph


def null_text() -> Graph:
    graph = Graph("null_text")
    start = _start(graph, "eps", size="big", colour="red", shape="circle", position="left", background="blue", seed=3)
    target = _prompt(graph, start, 1, "Target prompt", "a big green circle on the left of a blue background")
    empty = _prompt(graph, start, 1, "Empty prompt", "")
    inversion = graph.add(
        "Invert",
        2,
        "Invert: cfg 1, with its path",
        model=start.model[0],
        source=start.source[0],
        latent=start.latent[0],
        steps=12,
        method="ddim",
        keep_path=True,
    )
    fitted = graph.add("NullTextOptimize", 3, model=start.model[0], inversion=inversion[0], negative=empty[0])
    without = graph.add(
        "Resample",
        4,
        "Source prompt at cfg 7.5, not fitted",
        model=start.model[0],
        inversion=inversion[0],
        cfg=7.5,
        positive=start.source[0],
        negative=empty[0],
    )
    back = graph.add(
        "Resample", 4, "Source prompt at cfg 7.5, fitted", model=start.model[0], inversion=fitted[0], cfg=7.5
    )
    edit = graph.add(
        "Resample",
        4,
        "Target prompt at cfg 7.5, fitted",
        model=start.model[0],
        inversion=fitted[0],
        cfg=7.5,
        positive=target[0],
    )
    decoded = [
        _decode(graph, start, 5, f"Decode {what}", latent[0])
        for what, latent in (("without", without), ("with", back), ("the edit", edit))
    ]
    graph.add("PreviewImage", 6, "Loss of every step", images=fitted[1])
    _side_by_side(
        graph, 5, "Source | not fitted | fitted | edit", start.picture[0], *(picture[0] for picture in decoded)
    )
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Into the noise", 2)
    graph.group("Fit", 3)
    graph.group("And back, three times", 4)
    graph.group("Look", 5, 6)
    return graph


def exact_pairs() -> Graph:
    graph = Graph("exact_pairs")
    start = _start(
        graph, "eps", size="big", colour="yellow", shape="ring", position="left", background="purple", seed=4
    )
    ways = (
        ("Invert", "Euler, to compare", {"method": "euler"}),
        ("EDICTCouple", None, {}),
        ("BDIAInvert", None, {}),
        ("BELMInvert", None, {}),
    )
    decoded = []
    for kind, title, settings in ways:
        inversion = graph.add(
            kind, 2, title, model=start.model[0], source=start.source[0], latent=start.latent[0], steps=4, **settings
        )
        name = title or kind
        back = graph.add("Resample", 3, f"Reconstruct: {name}", model=start.model[0], inversion=inversion[0])
        graph.add(
            "InversionReport",
            4,
            f"Report: {name}",
            inversion=inversion[0],
            model=start.model[0],
            vae=start.vae,
            reconstructed=back[0],
        )
        decoded.append(_decode(graph, start, 5, f"Decode: {name}", back[0])[0])
    _side_by_side(graph, 6, "Source | Euler | EDICT | BDIA | O-BELM", start.picture[0], *decoded)
    graph.group("Picture and model", 0, 1)
    graph.group("Into the noise, 4 steps", 2)
    graph.group("And back", 3)
    graph.group("Compare", 4, 5)
    graph.group("Look", 6, 7)
    return graph


def fixed_point() -> Graph:
    graph = Graph("fixed_point")
    start = _start(
        graph, "eps", size="big", colour="green", shape="star", position="middle", background="white", seed=6
    )
    plain = graph.add(
        "Invert",
        2,
        "Euler, to compare",
        model=start.model[0],
        source=start.source[0],
        latent=start.latent[0],
        steps=6,
        method="euler",
    )
    solved = graph.add(
        "FixedPointInvert", 2, model=start.model[0], source=start.source[0], latent=start.latent[0], steps=6
    )
    decoded = []
    for name, inversion in (("Euler", plain), ("fixed point", solved)):
        back = graph.add("Resample", 3, f"Reconstruct: {name}", model=start.model[0], inversion=inversion[0])
        graph.add(
            "InversionReport",
            4,
            f"Report: {name}",
            inversion=inversion[0],
            model=start.model[0],
            vae=start.vae,
            reconstructed=back[0],
        )
        decoded.append(_decode(graph, start, 5, f"Decode: {name}", back[0])[0])
    _side_by_side(graph, 5, "Source | Euler | fixed point", start.picture[0], *decoded)
    graph.group("Picture and model", 0, 1)
    graph.group("Into the noise, 6 steps", 2)
    graph.group("And back", 3)
    graph.group("Compare", 4)
    graph.group("Look", 5, 6)
    return graph


WORKFLOWS: tuple[Callable[[], Graph], ...] = (
    invert_and_reconstruct,
    invert_and_edit,
    flow_rf_solver_edit,
    edit_inside_a_mask,
    exact_pairs,
    fixed_point,
    save_and_load,
    sampler_custom_advanced,
    infedit,
    flow_edit,
    null_text,
    exact_at_any_cfg,
    rf_inversion,
    negative_prompt_inversion,
    spd_inversion,
    noise_optimize,
    lcm_infedit,
    restore_mask,
    restore_and_edit,
    restore_clip,
    restore_moving_clip,
    rf_edit,
    kv_edit,
    infedit_unified,
    visctrl,
    restore_small_jpeg,
    restore_three_ways,
)


def workflows() -> list[Graph]:
    """All templates, freshly made."""
    from retrace_tests.workflows import attended, words

    return [make() for make in (*WORKFLOWS, *attended.WORKFLOWS, *words.WORKFLOWS)]
