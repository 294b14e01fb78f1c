"""Restoration where things are unusual: masks of each picture, ControlNets, half precision, models that do not fit."""

import comfy.model_patcher
import comfy.samplers
import nodes
import torch
from helpers import Counter, no_interrupt, refuses, relative, same_snapshot, snapshot
from photographs import BLOCK, Cosines, cosine_vae
from restore_settings import DDS, GUIDED

CELLS = (4, 6)
HEIGHT, WIDTH = (BLOCK * side for side in CELLS)
NOISE = 4.0
RED = {"prior": 0.25, "step": 0.1, "weight": "linear", "schedule": "constant", "sigma_max": 1000.0}
SAMPLERS = {"RestoreDDS": DDS, "RestoreREDDiff": RED, "RestoreGuided": {**GUIDED, "measurement_weight": 0.1}}


def photo(count=1, seed=0, height=HEIGHT, width=WIDTH):
    """Smooth colours."""
    coarse = torch.rand(count, 3, 3, 4, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return fine.movedim(1, -1)


def hole(*boxes):
    """A mask for each box (top, left, height, width), white inside."""
    mask = torch.zeros(len(boxes), HEIGHT, WIDTH)
    for row, (top, left, height, width) in enumerate(boxes):
        mask[row, top : top + height, left : left + width] = 1.0
    return mask


def damages(pack):
    """Every damage of one picture, by name."""
    call = pack.call
    blur = {"radius": 1.5, "length": 7.0, "angle": 20.0}
    kernel = torch.zeros(1, 3, 5, 3)
    kernel[:, 1, 1:] = 1.0
    jpeg = call("DamageJPEG", file="(as set below)", quality=10, half_colour=True)[0]
    half = call("DamageLowResolution", scale=2.0, filter="box")[0]
    return {
        "mask": call("DamageMask", mask=hole((5, 9, 12, 20)), grow=1)[0],
        "small": half,
        "gaussian": call("DamageBlur", kind="gaussian", edges="reflect", **blur)[0],
        "motion": call("DamageBlur", kind="motion", edges="reflect", **blur)[0],
        "kernel": call("DamageBlur", kind="kernel", edges="circular", kernel=kernel, **blur)[0],
        "grey": call("DamageBlackWhite", weights="Rec.601")[0],
        "noise": call("DamageNoise")[0],
        "jpeg": jpeg,
        "all": call("DamageCombine", first=half, second=jpeg)[0],
    }


def sigmas_of(model, steps):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


def sample(model, prompt, sampler, count=1, steps=3, channels=4, seed=4, noise=None):
    latent = torch.zeros(count, channels, *CELLS)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt, prompt)
    guider.set_cfg(1.0)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(4)) if noise is None else noise
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, sigmas_of(model, steps), disable_pbar=True, seed=seed)


def sampler_of(pack, node, operator, damaged, vae, **changes):
    settings = {**SAMPLERS[node], **changes}
    return pack.call(node, operator=operator, damaged=damaged, noise=NOISE, vae=vae, **settings)[0]


def check_restore_guided_through_every_damage(pack):
    """What a node makes in inference mode, such as a mask, is part of what is differentiated."""
    model, prompt, vae = pack.tiny.model("sd15"), pack.tiny.conditioning("sd15"), cosine_vae(pack, 4)
    before = snapshot(model)
    image = photo()
    for name, operator in damages(pack).items():
        (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=2.0, seed=1)
        drawn = sample(model, prompt, sampler_of(pack, "RestoreGuided", operator, damaged, vae), steps=2)
        other = sampler_of(pack, "RestoreGuided", operator, 1.0 - damaged, vae)
        assert bool(torch.isfinite(drawn).all()) and not torch.equal(drawn, sample(model, prompt, other, steps=2)), name
    (operator,) = pack.call("DamageFrames", pattern="averaged", every=2, operator=damages(pack)["grey"])
    clip = photo(2)
    (damaged,) = pack.call("ApplyDamage", image=clip, operator=operator, noise=2.0, seed=1)
    drawn = sample(model, prompt, sampler_of(pack, "RestoreGuided", operator, damaged, vae), count=2, steps=2)
    assert bool(torch.isfinite(drawn).all())
    same_snapshot(model, before)
    assert all(value.is_inference() for value in vae.first_stage_model.state_dict().values())


def check_restore_through_a_controlnet(pack):
    """Gradients pass through a ControlNet too, and its weights are as before."""
    model, vae, control = pack.tiny.model("sd15"), cosine_vae(pack, 4), pack.tiny.control_net("sd15")
    plain, image = pack.tiny.conditioning("sd15"), photo()
    hint = photo(seed=3, height=8 * HEIGHT // BLOCK, width=8 * WIDTH // BLOCK)
    prompt = nodes.ControlNetApplyAdvanced().apply_controlnet(plain, plain, control, hint, 0.5, 0.0, 1.0)[0]
    operator = damages(pack)["small"]
    (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=2.0, seed=1)
    before = {name: value.clone() for name, value in control.control_model.state_dict().items()}
    for node, settings in (
        ("RestoreDDS", {}),
        ("RestoreDDS", {"latent_method": "decoder gradient"}),
        ("RestoreREDDiff", {}),
        ("RestoreGuided", {}),
    ):
        sampler = sampler_of(pack, node, operator, damaged, vae, **settings)
        with_it, without = (sample(model, each, sampler, steps=2) for each in (prompt, plain))
        assert bool(torch.isfinite(with_it).all()) and not torch.equal(with_it, without), (node, settings)
    now = control.control_model.state_dict()
    assert all(torch.equal(now[name], value) and now[name].is_inference() for name, value in before.items())


def check_restore_masks_of_each_picture(pack):
    """Two pictures with a hole of their own each are restored as they are alone, by every sampler."""
    model, prompt, vae = pack.tiny.model("sd15"), pack.tiny.conditioning("sd15"), cosine_vae(pack, 4)
    image, boxes = photo(2), ((2, 3, 8, 9), (0, 0, 28, 40))
    noise = torch.randn(2, 4, *CELLS, generator=torch.Generator().manual_seed(9))

    def drawn(node, rows, seed):
        chosen = slice(*rows)
        (operator,) = pack.call("DamageMask", mask=hole(*boxes[chosen]), grow=0)
        (damaged,) = pack.call("ApplyDamage", image=image[chosen], operator=operator, noise=0.0, seed=1)
        sampler = sampler_of(pack, node, operator, damaged, vae)
        count = rows[1] - rows[0]
        return sample(model, prompt, sampler, count, steps=4, seed=seed, noise=noise[chosen])

    for node in SAMPLERS:
        both = drawn(node, (0, 2), 6)
        alone = torch.cat([drawn(node, (0, 1), 6), drawn(node, (1, 2), 7)])
        assert relative(both, alone) < 1e-3, (node, relative(both, alone))
    (operator,) = pack.call("DamageMask", mask=hole(*boxes), grow=0)
    chi2, _, text = pack.call("RestoreReport", image=1 - image, operator=operator, damaged=image, noise=NOISE)
    singles = []
    for row in (0, 1):
        (single,) = pack.call("DamageMask", mask=hole(boxes[row]), grow=0)
        one = slice(row, row + 1)
        singles.append(
            pack.call("RestoreReport", image=1 - image[one], operator=single, damaged=image[one], noise=NOISE)[0]
        )
    assert abs(chi2 - sum(singles) / 2) < 1e-3 * chi2, (chi2, singles)
    assert f"{singles[0]:.3g}, {singles[1]:.3g}" in text
    three = pack.call("DamageMask", mask=hole(*boxes, boxes[0]), grow=0)[0]
    for call in (
        lambda: pack.call("ApplyDamage", image=image, operator=three, noise=0.0, seed=0),
        lambda: pack.call("MeasureNoise", image=image, operator=three),
        lambda: sample(model, prompt, sampler_of(pack, "RestoreDDS", three, image, vae), 2),
    ):
        refuses(call, "mask must hold 1 or 2", "got 3")
    (two,) = pack.call("DamageMask", mask=hole(*boxes), grow=0)
    refuses(lambda: pack.call("DamageCombine", first=two, second=three), "masks must be equally many", "2, 3")
    (frames,) = pack.call("DamageFrames", pattern="dropped", every=2, operator=three)
    refuses(
        lambda: pack.call("ApplyDamage", image=image, operator=frames, noise=0.0, seed=0), "mask must hold 1 or 2 pict"
    )


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


def _vae_around(pack, network):
    vae = cosine_vae.__wrapped__(pack, 4)
    with torch.inference_mode():
        vae.first_stage_model = network.to(vae.vae_dtype).eval()
        cpu = torch.device("cpu")
        vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, cpu, cpu)
    return vae


def check_restore_costs_what_its_help_says(pack):
    """Model calls, decodes and encodes of a run: those of the start and those of each step."""
    counter, prompt = Counter(pack.tiny.model("sd15")), pack.tiny.conditioning("sd15")
    operator, image = damages(pack)["small"], photo()
    (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=2.0, seed=1)
    for node, changes, start, step in (
        ("RestoreDDS", {}, (2, 1), (2, 3)),
        ("RestoreDDS", {"inner_steps": 2}, (2, 1), (3, 4)),
        ("RestoreDDS", {"latent_method": "decode, correct, encode"}, (2, 1), (3, 6)),
        ("RestoreREDDiff", {}, (2, 2), (1, 2)),
        ("RestoreGuided", {}, (2, 1), (1, 1)),
        ("RestoreGuided", {"gluing": 0.0}, (2, 1), (1, 0)),
    ):
        for steps in (2, 5):
            with torch.inference_mode():
                network = Counting(4)
            vae = _vae_around(pack, network)
            counter.calls = 0
            sample(counter.model, prompt, sampler_of(pack, node, operator, damaged, vae, **changes), steps=steps)
            wanted = {name: first + steps * each for name, first, each in zip(("decode", "encode"), start, step)}
            assert network.counts == wanted and counter.calls == steps, (node, changes, network.counts, wanted)
    for steps in (2, 5):
        with torch.inference_mode():
            network = Counting(4)
        sampler = sampler_of(
            pack, "RestoreDDS", operator, damaged, _vae_around(pack, network), latent_method="decoder gradient"
        )
        sample(counter.model, prompt, sampler, steps=steps)
        assert network.counts["encode"] == 1 and network.counts["decode"] <= 2 + 6 * steps, network.counts


def check_restore_with_a_half_precision_vae(pack):
    """The result is that of a float32 VAE within the rounding of the other."""
    model, prompt = pack.tiny.model("sd15"), pack.tiny.conditioning("sd15")
    image = photo(2)
    for name in ("mask", "small", "motion", "jpeg"):
        operator = damages(pack)[name]
        (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=2.0, seed=1)
        drawn = {}
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            vae = cosine_vae.__wrapped__(pack, 4)
            vae.vae_dtype = dtype
            with torch.inference_mode():
                vae.first_stage_model.to(dtype)
            drawn[dtype] = sample(model, prompt, sampler_of(pack, "RestoreDDS", operator, damaged, vae), 2, steps=4)
        for dtype, limit in ((torch.float16, 0.06), (torch.bfloat16, 0.25)):
            error = relative(drawn[dtype], drawn[torch.float32])
            assert drawn[dtype].dtype == torch.float32 and error < limit, (name, dtype, error)


def check_restore_ignores_a_photo_that_is_not_trusted(pack):
    """At trust 0 the photo changes nothing, not even one that a projection would put in."""
    model, prompt, vae = pack.tiny.model("sd15"), pack.tiny.conditioning("sd15"), cosine_vae(pack, 4)
    for name in ("small", "jpeg"):
        operator = damages(pack)[name]
        for method in ("encoder adjoint", "decode, correct, encode"):
            drawn = []
            for image in (photo(), 1.0 - photo()):
                (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=0.0, seed=1)
                settings = {"trust": 0.0, "latent_method": method}
                drawn.append(sample(model, prompt, sampler_of(pack, "RestoreDDS", operator, damaged, vae, **settings)))
            assert relative(*drawn) < 1e-5, (name, method)


def check_restore_previews_and_interrupts_of_every_sampler(pack):
    image, prompt, vae = photo(), pack.tiny.conditioning("sd15"), cosine_vae(pack, 4)
    operator = damages(pack)["mask"]
    (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=2.0, seed=1)
    for node in SAMPLERS:
        model = pack.tiny.model("sd15")
        sampler = sampler_of(pack, node, operator, damaged, vae)
        before, counter = snapshot(model), Counter(model, interrupt_after=2)
        with no_interrupt():
            try:
                sample(counter.model, prompt, sampler, steps=5)
            except BaseException as error:
                assert "Interrupt" in type(error).__name__, (node, error)
            else:
                raise AssertionError(f"{node} was not interrupted")
        assert counter.calls == 2, node
        same_snapshot(model, before)
        assert all(value.is_inference() for value in vae.first_stage_model.state_dict().values()), node
        seen = []
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(prompt, prompt)
        with torch.inference_mode():
            guider.sample(
                torch.ones(1, 4, *CELLS),
                torch.zeros(1, 4, *CELLS),
                sampler,
                sigmas_of(model, 3),
                callback=lambda i, x0, x, total: seen.append((i, total, tuple(x0.shape), x.requires_grad)),  # noqa: B023
                disable_pbar=True,
                seed=0,
            )
        assert seen == [(i, 3, (1, 4, *CELLS), False) for i in range(3)], (node, seen)


def check_restore_refuses_models_and_autoencoders_that_do_not_fit(pack):
    image = photo()
    operator = damages(pack)["small"]
    (damaged,) = pack.call("ApplyDamage", image=image, operator=operator, noise=2.0, seed=1)
    prompt, vae = pack.tiny.conditioning("sd15"), cosine_vae(pack, 4)
    # One that the host gives a masked picture has five channels more to take it.
    config, make = pack.tiny._build("sd15")
    config.unet_config["in_channels"] = 9
    config.manual_cast_dtype = None
    with torch.inference_mode():
        made = make()
        made.set_inpaint()
        pack.tiny._fill(made.diffusion_model, 0)
        cpu = torch.device("cpu")
        inpainting = comfy.model_patcher.ModelPatcher(made.eval(), load_device=cpu, offload_device=cpu)
    for node in SAMPLERS:
        sampler = sampler_of(pack, node, operator, damaged, vae)
        refuses(lambda sampler=sampler: sample(inpainting, prompt, sampler), "got an inpainting model", "DamageMask")
        other = sampler_of(pack, node, operator, damaged, cosine_vae(pack, 16))
        refuses(
            lambda other=other: sample(pack.tiny.model("sd15"), prompt, other),
            "vae must decode the model's latents of 4 channels",
        )
    loud = pack.tiny.model("sd3")
    sampling = loud.get_model_object("model_sampling")
    if hasattr(sampling, "set_noise_scale"):  # hosts from 0.33 on
        sampling.set_noise_scale(8.0)
        sampler = sampler_of(pack, "RestoreDDS", operator, damaged, cosine_vae(pack, 16))
        refuses(lambda: sample(loud, pack.tiny.conditioning("sd3"), sampler, channels=16), "got a noise scale of 8")
