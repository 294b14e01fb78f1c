"""Templates of restoration."""

from __future__ import annotations

from typing import Any

from retrace_tests.workflows.graph import Graph, Link, Node
from retrace_tests.workflows.parts import Scene


class Damaged(Scene):
    """A scene whose picture is the truth behind a damaged one."""

    def __init__(self, name: str, kind: str, caption: str, about: str = "Prompt: what the picture shows") -> None:
        super().__init__(name, kind, caption, shows="The truth", about=about, encoded=False)

    def damage(self, operator: Node, image: Link | None = None, **settings: Any) -> Node:
        self.operator = operator
        image = self.picture[0] if image is None else image
        self.damaged = self.add("ApplyDamage", 2, image=image, operator=operator, **settings)
        return self.damaged

    def enlarged(self) -> Node:
        sizes = {"upscale_method": "bicubic", "width": 64, "height": 64}
        return self.add("ImageScale", 2, "Enlarged as usual", image=self.damaged, **sizes)

    def sized(self, pixels: Node) -> None:
        self.latent = self.add("VAEEncode", 2, "A latent of the restored size", pixels=pixels, vae=self.vae)

    def restore(self, column: int, kind: str = "RestoreDDS", steps: int = 30, **settings: Any) -> Node:
        """A restore sampler under stock nodes."""
        sampler = self.add(kind, column, operator=self.operator, damaged=self.damaged, vae=self.vae, **settings)
        about = "Guide: what the picture shows"
        return self.add(
            "SamplerCustomAdvanced",
            column + 1,
            "Restore",
            noise=self.add("RandomNoise", column, noise_seed=1),
            guider=self.add("BasicGuider", column, about, model=self.model, conditioning=self.source),
            sampler=sampler,
            sigmas=self.add("BasicScheduler", column, model=self.model, scheduler="normal", steps=steps),
            latent_image=self.latent,
        )

    def beside(self, kind: str, column: int, title: str | None, image: Node, **settings: Any) -> Node:
        """A node that sets a restored picture against the damaged one."""
        return self.add(kind, column, title, image=image, operator=self.operator, damaged=self.damaged, **settings)


def restore_mask() -> Graph:
    scene = Damaged("restore_mask", "eps", "a big yellow ring on the left of a blue background")
    hole = scene.add("SolidMask", 1, "Nothing missing", value=0.0, width=64, height=64)
    for name, (x, y), (width, height) in (("patch", (20, 14), (22, 26)), ("scratch", (0, 48), (64, 3))):
        missing = scene.add("SolidMask", 1, f"A {name}", value=1.0, width=width, height=height)
        place = {"destination": hole, "source": missing, "x": x, "y": y, "operation": "add"}
        hole = scene.add("MaskComposite", 1, f"Put the {name} in", **place)
    damaged = scene.damage(scene.add("DamageMask", 2, mask=hole), noise=6.0, seed=2)
    noise = scene.add("MeasureNoise", 2, image=damaged, operator=scene.operator)
    scene.sized(damaged)
    restored = scene.decode(scene.restore(3, noise=noise), 5)
    snapped = scene.beside("SnapToMeasurement", 5, None, restored, noise=noise)
    scene.beside("RestoreReport", 5, "Report: before snapping", restored, noise=noise)
    scene.look(6, "Damaged | restored | snapped | truth", damaged[0], restored[0], snapped[0], scene.picture[0])
    return scene.frame("Picture, model and what is missing | Damage | Restore | Check | Look", 2, 1, 2, 1, 2)


def restore_and_edit() -> Graph:
    caption = "a big red star on the left of a cyan background"
    scene = Damaged("restore_and_edit", "eps", caption, "Source prompt: what the picture shows")
    target, negative = scene.prompts("a big purple star on the left of a cyan background")
    damaged = scene.damage(scene.add("DamageBlackWhite", 2), noise=4.0, seed=2)
    scene.sized(damaged)
    drawn = scene.restore(3, noise=4.0)
    inversion = scene.invert("Invert what was restored", column=5, latent=drawn, steps=30)
    holding = {"operator": scene.operator, "damaged": damaged, "vae": scene.vae, "noise": 4.0, "freshness": 0.0}
    guided = {"model": scene.model, "positive": target, "negative": negative, "cfg": 3.0}
    edit = scene.add(
        "SamplerCustomAdvanced",
        7,
        "Edit from the inversion's noise",
        noise=inversion[2],
        guider=scene.add("CFGGuider", 6, "Guide: target", **guided),
        sampler=scene.add("RestoreDDS", 6, "Keep the measured brightness", **holding),
        sigmas=inversion[3],
        latent_image=inversion[1],
    )
    edited = scene.decode(edit, 8, "Decode the edit")
    scene.beside("RestoreReport", 8, "Report: the edit", edited, noise=4.0)
    scene.look(9, "Photo | restored | edited | truth", damaged[0], drawn, edited[0], scene.picture[0])
    return scene.frame("Picture, model and prompts | Damage | Restore | Into the noise | Edit | Look", 2, 1, 2, 1, 2, 3)


def restore_clip() -> Graph:
    caption = "a big green cross at the top of a white background"
    scene = Damaged("restore_clip", "eps", caption, "Prompt: what the clip shows")
    clip = scene.add("RepeatImageBatch", 0, "A clip that stands still", image=scene.picture, amount=4)
    small = scene.add("DamageLowResolution", 1, "Each frame: half the size", scale=2.0, filter="box")
    operator = scene.add("DamageFrames", 1, "Then: each second frame dropped", pattern="dropped", operator=small)
    damaged = scene.damage(operator, clip[0], noise=8.0, seed=2)
    grey = {"width": 64, "height": 64, "batch_size": 4, "color": 0x808080}
    scene.sized(scene.add("EmptyImage", 2, "Grey of the restored size", **grey))
    shown = []
    for column, title, settings in (
        (3, "each frame for itself", {}),
        (5, "together", {"temporal_smoothing": 2.0, "share_noise": True}),
    ):
        drawn = scene.restore(column, noise=8.0, **settings)
        decoded = scene.decode(drawn, column + 1, f"Decode: {title}")
        shown.append(scene.add("ImageFromBatch", column + 1, "Frame 2", image=decoded, batch_index=1, length=1)[0])
    first = scene.add("ImageFromBatch", 7, "Frame 1 as it came", image=damaged, batch_index=0, length=1)
    enlarged = scene.add("ImageScale", 7, image=first, upscale_method="nearest-exact", width=64, height=64)
    title = "Frame 1 as it came | frame 2, dropped: alone | together | truth"
    scene.look(7, title, enlarged[0], *shown, scene.picture[0])
    return scene.frame("Clip, model and damage | Damage | Each frame for itself | Together | Look", 2, 1, 2, 2, 2)


def restore_moving_clip() -> Graph:
    caption = "a small yellow star on a blue background"
    scene = Damaged("restore_moving_clip", "flow", caption, "Prompt: what the clip shows")
    sizes = {"upscale_method": "bicubic", "width": 80, "height": 80}
    wide = scene.add("ImageScale", 0, "Wider than a frame", image=scene.picture, **sizes)
    frames = [
        scene.add("ImageCrop", 1, f"Frame {number + 1}", image=wide, width=64, height=64, x=3 + 2 * number, y=8)
        for number in range(6)
    ]
    clip = frames[0]
    for frame in frames[1:]:
        clip = scene.add("ImageBatch", 1, "The clip so far", image1=clip, image2=frame)
    operator = scene.add("DamageLowResolution", 2, "Each frame: half the size", scale=2.0, filter="box")
    scene.damage(operator, clip[0], noise=10.0, seed=2)
    larger = scene.enlarged()
    scene.sized(larger)
    decoded = scene.decode(scene.restore(3, noise=10.0, steps=15), 5)
    smooth = {"image": decoded, "noise": 10.0, "temporal_smoothing": 2.0}
    still = scene.beside("SnapToMeasurement", 5, "Smoothed in place", **smooth)
    along = scene.beside("SnapToMeasurement", 5, "Smoothed along the motion", **smooth, follow_motion=True)
    shown = [
        scene.add("ImageFromBatch", 6, f"Frame 4 {words}", image=images, batch_index=3, length=1)[0]
        for words, images in (
            ("enlarged", larger),
            ("restored", decoded),
            ("smoothed", still),
            ("along", along),
            ("in truth", clip),
        )
    ]
    scene.look(7, "Frame 4 enlarged | restored | smoothed in place | along the motion | truth", *shown)
    titles = "Model and picture | A clip that moves by 2 pixels a frame | Damage | Restore each frame"
    return scene.frame(titles + " | Take the flicker out | Look", 1, 1, 1, 2, 1, 3)


def restore_small_jpeg() -> Graph:
    scene = Damaged("restore_small_jpeg", "flow", "a big purple triangle on a yellow background")
    small = scene.add("DamageLowResolution", 1, "First: half the size", scale=2.0, filter="bicubic")
    jpeg = scene.add("DamageJPEG", 1, "Then: saved as a JPEG", quality=15)
    scene.damage(scene.add("DamageCombine", 2, "In the order it happened", first=small, second=jpeg))
    larger = scene.enlarged()
    scene.sized(larger)
    restored = scene.decode(scene.restore(3, noise=4.0), 5)
    snapped = scene.beside("SnapToMeasurement", 5, None, restored, noise=4.0)
    scene.beside("RestoreReport", 5, "Report: after snapping", snapped, noise=4.0)
    shown = (larger[0], restored[0], snapped[0], scene.picture[0])
    scene.look(6, "Enlarged as usual | restored | snapped | truth", *shown)
    return scene.frame("Picture, model and damages | Damage | Restore | Check | Look", 2, 1, 2, 1, 2)


def restore_three_ways() -> Graph:
    scene = Damaged("restore_three_ways", "eps", "a big white star on the right of a green background")
    motion = {"kind": "motion", "length": 11.0, "angle": 30.0}
    damaged = scene.damage(scene.add("DamageBlur", 1, "A moving camera", **motion), noise=6.0, seed=2)
    noise = scene.add("MeasureNoise", 2, image=damaged, operator=scene.operator)
    scene.sized(damaged)
    shown = []
    for column, title, settings in (
        (3, "DDS", {}),
        (5, "RED-diff", {"kind": "RestoreREDDiff", "steps": 60}),
        (7, "guided", {"kind": "RestoreGuided", "steps": 40}),
    ):
        restored = scene.decode(scene.restore(column, noise=noise, **settings), column + 1, f"Decode: {title}")
        scene.beside("RestoreReport", column + 1, f"Report: {title}", restored, noise=noise)
        shown.append(restored[0])
    scene.look(9, "Photo | DDS | RED-diff | guided | truth", damaged[0], *shown, scene.picture[0])
    return scene.frame("Picture, model and damage | Damage | DDS | RED-diff | Guided | Look", 2, 1, 2, 2, 2, 2)
