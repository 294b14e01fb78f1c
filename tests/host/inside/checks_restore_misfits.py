"""Restoration where things are unusual: masks of each picture, ControlNets, half precision, what does not fit."""

import torch
from helpers import (
    Counter,
    interrupted,
    refuses,
    refuses_each,
    relative,
    same_snapshot,
    same_weights,
    snapshot,
    weights_of,
)
from photographs import Cosines, cosine_vae, vae_of
from restoring import NODES, chi2, damaged_by, damages, hole, photo, sample, sampler_of, tiny_model
from running import controlled

CELLS = (4, 6)
GENTLE = {"RestoreGuided": {"measurement_weight": 0.1}, "RestoreREDDiff": {"sigma_max": 1000.0}}
# Every sampler, and the way to the latent that is differentiated.
EVERY = (("RestoreDDS", {"latent_method": "decoder gradient"}), *((node, {}) for node in NODES))


def parts(pack, damage="small"):
    """A tiny model, its prompt, a VAE that loses what it must, an operator and a picture that it damaged."""
    operator = damages(pack)[damage]
    damaged = damaged_by(pack, photo(), operator)
    return pack.tiny.model("sd15"), pack.tiny.conditioning("sd15"), cosine_vae(pack, 4), operator, damaged


def shape(count=1, channels=4):
    return count, channels, *CELLS


def check_restore_guided_through_every_damage(pack):
    """What a node makes in inference mode, such as a mask, is part of what is differentiated."""
    model, prompt, vae, *_ = parts(pack)
    before, known = snapshot(model), damages(pack)
    known["frames"] = pack.call("DamageFrames", pattern="averaged", operator=known["grey"])[0]
    for name, operator in known.items():
        count = 2 if name == "frames" else 1
        damaged = damaged_by(pack, photo(count), operator)
        drawn, other = (
            sample(model, prompt, sampler_of(pack, "RestoreGuided", operator, image, vae), shape(count), 2)
            for image in (damaged, 1.0 - damaged)
        )
        assert bool(torch.isfinite(drawn).all()) and not torch.equal(drawn, other), name
    same_snapshot(model, before)
    assert all(value.is_inference() for value in vae.first_stage_model.state_dict().values())


def check_restore_through_a_controlnet(pack):
    """Gradients pass through a ControlNet too, and its weights are as before."""
    model, plain, vae, operator, damaged = parts(pack)
    (prompt,), control = controlled(pack, "sd15", (plain,))
    before = weights_of(control.control_model)
    for node, settings in EVERY:
        sampler = sampler_of(pack, node, operator, damaged, vae, **settings)
        with_it, without = (sample(model, each, sampler, shape(), 2) for each in (prompt, plain))
        assert bool(torch.isfinite(with_it).all()) and not torch.equal(with_it, without), (node, settings)
    same_weights(control.control_model, before)
    assert all(value.is_inference() for value in control.control_model.state_dict().values())


def check_restore_masks_of_each_picture(pack):
    """Two pictures with a hole of their own each are restored as they are alone, by every sampler."""
    model, prompt, vae, *_ = parts(pack)
    image, boxes = photo(2), ((2, 3, 8, 9), (0, 0, 28, 40))
    noise = torch.randn(shape(2), generator=torch.Generator().manual_seed(9))

    def operator_of(*chosen):
        return pack.call("DamageMask", mask=hole(*chosen))[0]

    def drawn(node, first, last, seed):
        rows, operator = slice(first, last), operator_of(*boxes[first:last])
        sampler = sampler_of(pack, node, operator, image[rows], vae, **GENTLE.get(node, {}))
        return sample(model, prompt, sampler, shape(last - first), 4, seed, noise[rows])

    for node in NODES:
        both, alone = drawn(node, 0, 2, 6), torch.cat([drawn(node, 0, 1, 6), drawn(node, 1, 2, 7)])
        assert relative(both, alone) < 1e-3, (node, relative(both, alone))
    inputs = {"operator": operator_of(*boxes), "damaged": image, "noise": 4.0}
    mean, _, text = pack.call("RestoreReport", image=1 - image, **inputs)
    ones = [chi2(pack, 1 - image[[row]], operator_of(boxes[row]), image[[row]]) for row in (0, 1)]
    assert abs(mean - sum(ones) / 2) < 1e-3 * mean and f"{ones[0]:.3g}, {ones[1]:.3g}" in text, (mean, ones, text)
    three = operator_of(*boxes, boxes[0])
    frames = pack.call("DamageFrames", operator=three)[0]
    for call in (
        lambda: damaged_by(pack, image, three),
        lambda: damaged_by(pack, image, frames),
        lambda: pack.call("MeasureNoise", image=image, operator=three),
        lambda: sample(model, prompt, sampler_of(pack, "RestoreDDS", three, image, vae), shape(2)),
    ):
        refuses(call, "mask must hold 1 or 2")


class Counting(Cosines):
    """Counts what is asked of it."""

    def __init__(self, channels):
        super().__init__(channels)
        self.counts = {"decode": 0, "encode": 0}

    def encode(self, pictures):
        self.counts["encode"] += 1
        return super().encode(pictures)

    def decode(self, latents):
        self.counts["decode"] += 1
        return super().decode(latents)


def check_restore_costs_what_its_help_says(pack):
    """Model calls, decodes and encodes of a run: those of the start and those of each step."""
    model, prompt, _, operator, damaged = parts(pack)
    counter = Counter(model)
    for node, settings, start, step in (
        ("RestoreDDS", {}, (2, 1), (2, 3)),
        ("RestoreDDS", {"inner_steps": 2}, (2, 1), (3, 4)),
        ("RestoreDDS", {"latent_method": "decode, correct, encode"}, (2, 1), (3, 6)),
        ("RestoreDDS", {"latent_method": "decoder gradient"}, (2, 1), (6, 0)),
        ("RestoreREDDiff", {"sigma_max": 1000.0}, (2, 2), (1, 2)),
        ("RestoreGuided", {}, (2, 1), (1, 1)),
        ("RestoreGuided", {"gluing": 0.0}, (2, 1), (1, 0)),
    ):
        for steps in (2, 5):
            vae = vae_of(pack, 4, lambda: Counting(4))
            counts, counter.calls = vae.first_stage_model.counts, 0
            sample(counter.model, prompt, sampler_of(pack, node, operator, damaged, vae, **settings), shape(), steps)
            most = {name: first + steps * each for name, first, each in zip(("decode", "encode"), start, step)}
            exactly = settings.get("latent_method") != "decoder gradient"
            fits = counts == most if exactly else all(counts[name] <= most[name] for name in most)
            assert fits and counter.calls == steps, (node, settings, counts, most)


def check_restore_with_a_half_precision_vae(pack):
    """The result is that of a float32 VAE within the rounding of the other."""
    for name in ("mask", "jpeg"):
        model, prompt, _, operator, _ = parts(pack, name)
        damaged, drawn = damaged_by(pack, photo(2), operator), {}
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            vae = cosine_vae.__wrapped__(pack, 4)
            vae.vae_dtype = dtype
            with torch.inference_mode():
                vae.first_stage_model.to(dtype)
            drawn[dtype] = sample(model, prompt, sampler_of(pack, "RestoreDDS", operator, damaged, vae), shape(2), 4)
        for dtype, limit in ((torch.float16, 0.06), (torch.bfloat16, 0.25)):
            error = relative(drawn[dtype], drawn[torch.float32])
            assert drawn[dtype].dtype == torch.float32 and error < limit, (name, dtype, error)


def check_restore_ignores_a_photo_that_is_not_trusted(pack):
    """At trust 0 the photo changes nothing, not even one that a projection would put in."""
    for name in ("small", "jpeg"):
        model, prompt, vae, operator, _ = parts(pack, name)
        for method in ("encoder adjoint", "decode, correct, encode"):
            drawn = []
            for image in (photo(), 1.0 - photo()):
                damaged, settings = damaged_by(pack, image, operator, 0.0), {"trust": 0.0, "latent_method": method}
                sampler = sampler_of(pack, "RestoreDDS", operator, damaged, vae, **settings)
                drawn.append(sample(model, prompt, sampler, shape()))
            assert relative(*drawn) < 1e-5, (name, method)


def check_restore_previews_and_interrupts_of_every_sampler(pack):
    """A preview at every step; an interrupt ends the run within one call and leaves all as it was."""
    model, prompt, vae, operator, damaged = parts(pack, "mask")
    for node, settings in EVERY:
        sampler = sampler_of(pack, node, operator, damaged, vae, **{**GENTLE.get(node, {}), **settings})
        interrupted(lambda m, s=sampler: sample(m, prompt, s, shape(), 5), model, 2)
        assert all(value.is_inference() for value in vae.first_stage_model.state_dict().values()), node
        previews = []

        def preview(index, denoised, x, total, to=previews):
            to.append((index, total, tuple(denoised.shape), x.requires_grad))

        sample(model, prompt, sampler, shape(), callback=preview)
        assert previews == [(index, 3, shape(), False) for index in range(3)], (node, previews)


def check_restore_refuses(pack):
    """What does not fit a restoration, in one sentence each; what operators alone refuse is tested with them."""
    model, prompt, vae, operator, damaged = parts(pack)
    # One that the host gives a masked picture has five channels more to take it.
    config, make = pack.tiny._build("sd15")
    config.unet_config["in_channels"] = 9
    inpainting = tiny_model(pack, config, make)
    inpainting.model.set_inpaint()

    def run(node="RestoreDDS", model=model, prompt=prompt, size=(1, 4, *CELLS), sampling=(), **changes):
        inputs = {"operator": operator, "damaged": damaged, "vae": vae, **changes}
        return sample(model, prompt, sampler_of(pack, node, **inputs), size, **dict(sampling))

    red, three, wide = {"node": "RestoreREDDiff"}, damaged.repeat(3, 1, 1, 1), cosine_vae(pack, 16)
    masked = {"denoise_mask": torch.ones(1, 1, *CELLS)}
    refuses_each(
        run,
        *(({"node": node, "model": inpainting}, "got an inpainting model", "DamageMask") for node in NODES),
        *(({"node": node, "vae": wide}, "vae must decode the model's latents of 4 channels") for node in NODES),
        ({"vae": None}, "vae must be connected", "4 channels"),
        ({"damaged": photo()}, "damaged image must be 24 x 16", "got 48 x 32"),
        ({"size": (1, 4, 4, 4)}, "must be 16 x 16", "got 24 x 16", "latent"),
        ({"damaged": three}, "must hold 1 picture for", "got 3"),
        ({"damaged": three, "size": shape(2)}, "must hold 1 or 2 pictures", "got 3"),
        ({"noise": 1.0}, "noise must be at least 1.28", "got 1;"),
        ({"temporal_smoothing": 1.0}, "temporal_smoothing must be 0", "got 1"),
        ({"sampling": {"noise": torch.zeros(shape())}}, "noise must be connected to restore", "RandomNoise"),
        ({"sampling": masked}, "latent must come without a noise_mask", "DamageMask"),
        ({**red, "sampling": {"levels": 2}}, "sigmas must end at"),
        ({**red, "sigma_max": 0.1, "sampling": {"steps": 1}}, "sigma_max must leave a sigma", "got 0.1"),
    )
    other = {"image": photo(1, 0, 48, 48), "operator": operator, "damaged": damaged}
    for node in ("RestoreReport", "SnapToMeasurement"):
        refuses(lambda n=node: pack.call(n, **other), "damaged image must be 24 x 24")
    refuses(lambda: chi2(pack, photo(), operator, damaged, 0.5), "noise must be at least 1.28", "got 0.5;")
    loud = pack.tiny.model("sd3")
    sampling = loud.get_model_object("model_sampling")
    if hasattr(sampling, "set_noise_scale"):  # hosts from 0.33 on
        sampling.set_noise_scale(8.0)
        inputs = {"model": loud, "prompt": pack.tiny.conditioning("sd3"), "vae": wide}
        refuses(lambda: run(size=shape(1, 16), **inputs), "got a noise scale of 8")
