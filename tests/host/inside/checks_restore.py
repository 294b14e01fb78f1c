"""Restoration in the host by the models of the Shapes world, whose truth is known: damages, samplers, snapping."""

import functools

import comfy.model_management
import comfy.sample
import torch
from helpers import refuses, same_snapshot, same_weights, snapshot, weights_of
from restoring import chi2, damaged_by, damages, hole, psnr, sample, sampler_of
from running import WORDS, decode, encode, shapes

CAPTION = "a big red star on the left of a cyan background"


def picture(pack):
    return pack.call("ShapesPicture", **{**WORDS, "shape": "star", "background": "cyan"}, seed=3)[0]


def of_the_world(pack):
    """Every damage of a picture of the world."""
    mask = pack.call("DamageMask", mask=hole((18, 14, 22, 20), height=64, width=64), grow=1)[0]
    return {**damages(pack, 64, 64), "mask": mask}


def restore(pack, kind, operator, damaged, count=1, node="RestoreDDS", steps=8, **settings):
    model, clip, vae = shapes(pack, kind)
    sampler = sampler_of(pack, node, operator, damaged, vae, **settings)
    return decode(vae, sample(model, encode(clip, CAPTION), sampler, (count, 4, 16, 16), steps, 5, scheduler="normal"))


def flicker(frames, truth=None):
    """The rms of what changes from frame to frame, beyond what should."""
    change = frames.diff(dim=0) if truth is None else frames.diff(dim=0) - truth.diff(dim=0)
    return float(change.square().mean().sqrt())


def check_damages_do_what_they_say(pack):
    image, known = picture(pack), of_the_world(pack)
    sizes = {"small": (32, 32), "smaller": (25, 25), "all": (32, 32)}
    for name, operator in known.items():
        clean, noisy, again = (damaged_by(pack, image, operator, noise) for noise in (0.0, 10.0, 10.0))
        assert clean.shape == (1, *sizes.get(name, (64, 64)), 3), (name, clean.shape)
        assert torch.equal(noisy, again) and not torch.equal(noisy, clean), name
        inputs = {"operator": operator, "damaged": noisy, "noise": 10.0}
        explained, residual, text = pack.call("RestoreReport", image=image, **inputs)
        if name not in ("jpeg", "all"):  # whose cells the added noise leaves
            assert 0.8 < explained < 1.2, (name, explained)
        assert residual.shape == noisy.shape and "chi2" in text
        if name in ("noise", "mask"):
            (measured,) = pack.call("MeasureNoise", image=noisy, operator=operator)
            assert 8.5 < measured < 11.5, (name, measured)
        wrong, _, text = pack.call("RestoreReport", image=1.0 - image, **inputs)
        assert wrong > 2.0 and "does not explain" in text, (name, wrong)
    grey = damaged_by(pack, image, known["grey"])
    assert torch.equal(grey[..., 0], grey[..., 2])
    frames = pack.call("DamageFrames", pattern="dropped", every=2, operator=known["small"])[0]
    assert damaged_by(pack, image.repeat(4, 1, 1, 1), frames).shape == (2, 32, 32, 3)


def check_restoring_beats_the_first_guess(pack):
    measurement_of = pack.module("nodes.restoring.measurements").measurement_of
    image = picture(pack)
    for kind, name, wanted in (("eps", "mask", 2.0), ("eps", "grey", 2.0), ("eps", "all", 0.5), ("flow", "small", 2.0)):
        operator = of_the_world(pack)[name]
        damaged = damaged_by(pack, image, operator, 0.0 if name == "all" else 4.0)
        restored = restore(pack, kind, operator, damaged, steps=12)
        guess = measurement_of(image, operator, damaged, 4.0)[0].initial()
        gain = psnr(restored, image) - psnr(((guess + 1) / 2).movedim(1, -1).clamp(0, 1), image)
        assert gain > wanted and restored.shape == image.shape, (kind, name, gain)


def check_noise_on_the_way_is_not_that_of_the_start(pack):
    """RandomNoise and the sampler share a seed; the same numbers twice would add up."""
    run, noises = pack.module("nodes.restoring.run"), pack.module("core.noise").Noises
    for seed in (0, 5, 2**64 - 1):
        start = comfy.sample.prepare_noise(torch.zeros(2, 4, 16, 16), seed)
        fresh = noises(run.stream_seed(seed), start, precision=torch.float32).draw()
        for row in (0, 1):
            overlap = (fresh[row].double() * start.double()).flatten(1).mean(dim=1).abs().max()
            assert float(overlap) < 0.15, (seed, float(overlap))


def check_clips_flicker_less(pack):
    """Frames of a star that stands still: smoothing and shared noise at least halve the flicker."""
    image = picture(pack).repeat(3, 1, 1, 1)
    operator = of_the_world(pack)["small"]
    damaged = damaged_by(pack, image, operator, 8.0)
    alone = restore(pack, "eps", operator, damaged, 3, noise=8.0)
    together = restore(pack, "eps", operator, damaged, 3, noise=8.0, temporal_smoothing=2.0, share_noise=True)
    assert flicker(together) < 0.5 * flicker(alone), (flicker(together), flicker(alone))
    assert psnr(together, image) > psnr(alone, image) - 1.0, (psnr(together, image), psnr(alone, image))
    # The same photo and the same noise in every frame give the same frame.
    still = damaged[:1].repeat(2, 1, 1, 1)
    assert flicker(restore(pack, "eps", operator, still, 2, share_noise=True, steps=3)) < 1e-3


def check_guided(pack):
    """Gradients through denoiser and VAE under the host's inference mode; weights and conditioning are as before."""
    image, operator = picture(pack), of_the_world(pack)["small"]
    damaged = damaged_by(pack, image, operator, 4.0)
    model, _, vae = shapes(pack)
    before, weights = snapshot(model), weights_of(vae.first_stage_model)
    runs = {
        "free": {"measurement_weight": 0.0, "gluing": 0.0},
        "default": {},
        "from the photo": {"start_from_photo": True},
        "bounded": {"measurement_weight": 30.0},
        "unbounded": {"measurement_weight": 30.0, "largest_step": 0.0},
    }
    drawn = {key: restore(pack, "eps", operator, damaged, node="RestoreGuided", **each) for key, each in runs.items()}
    left = {name: chi2(pack, restored, operator, damaged) for name, restored in drawn.items()}
    assert max(left[name] for name in ("default", "from the photo", "bounded")) < 0.9 * left["free"], left
    assert psnr(drawn["unbounded"], image) < psnr(drawn["bounded"], image) - 1.0
    same_snapshot(model, before)
    same_weights(vae.first_stage_model, weights)


def check_snapping(pack):
    """It brings back what the photo has, and takes the flicker out of a clip, along what moves too; it can be ended."""
    image, known, vae = picture(pack), of_the_world(pack), shapes(pack)[2]
    with torch.inference_mode():
        lossy = vae.decode(vae.encode(image))
    for name in ("mask", "jpeg", "small"):
        inputs = {"operator": known[name], "damaged": damaged_by(pack, image, known[name], 0.0), "noise": 2.0}
        (snapped,) = pack.call("SnapToMeasurement", image=lossy, **inputs)
        before, after = (chi2(pack, shown, **inputs) for shown in (lossy, snapped))
        assert after < 0.3 * before and psnr(snapped, image) > psnr(lossy, image), (name, before, after)

    def snapping(clip, operator):
        flickering = clip + 0.05 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(4))
        inputs = {"operator": operator, "damaged": damaged_by(pack, clip, operator, 8.0), "noise": 8.0}
        return lambda **more: pack.call("SnapToMeasurement", image=flickering.clamp(0, 1), **inputs, **more)[0]

    still = image.expand(4, -1, -1, -1)
    for operator in (known["small"], pack.call("DamageFrames", operator=known["small"])[0]):
        snap = snapping(still, operator)
        alone, together = snap(), snap(temporal_smoothing=2.0)
        assert torch.equal(alone, snap(temporal_smoothing=0.0))
        assert flicker(together) < 0.5 * flicker(alone) and psnr(together, still) > psnr(alone, still)
    # A picture that slides by a pixel a frame.
    moving, motion = torch.cat([image[:, :48].roll(step, dims=2) for step in range(4)]), {"follow_motion": True}
    snap = functools.partial(snapping(moving, known["small"]), temporal_smoothing=2.0)
    plain, followed = snap(), snap(**motion)
    assert torch.equal(plain, snap(follow_motion=False))
    assert flicker(followed, moving) < 0.85 * flicker(plain, moving) and psnr(followed, moving) > psnr(plain, moving)
    single = snapping(moving[:1], known["small"])
    refuses(lambda: single(temporal_smoothing=2.0, **motion), "two frames", "turn follow_motion off")
    comfy.model_management.interrupt_current_processing()
    try:
        snap(**motion)
    except comfy.model_management.InterruptProcessingException:
        return
    finally:
        comfy.model_management.interrupt_current_processing(False)
    raise AssertionError("an interrupt must end the work")


def check_jpeg_files(pack):
    """Tables of a file in the input folder; what is no JPEG is refused in a sentence."""
    from PIL import Image

    folder, node = pack.workspace / "input", pack.node("DamageJPEG")
    folder.mkdir(exist_ok=True)
    image = picture(pack)
    drawn = Image.fromarray((image[0] * 255).round().byte().numpy())
    drawn.save(folder / "photo.jpg", quality=23, subsampling=2)
    drawn.save(folder / "full.jpg", quality=40, subsampling=0)
    drawn.convert("L").save(folder / "grey.jpg", quality=40)
    drawn.save(folder / "odd.jpg", quality=40, subsampling=1)
    drawn.save(folder / "lies.jpg", format="PNG")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    for name, quality, half in (("photo.jpg", 23, True), ("full.jpg", 40, False)):
        (from_file,) = pack.call("DamageJPEG", file=name, quality=90, half_colour=not half)
        (by_hand,) = pack.call("DamageJPEG", quality=quality, half_colour=half)
        assert torch.equal(damaged_by(pack, image, from_file), damaged_by(pack, image, by_hand)), name
    pack.call("DamageJPEG", file="grey.jpg")
    assert {"photo.jpg", "full.jpg"} <= set(pack.module("nodes.restoring.damage_jpeg").list_jpegs())
    for name, words in (
        ("lies.jpg", "must be a JPEG"),
        ("broken.jpg", "readable JPEG"),
        ("missing.jpg", "readable JPEG"),
        ("odd.jpg", "4:4:4 or 4:2:0"),
        ("../photo.jpg", "in the input folder"),
    ):
        refuses(lambda name=name: pack.call("DamageJPEG", file=name), words)
        assert words in node.validate_inputs(file=name)
    before = node.fingerprint_inputs(file="photo.jpg", quality=9, half_colour=True)
    drawn.save(folder / "photo.jpg", quality=93)
    assert node.fingerprint_inputs(file="photo.jpg", quality=9, half_colour=True) != before
