"""Restoration in the host: damages, the restore samplers under stock guiders, and what they refuse."""

import functools

import comfy.model_management
import comfy.samplers
import nodes
import torch
from helpers import Counter, no_interrupt, refuses, same_snapshot, snapshot
from restore_settings import DDS

KINDS = ("eps", "flow")
CAPTION = "a big red star on the left of a cyan background"
STEPS = 8


@functools.cache
def loaded(pack, kind):
    model, clip, vae = pack.call("LoadShapesModel", kind=kind)
    with torch.inference_mode():
        prompt = nodes.CLIPTextEncode().encode(clip, CAPTION)[0]
    return model, vae, prompt


def picture(pack, batch=1, seed=3):
    image, mask, _ = pack.call(
        "ShapesPicture",
        size="big",
        colour="red",
        shape="star",
        position="left",
        background="cyan",
        seed=seed,
        batch_size=batch,
    )
    return image, mask


def hole():
    mask = torch.zeros(1, 64, 64)
    mask[:, 18:40, 14:34] = 1.0
    return mask


def damages(pack):
    """Every damage of a single picture, by name."""
    call = pack.call
    (small,) = call("DamageLowResolution", scale=4.0, filter="bicubic")
    (blur,) = call("DamageBlur", kind="gaussian", radius=2.0, length=9.0, angle=30.0, edges="reflect")
    (motion,) = call("DamageBlur", kind="motion", radius=2.0, length=9.0, angle=30.0, edges="reflect")
    (jpeg,) = call("DamageJPEG", file="(as set below)", quality=10, half_colour=True)
    (half,) = call("DamageLowResolution", scale=2.0, filter="box")
    return {
        "mask": call("DamageMask", mask=hole(), grow=1)[0],
        "small": small,
        "blur": blur,
        "motion": motion,
        "grey": call("DamageBlackWhite", weights="Rec.601")[0],
        "noise": call("DamageNoise")[0],
        "jpeg": jpeg,
        "all": call("DamageCombine", first=blur, second=half, third=jpeg)[0],
    }


def settings(**changes):
    return {"noise": 4.0, **DDS, **changes}


def empty(batch=1, size=16, channels=4):
    return torch.zeros(batch, channels, size, size)


def sample(model, prompt, sampler, latent, seed=5, steps=STEPS, noise=None, mask=None, scheduler="normal"):
    """SamplerCustomAdvanced with CFGGuider at cfg 1 and RandomNoise."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt, prompt)
    guider.set_cfg(1.0)
    if noise is None:
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=seed)


def restore(pack, kind, operator, damaged, latent=None, node="RestoreDDS", seed=5, steps=STEPS, **changes):
    model, vae, prompt = loaded(pack, kind)
    inputs = settings(**changes) if node == "RestoreDDS" else changes
    (sampler,) = pack.call(node, operator=operator, damaged=damaged, vae=vae, **inputs)
    drawn = sample(model, prompt, sampler, empty() if latent is None else latent, seed, steps)
    with torch.inference_mode():
        return nodes.VAEDecode().decode(vae, {"samples": drawn})[0]


def psnr(a, b):
    return float(-10 * torch.log10((a - b).square().mean()))


def check_damages_do_what_they_say(pack):
    image, _ = picture(pack)
    sizes = {"small": (16, 16), "all": (32, 32)}
    for name, operator in damages(pack).items():
        (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=0.0, seed=0)
        assert damaged.shape == (1, *sizes.get(name, (64, 64)), 3), (name, damaged.shape)
        (noisy,) = pack.call("ApplyDamage", image=image, operator=operator, noise=10.0, seed=0)
        (again,) = pack.call("ApplyDamage", image=image, operator=operator, noise=10.0, seed=0)
        assert torch.equal(noisy, again) and not torch.equal(noisy, damaged)
        chi2, residual, text = pack.call("RestoreReport", image=image, operator=operator, damaged=noisy, noise=10.0)
        if name not in ("jpeg", "all"):  # whose cells the added noise leaves
            assert 0.8 < chi2 < 1.2, (name, chi2)
        assert residual.shape == noisy.shape and "chi2" in text
        wrong, _, text = pack.call("RestoreReport", image=1.0 - image, operator=operator, damaged=noisy, noise=10.0)
        assert wrong > 2.0 and "does not explain" in text, (name, wrong)
    grey = pack.call("ApplyDamage", image=image, operator=damages(pack)["grey"], noise=0.0, seed=0)[0]
    assert torch.equal(grey[..., 0], grey[..., 2])


def check_noise_is_measured(pack):
    image, _ = picture(pack, batch=2)
    known = damages(pack)
    for name in ("noise", "mask"):
        (noisy,) = pack.call("ApplyDamage", image=image, operator=known[name], noise=15.0, seed=1)
        (found,) = pack.call("MeasureNoise", image=noisy, operator=known[name])
        assert 13.5 < found < 16.5, (name, found)
    (none,) = pack.call("MeasureNoise", image=torch.full((1, 8, 8, 3), 0.5))
    assert none >= 1.275


def check_restoring_beats_the_first_guess(pack):
    """Every damage on the eps model, and three on the flow model, with the truth known."""
    restoring = pack.module("nodes.restoring.measurements")
    image, _ = picture(pack)
    for kind in KINDS:
        for name, operator in damages(pack).items():
            if kind == "flow" and name not in ("mask", "small", "blur"):
                continue
            # The autoencoder's own loss, 30 dB, must not be what is measured; JPEG has no noise but its own.
            added = {"noise": 40.0, "jpeg": 0.0, "all": 0.0}.get(name, 4.0)
            (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=added, seed=1)
            level = max(added, 4.0)
            restored = restore(pack, kind, operator, damaged, steps=12, noise=level)
            measurement, _ = restoring.measurement_of(image, operator, damaged, level)
            guess = ((measurement.initial() + 1) / 2).movedim(1, -1).clamp(0, 1)
            gain = psnr(restored, image) - psnr(guess, image)
            assert gain > (2.0 if name not in ("jpeg", "all") else 0.5), (kind, name, gain)
            assert restored.shape == image.shape


def check_same_queue_same_bits_and_rows_alone(pack):
    image, _ = picture(pack, batch=2)
    operator = damages(pack)["small"]
    (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=4.0, seed=1)
    first = restore(pack, "eps", operator, damaged, empty(2), steps=4)
    assert torch.equal(first, restore(pack, "eps", operator, damaged, empty(2), steps=4))
    model, vae, prompt = loaded(pack, "eps")
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    rows = []
    for row in (0, 1):
        (sampler,) = pack.call("RestoreDDS", operator=operator, damaged=damaged[row : row + 1], vae=vae, **settings())
        rows.append(sample(model, prompt, sampler, empty(), 5 + row, 4, noise=noise[row : row + 1]))
    (sampler,) = pack.call("RestoreDDS", operator=operator, damaged=damaged, vae=vae, **settings())
    both = sample(model, prompt, sampler, empty(2), 5, 4, noise=noise)
    assert float((both - torch.cat(rows)).abs().max()) < 1e-2


def check_noise_on_the_way_is_not_that_of_the_start(pack):
    """RandomNoise and the sampler share a seed; the same numbers twice would add up."""
    import comfy.sample

    run, noises = pack.module("nodes.restoring.run"), pack.module("core.noise").Noises
    for seed in (0, 5, 2**64 - 1):
        start = comfy.sample.prepare_noise(empty(2), seed)
        fresh = noises(run.stream_seed(seed), start, precision=torch.float32).draw()
        for row in (0, 1):
            overlap = (fresh[row].double() * start.double()).flatten(1).mean(dim=1).abs().max()
            assert float(overlap) < 0.15, (seed, float(overlap))


def check_latent_methods(pack):
    """The three ways to reach the latent all follow the photo; the gradient runs under the host's inference mode."""
    image, _ = picture(pack)
    operator = damages(pack)["blur"]
    (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=4.0, seed=1)
    model, vae, _ = loaded(pack, "eps")
    before = snapshot(model), {n: v.clone() for n, v in vae.first_stage_model.state_dict().items()}
    worst = psnr(damaged, image)
    for method in ("encoder adjoint", "decode, correct, encode", "decoder gradient"):
        restored = restore(pack, "eps", operator, damaged, latent_method=method)
        assert psnr(restored, image) > worst + 1.0, (method, psnr(restored, image), worst)
    same_snapshot(model, before[0])
    now = vae.first_stage_model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in before[1].items())
    assert all(p.is_inference() == vae.first_stage_model.decoder.conv_in.weight.is_inference() for p in now.values())


def check_clips_flicker_less(pack):
    """Four frames of a star that stands still: smoothing and shared noise at least halve the flicker."""
    image = picture(pack)[0].repeat(4, 1, 1, 1)
    operator = damages(pack)["small"]
    (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=8.0, seed=1)

    def flicker(frames):
        return float(frames.diff(dim=0).square().mean().sqrt())

    alone = restore(pack, "eps", operator, damaged, empty(4), noise=8.0)
    together = restore(pack, "eps", operator, damaged, empty(4), noise=8.0, temporal_smoothing=2.0, share_noise=True)
    assert flicker(together) < 0.5 * flicker(alone), (flicker(together), flicker(alone))
    # The same photo and the same noise in every frame give the same frame; noise of their own does not.
    still = damaged[:1].repeat(4, 1, 1, 1)
    assert flicker(restore(pack, "eps", operator, still, empty(4), share_noise=True, steps=3)) < 1e-3
    assert flicker(restore(pack, "eps", operator, still, empty(4), steps=3)) > 1e-2
    assert psnr(together, image) > psnr(alone, image) - 1.0, (psnr(together, image), psnr(alone, image))


def check_frames(pack):
    """Dropped and averaged frames of a batch are restored together; the damaged clip is shorter."""
    image = picture(pack)[0].repeat(4, 1, 1, 1)
    for pattern, every, left in (("dropped", 2, 2), ("averaged", 2, 2), ("interlaced", 2, 4)):
        (operator,) = pack.call("DamageFrames", pattern=pattern, every=every)
        (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=4.0, seed=1)
        assert damaged.shape[0] == left
        restored = restore(pack, "eps", operator, damaged, empty(4), temporal_smoothing=2.0, share_noise=True)
        chi2, *_ = pack.call("RestoreReport", image=restored, operator=operator, damaged=damaged, noise=10.0)
        assert restored.shape == image.shape and chi2 < 3.0, (pattern, chi2)
    (inner,) = pack.call("DamageFrames", pattern="dropped", every=2, operator=damages(pack)["small"])
    (damaged,) = pack.call("ApplyDamage", image=image, operator=inner, noise=0.0, seed=1)
    assert damaged.shape == (2, 16, 16, 3)
    # The operator of a frame came first: small, then interlaced, is not interlaced, then small.
    half = pack.call("DamageLowResolution", scale=2.0, filter="bicubic")[0]
    both = pack.call("DamageFrames", pattern="interlaced", every=2, operator=half)[0]
    (small,) = pack.call("ApplyDamage", image=image, operator=half, noise=0.0, seed=1)
    (laced,) = pack.call("DamageFrames", pattern="interlaced", every=2)
    (wanted,) = pack.call("ApplyDamage", image=small, operator=laced, noise=0.0, seed=1)
    (damaged,) = pack.call("ApplyDamage", image=image, operator=both, noise=0.0, seed=1)
    assert torch.allclose(damaged, wanted, atol=1e-6)


def check_red_diff(pack):
    image, _ = picture(pack)
    operator = damages(pack)["blur"]
    (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=4.0, seed=1)
    for kind in KINDS:
        restored = restore(
            pack,
            kind,
            operator,
            damaged,
            node="RestoreREDDiff",
            steps=40,
            noise=4.0,
            prior=0.25,
            step=0.1,
            weight="linear",
            schedule="constant",
            sigma_max=10.0,
        )
        assert psnr(restored, image) > psnr(damaged, image) + 1.0, (kind, psnr(restored, image), psnr(damaged, image))


def check_guided(pack):
    """Gradients through denoiser and VAE under the host's inference mode; weights and conditioning are as before."""
    image, _ = picture(pack)
    operator = damages(pack)["small"]
    damaged, noisy = (
        pack.call("ApplyDamage", image=image, operator=operator, noise=noise, seed=1)[0] for noise in (4.0, 10.0)
    )
    inputs = {
        "noise": 4.0,
        "measurement_weight": 1.0,
        "gluing": 0.1,
        "inner_steps": 1,
        "curvature": 0.0,
        "start_from_photo": False,
    }
    for kind in KINDS:
        model, vae, _ = loaded(pack, kind)
        before = snapshot(model), {n: v.clone() for n, v in vae.first_stage_model.state_dict().items()}

        def run(kind=kind, **changes):
            return restore(pack, kind, operator, damaged, node="RestoreGuided", **{**inputs, **changes})

        def residual(restored):
            return pack.call("RestoreReport", image=restored, operator=operator, damaged=damaged, noise=4.0)[0]

        free = residual(run(measurement_weight=0.0, gluing=0.0))
        drawn = {}
        for name, changes in (
            ("alone", {}),
            ("inner", {"measurement_weight": 0.1, "gluing": 0.0, "inner_steps": 3, "curvature": 0.001}),
            ("from the photo", {"start_from_photo": True}),
            ("bounded", {"measurement_weight": 30.0}),
        ):
            drawn[name] = run(**changes)
            assert residual(drawn[name]) < 0.9 * free, (kind, name)
        unbounded = run(measurement_weight=30.0, largest_step=0.0)
        assert psnr(unbounded, image) < psnr(drawn["bounded"], image) - 1.0, kind
        restored = restore(pack, kind, operator, noisy, node="RestoreGuided", steps=15, **{**inputs, "noise": 10.0})
        with torch.inference_mode():
            guess = vae.decode(vae.encode(_bicubic(noisy, image)))
        assert psnr(restored, image) > psnr(guess, image) + 1.0, (kind, psnr(restored, image), psnr(guess, image))
        same_snapshot(model, before[0])
        now = vae.first_stage_model.state_dict()
        assert all(torch.equal(now[name], value) for name, value in before[1].items())


def _bicubic(small, like):
    size = tuple(like.shape[1:3])
    return torch.nn.functional.interpolate(small.movedim(-1, 1), size=size, mode="bicubic").movedim(1, -1).clamp(0, 1)


def check_snapping_brings_back_what_the_photo_has(pack):
    image, _ = picture(pack)
    for name in ("mask", "jpeg", "small"):
        operator = damages(pack)[name]
        (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=0.0, seed=1)
        vae = loaded(pack, "eps")[1]
        with torch.inference_mode():
            lossy = vae.decode(vae.encode(image))
        inputs = {"operator": operator, "damaged": damaged, "noise": 2.0}
        (snapped,) = pack.call("SnapToMeasurement", image=lossy, **inputs)
        before, after = (pack.call("RestoreReport", image=i, **inputs)[0] for i in (lossy, snapped))
        assert after < 0.3 * before and psnr(snapped, image) > psnr(lossy, image), (name, before, after)


def check_snapping_takes_the_flicker_out_of_a_clip(pack):
    """Frames that are alike and a decoder's answers to them that are not: with smoothing they are alike again."""
    still = picture(pack)[0].expand(4, -1, -1, -1)
    flickering = still + 0.05 * torch.randn(still.shape, generator=torch.Generator().manual_seed(4))
    small = pack.call("DamageLowResolution", scale=2.0, filter="box")[0]
    for operator in (small, pack.call("DamageFrames", pattern="dropped", every=2, operator=small)[0]):
        (damaged,) = pack.call("ApplyDamage", image=still, operator=operator, noise=8.0, seed=1)
        inputs = {"image": flickering.clamp(0, 1), "operator": operator, "damaged": damaged, "noise": 8.0}
        (alone,) = pack.call("SnapToMeasurement", **inputs)
        (without,) = pack.call("SnapToMeasurement", **inputs, temporal_smoothing=0.0)
        (together,) = pack.call("SnapToMeasurement", **inputs, temporal_smoothing=2.0)
        assert torch.equal(alone, without)
        flicker = [float(clip.diff(dim=0).square().mean().sqrt()) for clip in (alone, together)]
        assert flicker[1] < 0.5 * flicker[0] and psnr(together, still) > psnr(alone, still), flicker


def check_snapping_follows_what_moves(pack):
    """A picture that slides by a pixel a frame: nearer than without, nothing changed where it is off, and it ends."""
    still = picture(pack)[0]
    moving = torch.cat([still.roll(step, dims=2) for step in range(4)])
    generator = torch.Generator().manual_seed(4)
    flickering = (moving + 0.05 * torch.randn(moving.shape, generator=generator)).clamp(0, 1)
    small = pack.call("DamageLowResolution", scale=2.0, filter="box")[0]
    (damaged,) = pack.call("ApplyDamage", image=moving, operator=small, noise=8.0, seed=1)
    inputs = {"image": flickering, "operator": small, "damaged": damaged, "noise": 8.0, "temporal_smoothing": 2.0}
    (plain,) = pack.call("SnapToMeasurement", **inputs)
    assert torch.equal(plain, pack.call("SnapToMeasurement", **inputs, follow_motion=False)[0])
    (followed,) = pack.call("SnapToMeasurement", **inputs, follow_motion=True)
    off = [float((clip.diff(dim=0) - moving.diff(dim=0)).square().mean().sqrt()) for clip in (plain, followed)]
    assert off[1] < 0.85 * off[0] and psnr(followed, moving) > psnr(plain, moving), off
    single = {**inputs, "image": flickering[:1], "damaged": damaged[:1]}
    refuses(
        lambda: pack.call("SnapToMeasurement", **single, follow_motion=True), "two frames", "turn follow_motion off"
    )
    with no_interrupt():
        comfy.model_management.interrupt_current_processing()
        try:
            pack.call("SnapToMeasurement", **inputs, follow_motion=True)
        except BaseException as error:
            assert "Interrupt" in type(error).__name__
        else:
            raise AssertionError("an interrupt must end the work")


def check_previews_and_interrupt(pack):
    """A preview of the corrected prediction at every step; an interrupt ends the run within one call."""
    image, _ = picture(pack)
    operator = damages(pack)["mask"]
    (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=4.0, seed=1)
    model, vae, prompt = loaded(pack, "eps")
    (sampler,) = pack.call("RestoreDDS", operator=operator, damaged=damaged, vae=vae, **settings())
    before = snapshot(model)
    counter = Counter(model, interrupt_after=3)
    with no_interrupt():
        try:
            sample(counter.model, prompt, sampler, empty())
        except BaseException as error:
            assert "Interrupt" in type(error).__name__
        else:
            raise AssertionError("the run was not interrupted")
    assert counter.calls == 3
    same_snapshot(model, before)
    seen = []
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt, prompt)
    with torch.inference_mode():
        guider.sample(
            torch.ones(1, 4, 16, 16),
            empty(),
            sampler,
            sigmas,
            callback=lambda i, x0, x, total: seen.append((i, total, x0.shape)),
            disable_pbar=True,
            seed=0,
        )
    assert seen == [(i, 3, (1, 4, 16, 16)) for i in range(3)]


def check_refusals(pack):
    image, _ = picture(pack)
    known = damages(pack)
    model, vae, prompt = loaded(pack, "eps")
    (damaged,) = pack.call("ApplyDamage", image=image, operator=known["small"], noise=4.0, seed=1)

    def run(operator=known["small"], photo=damaged, latent=None, noise=None, mask=None, use=vae, level=4.0, **changes):
        inputs = settings(noise=level, **changes)
        (sampler,) = pack.call("RestoreDDS", operator=operator, damaged=photo, vae=use, **inputs)
        return sample(model, prompt, sampler, empty() if latent is None else latent, noise=noise, mask=mask)

    refuses(lambda: run(photo=image), "damaged image must be 16 x 16", "64 x 64")
    refuses(lambda: run(latent=empty(size=8)), "damaged image must be 8 x 8")
    refuses(lambda: run(use=None), "vae must be connected")
    refuses(lambda: run(level=1.0), "noise must be at least 1.28")
    refuses(lambda: run(noise=torch.zeros(1, 4, 16, 16)), "noise must be connected")
    refuses(lambda: run(mask=torch.ones(1, 1, 16, 16)), "without a noise_mask")
    refuses(lambda: run(photo=damaged.repeat(3, 1, 1, 1), latent=empty(2)), "must hold 1 or 2 pictures")
    refuses(
        lambda: run(latent_method="decode, correct, encode", temporal_smoothing=1.0, latent=empty(2)),
        "latent_method must be",
    )
    refuses(
        lambda: pack.call("DamageBlur", kind="kernel", radius=1.0, length=2.0, angle=0.0, edges="reflect"), "kernel"
    )
    black = torch.zeros(1, 5, 5, 3)
    refuses(
        lambda: pack.call(
            "DamageBlur", kind="kernel", radius=1.0, length=2.0, angle=0.0, edges="reflect", kernel=black
        ),
        "must not add up to zero",
    )
    wrong = known["jpeg"]
    chain = pack.call("DamageCombine", first=wrong, second=known["noise"])[0]
    refuses(lambda: pack.call("ApplyDamage", image=image, operator=chain, noise=0.0, seed=0), "JPEG must be the last")
    node = pack.node("RestoreDDS")
    assert "at least 1.28" in node.validate_inputs(noise=0.5)


def check_jpeg_files(pack):
    """Tables of a file in the input folder; what is no JPEG is refused in a sentence."""
    from PIL import Image

    folder = pack.workspace / "input"
    folder.mkdir(exist_ok=True)
    image, _ = picture(pack)
    drawn = Image.fromarray((image[0] * 255).round().byte().numpy())
    drawn.save(folder / "photo.jpg", quality=23, subsampling=2)
    drawn.save(folder / "full.jpg", quality=40, subsampling=0)
    drawn.convert("L").save(folder / "grey.jpg", quality=40)
    drawn.save(folder / "odd.jpg", quality=40, subsampling=1)
    drawn.save(folder / "really.png")
    (folder / "really.png").rename(folder / "lies.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    for name, quality, half in (("photo.jpg", 23, True), ("full.jpg", 40, False)):
        (from_file,) = pack.call("DamageJPEG", file=name, quality=90, half_colour=not half)
        (by_hand,) = pack.call("DamageJPEG", file="(as set below)", quality=quality, half_colour=half)
        one, other = (
            pack.call("ApplyDamage", image=image, operator=op, noise=0.0, seed=0)[0] for op in (from_file, by_hand)
        )
        assert torch.equal(one, other), name
    pack.call("DamageJPEG", file="grey.jpg", quality=90, half_colour=True)
    assert {"photo.jpg", "full.jpg"} <= set(pack.module("nodes.restoring.damage_jpeg").list_jpegs())
    for name, words in (
        ("lies.jpg", "must be a JPEG"),
        ("broken.jpg", "readable JPEG"),
        ("missing.jpg", "readable JPEG"),
        ("odd.jpg", "4:4:4 or 4:2:0"),
        ("../photo.jpg", "in the input folder"),
    ):
        refuses(lambda name=name: pack.call("DamageJPEG", file=name, quality=9, half_colour=True), words)
        assert words in pack.node("DamageJPEG").validate_inputs(file=name)
    before = pack.node("DamageJPEG").fingerprint_inputs(file="photo.jpg", quality=9, half_colour=True)
    drawn.save(folder / "photo.jpg", quality=93)
    assert pack.node("DamageJPEG").fingerprint_inputs(file="photo.jpg", quality=9, half_colour=True) != before
