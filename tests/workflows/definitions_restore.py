"""Templates of restoration."""

from __future__ import annotations

from retrace_tests.workflows.graph import Graph, Link, Node
from retrace_tests.workflows.parts import Start, decode, prompt, side_by_side


def _restored(
    graph: Graph, start: Start, column: int, operator: Link, damaged: Link, vae_latent: Link, **settings: object
) -> Node:
    """A restore sampler, RestoreDDS unless another is named, under stock nodes."""
    kind, steps = str(settings.pop("kind", "RestoreDDS")), settings.pop("steps", 30)
    sampler = graph.add(kind, column, operator=operator, damaged=damaged, vae=start.vae, **settings)
    noise = graph.add("RandomNoise", column, noise_seed=1)
    sigmas = graph.add("BasicScheduler", column, model=start.model[0], scheduler="normal", steps=steps)
    guider = graph.add(
        "BasicGuider", column, "Guide: what the picture shows", model=start.model[0], conditioning=start.source[0]
    )
    return graph.add(
        "SamplerCustomAdvanced",
        column + 1,
        "Restore",
        noise=noise[0],
        guider=guider[0],
        sampler=sampler[0],
        sigmas=sigmas[0],
        latent_image=vae_latent,
    )


def restore_mask() -> Graph:
    graph = Graph("restore_mask")
    model = graph.add("LoadShapesModel", 0, kind="eps")
    picture = graph.add(
        "ShapesPicture", 0, "The truth", size="big", colour="yellow", shape="ring", position="left", background="blue"
    )
    source = graph.add("CLIPTextEncode", 1, "Prompt: what the picture shows", text=picture[2], clip=model[1])
    ground = graph.add("SolidMask", 1, "Nothing missing", value=0.0, width=64, height=64)
    patch = graph.add("SolidMask", 1, "A patch", value=1.0, width=22, height=26)
    scratch = graph.add("SolidMask", 1, "A scratch", value=1.0, width=64, height=3)
    one = graph.add(
        "MaskComposite", 1, "Put the patch in", destination=ground[0], source=patch[0], x=20, y=14, operation="add"
    )
    both = graph.add(
        "MaskComposite", 1, "Put the scratch in", destination=one[0], source=scratch[0], x=0, y=48, operation="add"
    )
    operator = graph.add("DamageMask", 2, mask=both[0])
    damaged = graph.add("ApplyDamage", 2, image=picture[0], operator=operator[0], noise=6.0, seed=2)
    level = graph.add("MeasureNoise", 2, image=damaged[0], operator=operator[0])
    latent = graph.add("VAEEncode", 2, "A latent of the restored size", pixels=damaged[0], vae=model[2])
    start = Start(picture, model, source, latent)
    drawn = _restored(graph, start, 3, operator[0], damaged[0], latent[0], noise=level[0])
    decoded = decode(graph, start, 5, "Decode", drawn[0])
    subject = {"operator": operator[0], "damaged": damaged[0], "noise": level[0]}
    snapped = graph.add("SnapToMeasurement", 5, image=decoded[0], **subject)
    graph.add("RestoreReport", 5, "Report: before snapping", image=decoded[0], **subject)
    side_by_side(graph, 6, "Damaged | restored | snapped | truth", damaged[0], decoded[0], snapped[0], picture[0])
    graph.group("Picture, model and what is missing", 0, 1)
    graph.group("Damage", 2)
    graph.group("Restore", 3, 4)
    graph.group("Check", 5)
    graph.group("Look", 6, 7)
    return graph


def restore_and_edit() -> Graph:
    graph = Graph("restore_and_edit")
    model = graph.add("LoadShapesModel", 0, kind="eps")
    picture = graph.add(
        "ShapesPicture", 0, "The truth", size="big", colour="red", shape="star", position="left", background="cyan"
    )
    source = graph.add("CLIPTextEncode", 1, "Source prompt: what the picture shows", text=picture[2], clip=model[1])
    operator = graph.add("DamageBlackWhite", 2)
    damaged = graph.add("ApplyDamage", 2, image=picture[0], operator=operator[0], noise=4.0, seed=2)
    latent = graph.add("VAEEncode", 2, "A latent of the restored size", pixels=damaged[0], vae=model[2])
    start = Start(picture, model, source, latent)
    target = prompt(graph, start, 1, "Target prompt", "a big purple star on the left of a cyan background")
    negative = prompt(graph, start, 1, "Negative prompt", "")
    drawn = _restored(graph, start, 3, operator[0], damaged[0], latent[0], noise=4.0)
    inversion = graph.add(
        "Invert", 5, "Invert what was restored", model=model[0], source=source[0], latent=drawn[0], steps=30
    )
    keeper = graph.add(
        "RestoreDDS",
        6,
        "Keep the measured brightness",
        operator=operator[0],
        damaged=damaged[0],
        vae=model[2],
        noise=4.0,
        freshness=0.0,
    )
    guider = graph.add(
        "CFGGuider", 6, "Guide: target", model=model[0], positive=target[0], negative=negative[0], cfg=3.0
    )
    edit = graph.add(
        "SamplerCustomAdvanced",
        7,
        "Edit from the inversion's noise",
        noise=inversion[2],
        guider=guider[0],
        sampler=keeper[0],
        sigmas=inversion[3],
        latent_image=inversion[1],
    )
    decoded = decode(graph, start, 8, "Decode the restoration", drawn[0])
    edited = decode(graph, start, 8, "Decode the edit", edit[0])
    subject = {"operator": operator[0], "damaged": damaged[0], "noise": 4.0}
    graph.add("RestoreReport", 8, "Report: the edit", image=edited[0], **subject)
    side_by_side(graph, 9, "Photo | restored | edited | truth", damaged[0], decoded[0], edited[0], picture[0])
    graph.group("Picture, model and prompts", 0, 1)
    graph.group("Damage", 2)
    graph.group("Restore", 3, 4)
    graph.group("Into the noise", 5)
    graph.group("Edit", 6, 7)
    graph.group("Look", 8, 9, 10)
    return graph


def restore_clip() -> Graph:
    graph = Graph("restore_clip")
    model = graph.add("LoadShapesModel", 0, kind="eps")
    picture = graph.add(
        "ShapesPicture", 0, "The truth", size="big", colour="green", shape="cross", position="top", background="white"
    )
    clip = graph.add("RepeatImageBatch", 0, "A clip that stands still", image=picture[0], amount=4)
    source = graph.add("CLIPTextEncode", 1, "Prompt: what the clip shows", text=picture[2], clip=model[1])
    small = graph.add("DamageLowResolution", 1, "Each frame: half the size", scale=2.0, filter="box")
    operator = graph.add("DamageFrames", 1, "Then: each second frame dropped", pattern="dropped", operator=small[0])
    damaged = graph.add("ApplyDamage", 2, image=clip[0], operator=operator[0], noise=8.0, seed=2)
    grey = graph.add("EmptyImage", 2, "Grey of the restored size", width=64, height=64, batch_size=4, color=0x808080)
    latent = graph.add("VAEEncode", 2, "A latent of the restored size", pixels=grey[0], vae=model[2])
    start = Start(picture, model, source, latent)
    shown = []
    for column, title, settings in (
        (3, "each frame for itself", {}),
        (5, "together", {"temporal_smoothing": 2.0, "share_noise": True}),
    ):
        drawn = _restored(graph, start, column, operator[0], damaged[0], latent[0], noise=8.0, **settings)
        decoded = decode(graph, start, column + 1, f"Decode: {title}", drawn[0])
        shown.append(graph.add("ImageFromBatch", column + 1, "Frame 2", image=decoded[0], batch_index=1, length=1)[0])
    first = graph.add("ImageFromBatch", 7, "Frame 1 as it came", image=damaged[0], batch_index=0, length=1)
    enlarged = graph.add("ImageScale", 7, image=first[0], upscale_method="nearest-exact", width=64, height=64)
    side_by_side(
        graph, 7, "Frame 1 as it came | frame 2, dropped: alone | together | truth", enlarged[0], *shown, picture[0]
    )
    graph.group("Clip, model and damage", 0, 1)
    graph.group("Damage", 2)
    graph.group("Each frame for itself", 3, 4)
    graph.group("Together", 5, 6)
    graph.group("Look", 7, 8)
    return graph


def restore_moving_clip() -> Graph:
    graph = Graph("restore_moving_clip")
    model = graph.add("LoadShapesModel", 0, kind="flow")
    picture = graph.add(
        "ShapesPicture",
        0,
        "A picture",
        size="small",
        colour="yellow",
        shape="star",
        position="middle",
        background="blue",
    )
    wide = graph.add(
        "ImageScale", 0, "Wider than a frame", image=picture[0], upscale_method="bicubic", width=80, height=80
    )
    clip = None
    for number in range(6):
        frame = graph.add(
            "ImageCrop", 1, f"Frame {number + 1}", image=wide[0], width=64, height=64, x=3 + 2 * number, y=8
        )
        clip = frame if clip is None else graph.add("ImageBatch", 1, "The clip so far", image1=clip[0], image2=frame[0])
    assert clip is not None
    source = graph.add("CLIPTextEncode", 2, "Prompt: what the clip shows", text=picture[2], clip=model[1])
    operator = graph.add("DamageLowResolution", 2, "Each frame: half the size", scale=2.0, filter="box")
    damaged = graph.add("ApplyDamage", 2, image=clip[0], operator=operator[0], noise=10.0, seed=2)
    larger = graph.add(
        "ImageScale", 2, "Enlarged as usual", image=damaged[0], upscale_method="bicubic", width=64, height=64
    )
    latent = graph.add("VAEEncode", 2, "A latent of the restored size", pixels=larger[0], vae=model[2])
    start = Start(picture, model, source, latent)
    drawn = _restored(graph, start, 3, operator[0], damaged[0], latent[0], noise=10.0, steps=15)
    decoded = decode(graph, start, 5, "Decode", drawn[0])
    subject = {"operator": operator[0], "damaged": damaged[0], "noise": 10.0, "temporal_smoothing": 2.0}
    still = graph.add("SnapToMeasurement", 5, "Smoothed in place", image=decoded[0], **subject)
    along = graph.add(
        "SnapToMeasurement", 5, "Smoothed along the motion", image=decoded[0], follow_motion=True, **subject
    )
    shown = [
        graph.add("ImageFromBatch", 6, f"Frame 4 {words}", image=images[0], batch_index=3, length=1)[0]
        for words, images in (
            ("enlarged", larger),
            ("restored", decoded),
            ("smoothed", still),
            ("along", along),
            ("in truth", clip),
        )
    ]
    side_by_side(graph, 7, "Frame 4 enlarged | restored | smoothed in place | along the motion | truth", *shown)
    graph.group("Model and picture", 0)
    graph.group("A clip that moves by 2 pixels a frame", 1)
    graph.group("Damage", 2)
    graph.group("Restore each frame", 3, 4)
    graph.group("Take the flicker out", 5)
    graph.group("Look", 6, 8)
    return graph


def restore_small_jpeg() -> Graph:
    graph = Graph("restore_small_jpeg")
    model = graph.add("LoadShapesModel", 0, kind="flow")
    picture = graph.add(
        "ShapesPicture",
        0,
        "The truth",
        size="big",
        colour="purple",
        shape="triangle",
        position="middle",
        background="yellow",
    )
    source = graph.add("CLIPTextEncode", 1, "Prompt: what the picture shows", text=picture[2], clip=model[1])
    small = graph.add("DamageLowResolution", 1, "First: half the size", scale=2.0, filter="bicubic")
    jpeg = graph.add("DamageJPEG", 1, "Then: saved as a JPEG", quality=15)
    operator = graph.add("DamageCombine", 2, "In the order it happened", first=small[0], second=jpeg[0])
    damaged = graph.add("ApplyDamage", 2, image=picture[0], operator=operator[0])
    larger = graph.add(
        "ImageScale", 2, "Enlarged as usual", image=damaged[0], upscale_method="bicubic", width=64, height=64
    )
    latent = graph.add("VAEEncode", 2, "A latent of the restored size", pixels=larger[0], vae=model[2])
    start = Start(picture, model, source, latent)
    drawn = _restored(graph, start, 3, operator[0], damaged[0], latent[0], noise=4.0)
    decoded = decode(graph, start, 5, "Decode", drawn[0])
    subject = {"operator": operator[0], "damaged": damaged[0], "noise": 4.0}
    snapped = graph.add("SnapToMeasurement", 5, image=decoded[0], **subject)
    graph.add("RestoreReport", 5, "Report: after snapping", image=snapped[0], **subject)
    side_by_side(
        graph, 6, "Enlarged as usual | restored | snapped | truth", larger[0], decoded[0], snapped[0], picture[0]
    )
    graph.group("Picture, model and damages", 0, 1)
    graph.group("Damage", 2)
    graph.group("Restore", 3, 4)
    graph.group("Check", 5)
    graph.group("Look", 6, 7)
    return graph


def restore_three_ways() -> Graph:
    graph = Graph("restore_three_ways")
    model = graph.add("LoadShapesModel", 0, kind="eps")
    picture = graph.add(
        "ShapesPicture", 0, "The truth", size="big", colour="white", shape="star", position="right", background="green"
    )
    source = graph.add("CLIPTextEncode", 1, "Prompt: what the picture shows", text=picture[2], clip=model[1])
    operator = graph.add("DamageBlur", 1, "A moving camera", kind="motion", length=11.0, angle=30.0)
    damaged = graph.add("ApplyDamage", 2, image=picture[0], operator=operator[0], noise=6.0, seed=2)
    level = graph.add("MeasureNoise", 2, image=damaged[0], operator=operator[0])
    latent = graph.add("VAEEncode", 2, "A latent of the restored size", pixels=damaged[0], vae=model[2])
    start = Start(picture, model, source, latent)
    shown = []
    for column, title, settings in (
        (3, "DDS", {}),
        (5, "RED-diff", {"kind": "RestoreREDDiff", "steps": 60}),
        (7, "guided", {"kind": "RestoreGuided", "steps": 40}),
    ):
        drawn = _restored(graph, start, column, operator[0], damaged[0], latent[0], noise=level[0], **settings)
        decoded = decode(graph, start, column + 1, f"Decode: {title}", drawn[0])
        graph.add(
            "RestoreReport",
            column + 1,
            f"Report: {title}",
            image=decoded[0],
            operator=operator[0],
            damaged=damaged[0],
            noise=level[0],
        )
        shown.append(decoded[0])
    side_by_side(graph, 9, "Photo | DDS | RED-diff | guided | truth", damaged[0], *shown, picture[0])
    graph.group("Picture, model and damage", 0, 1)
    graph.group("Damage", 2)
    graph.group("DDS", 3, 4)
    graph.group("RED-diff", 5, 6)
    graph.group("Guided", 7, 8)
    graph.group("Look", 9, 10)
    return graph
