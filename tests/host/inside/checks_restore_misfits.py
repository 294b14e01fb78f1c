"""Restoration where things are unusual: masks of each picture, ControlNets, half precision, models that do not fit."""

import nodes
import torch
from helpers import Counter, no_interrupt, refuses, relative, same_snapshot, snapshot
from photographs import Cosines, cosine_vae
from restoring import NODES, chi2, damaged_by, damages, hole, patched, photo, sample, sampler_of, tiny_model

CELLS = (4, 6)
GENTLE = {"RestoreGuided": {"measurement_weight": 0.1}, "RestoreREDDiff": {"sigma_max": 1000.0}}


def parts(pack):
    """A tiny model, its prompt, and a VAE that loses what it must."""
    return pack.tiny.model("sd15"), pack.tiny.conditioning("sd15"), cosine_vae(pack, 4)


def shape(count=1, channels=4):
    return count, channels, *CELLS


def check_restore_guided_through_every_damage(pack):
    """What a node makes in inference mode, such as a mask, is part of what is differentiated."""
    model, prompt, vae = parts(pack)
    before, known = snapshot(model), damages(pack)
    known["frames"] = pack.call("DamageFrames", pattern="averaged", every=2, operator=known["grey"])[0]
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
    (model, plain, vae), control = parts(pack), pack.tiny.control_net("sd15")
    hint = photo(seed=3, height=8 * CELLS[0], width=8 * CELLS[1])
    prompt = nodes.ControlNetApplyAdvanced().apply_controlnet(plain, plain, control, hint, 0.5, 0.0, 1.0)[0]
    operator = damages(pack)["small"]
    damaged = damaged_by(pack, photo(), operator)
    before = {name: value.clone() for name, value in control.control_model.state_dict().items()}
    for node, settings in (("RestoreDDS", {"latent_method": "decoder gradient"}), *((node, {}) for node in NODES)):
        sampler = sampler_of(pack, node, operator, damaged, vae, **settings)
        with_it, without = (sample(model, each, sampler, shape(), 2) for each in (prompt, plain))
        assert bool(torch.isfinite(with_it).all()) and not torch.equal(with_it, without), (node, settings)
    now = control.control_model.state_dict()
    assert all(torch.equal(now[name], value) and now[name].is_inference() for name, value in before.items())


def check_restore_masks_of_each_picture(pack):
    """Two pictures with a hole of their own each are restored as they are alone, by every sampler."""
    model, prompt, vae = parts(pack)
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
    frames = pack.call("DamageFrames", pattern="dropped", every=2, operator=three)[0]
    for call in (
        lambda: damaged_by(pack, image, three),
        lambda: damaged_by(pack, image, frames),
        lambda: pack.call("MeasureNoise", image=image, operator=three),
        lambda: sample(model, prompt, sampler_of(pack, "RestoreDDS", three, image, vae), shape(2)),
    ):
        refuses(call, "mask must hold 1 or 2")
    refuses(lambda: pack.call("DamageCombine", first=operator_of(*boxes), second=three), "must be equally many", "2, 3")


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
    counter, prompt = Counter(pack.tiny.model("sd15")), pack.tiny.conditioning("sd15")
    operator = damages(pack)["small"]
    damaged = damaged_by(pack, photo(), operator)
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
            vae = cosine_vae.__wrapped__(pack, 4)
            with torch.inference_mode():
                network = vae.first_stage_model = Counting(4).to(vae.vae_dtype).eval()
                vae.patcher = patched(network)
            counter.calls = 0
            sample(counter.model, prompt, sampler_of(pack, node, operator, damaged, vae, **settings), shape(), steps)
            most = {name: first + steps * each for name, first, each in zip(("decode", "encode"), start, step)}
            exactly = settings.get("latent_method") != "decoder gradient"
            fits = network.counts == most if exactly else all(network.counts[name] <= most[name] for name in most)
            assert fits and counter.calls == steps, (node, settings, network.counts, most)


def check_restore_with_a_half_precision_vae(pack):
    """The result is that of a float32 VAE within the rounding of the other."""
    model, prompt, _ = parts(pack)
    for name in ("mask", "jpeg"):
        operator = damages(pack)[name]
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
    model, prompt, vae = parts(pack)
    for name in ("small", "jpeg"):
        operator = damages(pack)[name]
        for method in ("encoder adjoint", "decode, correct, encode"):
            drawn = [
                sample(
                    model,
                    prompt,
                    sampler_of(
                        pack,
                        "RestoreDDS",
                        operator,
                        damaged_by(pack, image, operator, 0.0),
                        vae,
                        trust=0.0,
                        latent_method=method,
                    ),
                    shape(),
                )
                for image in (photo(), 1.0 - photo())
            ]
            assert relative(*drawn) < 1e-5, (name, method)


def check_restore_previews_and_interrupts_of_every_sampler(pack):
    """A preview at every step; an interrupt ends the run within one call and leaves all as it was."""
    model, prompt, vae = parts(pack)
    operator = damages(pack)["mask"]
    damaged = damaged_by(pack, photo(), operator)
    for node, settings in (("RestoreDDS", {"latent_method": "decoder gradient"}), *((node, {}) for node in NODES)):
        sampler = sampler_of(pack, node, operator, damaged, vae, **{**GENTLE.get(node, {}), **settings})
        before, counter = snapshot(model), Counter(model, interrupt_after=2)
        with no_interrupt():
            try:
                sample(counter.model, prompt, sampler, shape(), 5)
            except BaseException as error:
                assert "Interrupt" in type(error).__name__, (node, error)
            else:
                raise AssertionError(f"{node} was not interrupted")
        assert counter.calls == 2, node
        same_snapshot(model, before)
        assert all(value.is_inference() for value in vae.first_stage_model.state_dict().values()), node
        seen = []

        def preview(index, denoised, x, total, seen=seen):
            seen.append((index, total, tuple(denoised.shape), x.requires_grad))

        sample(model, prompt, sampler, shape(), callback=preview)
        assert seen == [(index, 3, shape(), False) for index in range(3)], (node, seen)


def check_restore_refuses_models_and_autoencoders_that_do_not_fit(pack):
    model, prompt, vae = parts(pack)
    operator = damages(pack)["small"]
    damaged = damaged_by(pack, photo(), operator)
    # One that the host gives a masked picture has five channels more to take it.
    config, make = pack.tiny._build("sd15")
    config.unet_config["in_channels"] = 9
    inpainting = tiny_model(pack, config, make)
    inpainting.model.set_inpaint()
    for node in NODES:
        sampler = sampler_of(pack, node, operator, damaged, vae)
        other = sampler_of(pack, node, operator, damaged, cosine_vae(pack, 16))
        refuses(lambda s=sampler: sample(inpainting, prompt, s, shape()), "got an inpainting model", "DamageMask")
        refuses(lambda s=other: sample(model, prompt, s, shape()), "vae must decode the model's latents of 4 channels")
    loud = pack.tiny.model("sd3")
    sampling = loud.get_model_object("model_sampling")
    if hasattr(sampling, "set_noise_scale"):  # hosts from 0.33 on
        sampling.set_noise_scale(8.0)
        sampler = sampler_of(pack, "RestoreDDS", operator, damaged, cosine_vae(pack, 16))
        refuses(lambda: sample(loud, pack.tiny.conditioning("sd3"), sampler, shape(1, 16)), "got a noise scale of 8")
