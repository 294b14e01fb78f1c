"""Bad inputs of restoration over /prompt: one sentence each, and nothing is written."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from retrace_tests.workflows.prompts import keep, node, start
from retrace_tests.workflows.test_refusals import files, refused

pytestmark = pytest.mark.host

DDS = {
    "noise": 4.0,
    "trust": 1.0,
    "freshness": 0.85,
    "latent_method": "encoder adjoint",
    "inner_steps": 1,
    "temporal_smoothing": 0.0,
    "share_noise": False,
}
BLUR = {"kind": "gaussian", "radius": 2.0, "length": 5.0, "angle": 0.0, "edges": "reflect"}


def small(scale=4.0):
    return node("DamageLowResolution", scale=scale, filter="bicubic")


def restore(operator, batch=1, size=64, frames=1):
    """A picture is damaged, restored by two steps of DDS and kept."""
    prompt = start(batch_size=frames)
    prompt["operator"] = operator
    prompt["damaged"] = node("ApplyDamage", image=["picture", 0], operator=["operator", 0], noise=4.0, seed=1)
    prompt["sampler"] = node("RestoreDDS", operator=["operator", 0], damaged=["damaged", 0], vae=["model", 2], **DDS)
    prompt["grey"] = node("EmptyImage", width=size, height=size, batch_size=batch, color=0)
    prompt["latent"] = node("VAEEncode", pixels=["grey", 0], vae=["model", 2])
    prompt["guider"] = node("BasicGuider", model=["model", 0], conditioning=["source", 0])
    prompt["noise"] = node("RandomNoise", noise_seed=1)
    prompt["sigmas"] = node("BasicScheduler", model=["model", 0], scheduler="normal", steps=2, denoise=1.0)
    prompt["sample"] = node(
        "SamplerCustomAdvanced",
        noise=["noise", 0],
        guider=["guider", 0],
        sampler=["sampler", 0],
        sigmas=["sigmas", 0],
        latent_image=["latent", 0],
    )
    prompt["keep"] = keep(["sample", 0], "lost")
    return prompt


def changed(prompt, where, **inputs):
    prompt[where]["inputs"].update(inputs)
    return prompt


def without(prompt, where, name):
    del prompt[where]["inputs"][name]
    return prompt


def blurred_by(kernel_colour, width=5):
    """Blur by a kernel that is one colour."""
    prompt = restore(node("DamageBlur", **{**BLUR, "kind": "kernel"}, kernel=["kernel", 0]))
    prompt["kernel"] = node("EmptyImage", width=width, height=width, batch_size=1, color=kernel_colour)
    return prompt


def masked(width=64, height=64, value=1.0, **more):
    prompt = restore(node("DamageMask", mask=["mask", 0], grow=0), **more)
    prompt["mask"] = node("SolidMask", value=value, width=width, height=height)
    return prompt


def masks(count, **more):
    """So many masks, each with a hole."""
    prompt = masked(width=32, **more)
    prompt["whole"] = node("SolidMask", value=0.0, width=64, height=64)
    prompt["patch"] = node("MaskComposite", destination=["whole", 0], source=["mask", 0], x=0, y=0, operation="add")
    prompt["picture of it"] = node("MaskToImage", mask=["patch", 0])
    prompt["many"] = node("RepeatImageBatch", image=["picture of it", 0], amount=count)
    prompt["masks"] = node("ImageToMask", image=["many", 0], channel="red")
    return changed(prompt, "operator", mask=["masks", 0])


def jpeg_first():
    prompt = restore(node("DamageCombine", first=["jpeg", 0], second=["blur", 0]))
    prompt["jpeg"] = node("DamageJPEG", file="(as set below)", quality=20, half_colour=True)
    prompt["blur"] = node("DamageBlur", **BLUR)
    return prompt


def swapped_photo(batch):
    """The photo is another number of pictures than the latent."""
    prompt = restore(small(), batch=batch)
    prompt["photos"] = node("RepeatImageBatch", image=["damaged", 0], amount=3)
    return changed(prompt, "sampler", damaged=["photos", 0])


def of_another_size(kind):
    """A restored picture that is not the photo's, at the nodes behind the decoder."""
    prompt = restore(small())
    prompt["other"] = node("EmptyImage", width=48, height=64, batch_size=1, color=0)
    inputs = {"operator": ["operator", 0], "damaged": ["damaged", 0], "noise": 4.0}
    prompt["after"] = node(kind, image=["other", 0], **inputs)
    prompt["show"] = node("PreviewImage", images=["after", 1 if kind == "RestoreReport" else 0])
    del prompt["keep"]
    return prompt


def other_sampler(kind, **inputs):
    prompt = restore(small())
    given = {"operator": ["operator", 0], "damaged": ["damaged", 0], "noise": 4.0, "vae": ["model", 2]}
    prompt["sampler"] = node(kind, **given, **inputs)
    return prompt


RED = {"prior": 0.25, "step": 0.1, "weight": "linear", "schedule": "constant", "sigma_max": 10.0}


def cut_short(prompt):
    """The first half of the levels alone."""
    prompt["halves"] = node("SplitSigmas", sigmas=["sigmas", 0], step=1)
    return changed(prompt, "sample", sigmas=["halves", 0])


CASES = {
    "photo of another size than the damage leaves": (
        lambda: changed(restore(small()), "sampler", damaged=["picture", 0]),
        ("damaged image must be 16 x 16", "got 64 x 64"),
    ),
    "latent of another size": (lambda: restore(small(), size=32), ("must be 8 x 8", "got 16 x 16", "latent")),
    "no VAE on a latent model": (
        lambda: without(restore(small()), "sampler", "vae"),
        ("vae must be connected", "4 channels"),
    ),
    "noise below the floor": (
        lambda: changed(restore(small()), "sampler", noise=1.0),
        ("noise must be at least 1.28", "got 1;"),
    ),
    "noise below the floor at the report": (
        lambda: changed(of_another_size("RestoreReport"), "after", noise=0.5),
        ("noise must be at least 1.28", "got 0.5;"),
    ),
    "a kernel that sums to zero": (lambda: blurred_by(0), ("kernel must not add up to zero", "white on black")),
    "a kernel larger than twice the picture": (lambda: blurred_by(0xFFFFFF, 201), ("kernel must fit", "64 x 64")),
    "kernel blur without a kernel": (
        lambda: restore(node("DamageBlur", **{**BLUR, "kind": "kernel"})),
        ("kernel must be connected", "got nothing"),
    ),
    "more photos than latents": (lambda: swapped_photo(2), ("must hold 1 or 2 pictures", "got 3")),
    "several photos for one latent": (lambda: swapped_photo(1), ("must hold 1 picture for", "got 3")),
    "a mask of another size": (lambda: masked(width=32), ("mask must be 64 x 64", "got 32 x 64")),
    "a mask that covers everything": (lambda: masked(), ("mask must keep a part", "all of it")),
    "masks of another number": (lambda: masks(3, batch=2, frames=2), ("mask must hold 1 or 2", "got 3")),
    "one frame for dropped frames": (
        lambda: restore(node("DamageFrames", pattern="dropped", every=2)),
        ("clip must have two frames at least", "got 1"),
    ),
    "one frame for interlaced frames": (
        lambda: restore(node("DamageFrames", pattern="interlaced", every=2)),
        ("clip must have two frames at least", "got 1"),
    ),
    "frames that do not divide": (
        lambda: restore(node("DamageFrames", pattern="averaged", every=2), frames=3, batch=3),
        ("frames must be a multiple", "got 3"),
    ),
    "smoothing over one frame": (
        lambda: changed(restore(small()), "sampler", temporal_smoothing=1.0),
        ("temporal_smoothing must be 0", "got 1"),
    ),
    "a scale larger than the picture": (lambda: restore(small(64.0), size=16), ("scale must leave a pixel",)),
    "JPEG before another damage": (jpeg_first, ("JPEG must be the last damage",)),
    "no noise": (
        lambda: {**restore(small()), "noise": node("DisableNoise")},
        ("noise must be connected to restore", "RandomNoise"),
    ),
    "a noise mask": (
        lambda: changed(
            {
                **restore(small()),
                "mask": node("SolidMask", value=1.0, width=64, height=64),
                "with mask": node("SetLatentNoiseMask", samples=["latent", 0], mask=["mask", 0]),
            },
            "sample",
            latent_image=["with mask", 0],
        ),
        ("latent must come without a noise_mask", "DamageMask"),
    ),
    "report of another size": (lambda: of_another_size("RestoreReport"), ("damaged image must be 12 x 16",)),
    "snapping to another size": (lambda: of_another_size("SnapToMeasurement"), ("damaged image must be 12 x 16",)),
    "RED-diff on half the levels": (lambda: cut_short(other_sampler("RestoreREDDiff", **RED)), ("sigmas must end at",)),
    "RED-diff below every level": (
        lambda: changed(other_sampler("RestoreREDDiff", **{**RED, "sigma_max": 0.1}), "sigmas", steps=1),
        ("sigma_max must leave a sigma", "got 0.1"),
    ),
}


@pytest.fixture(autouse=True)
def nothing_is_written(server):
    before = files(server)
    yield
    assert files(server) == before


@pytest.mark.parametrize("name", CASES)
def test_one_sentence(server, name):
    make, words = CASES[name]
    refused(server, make(), *words)


def test_the_same_prompt_without_a_fault_runs(server):
    """The prompts above are refused for their fault alone."""
    prompt = restore(small())
    prompt["keep"] = node("PreviewImage", images=["decoded", 0])
    prompt["decoded"] = node("VAEDecode", samples=["sample", 0], vae=["model", 2])
    outcome = server.run(prompt)
    assert outcome.succeeded, outcome.error


@pytest.mark.parametrize(
    ("file", "words"),
    [("no_jpeg_made_by_test.jpg", "must be a JPEG"), ("broken_made_by_test.jpg", "must be a readable JPEG")],
)
def test_a_jpeg_file_that_is_none(server, file, words):
    path = server.base / "input" / file
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "PNG")
    path.write_bytes(content.getvalue() if "broken" not in file else b"\xff\xd8nothing")
    refused(server, restore(node("DamageJPEG", file=file, quality=10, half_colour=True)), words, file)
    path.unlink()
    refused(server, restore(node("DamageJPEG", file=file, quality=10, half_colour=True)), "readable JPEG", file)
