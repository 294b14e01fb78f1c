"""Restoration of two photographs at their own size by tiny random models.

This shows mechanics and no more: a model with random weights knows nothing of pictures, so that what is asked is that
every damage and every node runs at such a size, and that the result explains the damaged photograph far better than
what the same model makes of the same seed without it.
"""

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import nodes
import torch
from helpers import refuses, same_snapshot, snapshot
from photographs import BLOCK, NAMES, cosine_vae, photograph
from restore_settings import DDS

KINDS = {"sd15": 4, "sd3": 16}
# The eps model's prediction is worth nothing at high levels, and more of the way has to be below them.
STEPS = {"sd15": 5, "sd3": 2}
# Share of the residual without the photo that may be left; a gradient through a model of nonsense does less.
LEFT, LEFT_BY_GRADIENTS = 0.8, 0.95
NOISE = 4.0
RED = {"prior": 0.05, "step": 0.1, "weight": "linear", "schedule": "constant", "sigma_max": 10.0}
GUIDED = {
    "measurement_weight": 0.3,
    "gluing": 0.1,
    "inner_steps": 1,
    "curvature": 0.0,
    "start_from_photo": True,
    # The bound leaves a gradient through a model of nonsense no way to go in so few steps.
    "largest_step": 0.0,
}
UNGUIDED = {**GUIDED, "measurement_weight": 0.0, "gluing": 0.0, "start_from_photo": False}


def model_of(pack, kind):
    """A tiny random model that takes latents of this size in little time."""
    config, make = pack.tiny._build(kind)
    if kind == "sd15":
        # Attention on the coarser grid alone; on the finer one it would be nearly all of the time.
        config.unet_config.update(transformer_depth=[0, 1], transformer_depth_output=[0, 0, 1, 1])
    else:
        config.unet_config.update(pos_embed_max_size=32, num_patches=1024)
    return _loaded(pack, config, make)


def _loaded(pack, config, make):
    config.manual_cast_dtype = None
    with torch.inference_mode():
        made = make()
        pack.tiny._fill(made.diffusion_model, 0)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(made.eval(), load_device=cpu, offload_device=cpu)


def cut(image):
    """The photograph without the rows and columns that make no whole cell of a latent, as the host's VAEEncode cuts."""
    height, width = (side - side % BLOCK for side in image.shape[1:3])
    top, left = ((side - kept) // 2 for side, kept in zip(image.shape[1:3], (height, width)))
    return image[:, top : top + height, left : left + width]


def damages(pack, height, width):
    """Every damage of a picture of a size, by name."""
    call = pack.call
    blur = {"radius": 2.5, "length": 11.0, "angle": 20.0, "edges": "reflect"}
    ring = torch.zeros(1, 7, 9, 3)
    ring[:, 1:6, 2:7] = 1.0
    ring[:, 3, 4] = 0.0
    missing = torch.zeros(1, height, width)
    missing[:, height // 3 : height // 2, width // 4 : width // 2] = 1.0
    gaussian = call("DamageBlur", kind="gaussian", **blur)[0]
    jpeg = call("DamageJPEG", file="(as set below)", quality=10, half_colour=True)[0]
    half = call("DamageLowResolution", scale=2.0, filter="box")[0]
    return {
        "mask": call("DamageMask", mask=missing, grow=3)[0],
        "small": call("DamageLowResolution", scale=4.0, filter="bicubic")[0],
        "smaller": call("DamageLowResolution", scale=2.6, filter="lanczos")[0],
        "gaussian": gaussian,
        "motion": call("DamageBlur", kind="motion", **blur)[0],
        "kernel": call("DamageBlur", kind="kernel", kernel=ring, **{**blur, "edges": "circular"})[0],
        "grey": call("DamageBlackWhite", weights="Rec.601")[0],
        "noise": call("DamageNoise")[0],
        "jpeg": jpeg,
        "all": call("DamageCombine", first=gaussian, second=half, third=jpeg)[0],
    }


def damaged_by(pack, image, operator, name):
    added = 0.0 if name in ("jpeg", "all") else NOISE
    return pack.call("ApplyDamage", image=image, operator=operator, noise=added, seed=1)[0]


def run(pack, model, kind, sampler, latent):
    prompt, steps = pack.tiny.conditioning(kind), STEPS[kind]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt, prompt)
    guider.set_cfg(1.0)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=4)


def restored_by(pack, model, kind, vae, image, node, operator, damaged, **settings):
    """The picture that a restore sampler makes at the size of an image."""
    (sampler,) = pack.call(node, operator=operator, damaged=damaged, noise=NOISE, vae=vae, **settings)
    cells = (side // BLOCK for side in image.shape[1:3])
    latent = torch.zeros(image.shape[0], KINDS[kind], *cells)
    drawn = run(pack, model, kind, sampler, latent)
    with torch.inference_mode():
        picture = nodes.VAEDecode().decode(vae, {"samples": drawn})[0]
    assert picture.shape == image.shape and bool(torch.isfinite(picture).all())
    return picture


def chi2(pack, image, operator, damaged):
    return pack.call("RestoreReport", image=image, operator=operator, damaged=damaged, noise=NOISE)[0]


def _every_damage(pack, kind, name):
    image = cut(photograph(name))
    model, vae = model_of(pack, kind), cosine_vae(pack, KINDS[kind])
    known = damages(pack, *image.shape[1:3])
    before = snapshot(model)
    nothing = damaged_by(pack, image, known["noise"], "noise")
    free = restored_by(pack, model, kind, vae, image, "RestoreDDS", known["noise"], nothing, **{**DDS, "trust": 0.0})
    left = {}
    for what, operator in known.items():
        damaged = damaged_by(pack, image, operator, what)
        (level,) = pack.call("MeasureNoise", image=damaged, operator=operator)
        assert 1.27 < level < 60, (what, level)
        restored = restored_by(pack, model, kind, vae, image, "RestoreDDS", operator, damaged, **DDS)
        mine, theirs = (chi2(pack, picture, operator, damaged) for picture in (restored, free))
        left[what] = mine / theirs
        inputs = {"operator": operator, "damaged": damaged, "noise": NOISE}
        (snapped,) = pack.call("SnapToMeasurement", image=restored, **inputs)
        nearer = chi2(pack, snapped, operator, damaged)
        assert snapped.shape == image.shape and nearer < mine, (kind, name, what, nearer, mine)
    assert max(left.values()) < LEFT, (kind, name, left)
    same_snapshot(model, before)


def check_photographs_astronaut_sd15(pack):
    _every_damage(pack, "sd15", NAMES[0])


def check_photographs_astronaut_sd3(pack):
    _every_damage(pack, "sd3", NAMES[0])


def check_photographs_chelsea_sd15(pack):
    _every_damage(pack, "sd15", NAMES[1])


def check_photographs_chelsea_sd3(pack):
    _every_damage(pack, "sd3", NAMES[1])


def check_photographs_by_every_sampler(pack):
    """RED-diff, the guided sampler, and the other two ways to the latent."""
    for kind, name in (("sd15", NAMES[0]), ("sd3", NAMES[1])):
        image = cut(photograph(name))
        model, vae = model_of(pack, kind), cosine_vae(pack, KINDS[kind])
        operator = damages(pack, *image.shape[1:3])["small"]
        damaged = damaged_by(pack, image, operator, "small")
        untrusted = ("RestoreDDS", {**DDS, "trust": 0.0})
        ways = {
            "RED-diff": (("RestoreREDDiff", RED), untrusted),
            "decode, correct, encode": (("RestoreDDS", {**DDS, "latent_method": "decode, correct, encode"}), untrusted),
            "decoder gradient": (("RestoreDDS", {**DDS, "latent_method": "decoder gradient"}), untrusted),
            "guided": (("RestoreGuided", GUIDED), ("RestoreGuided", UNGUIDED)),
        }
        left = {}
        for way, runs in ways.items():
            mine, theirs = (
                chi2(
                    pack,
                    restored_by(pack, model, kind, vae, image, node, operator, damaged, **settings),
                    operator,
                    damaged,
                )
                for node, settings in runs
            )
            left[way] = mine / theirs
        assert left.pop("guided") < LEFT_BY_GRADIENTS and max(left.values()) < LEFT, (kind, name, left)


def check_photographs_as_a_clip(pack):
    """Two frames, half of each dropped pair missing, together and smoothed."""
    for kind in KINDS:
        image = cut(photograph(NAMES[1]))
        clip = torch.cat([image, image.roll(1, dims=2)])
        model, vae = model_of(pack, kind), cosine_vae(pack, KINDS[kind])
        small = pack.call("DamageLowResolution", scale=2.0, filter="box")[0]
        left = {}
        for pattern in ("dropped", "averaged", "interlaced"):
            (operator,) = pack.call("DamageFrames", pattern=pattern, every=2, operator=small)
            damaged = damaged_by(pack, clip, operator, pattern)
            settings = {**DDS, "temporal_smoothing": 1.0, "share_noise": True}
            free, restored = (
                restored_by(pack, model, kind, vae, clip, "RestoreDDS", operator, damaged, **{**settings, "trust": t})
                for t in (0.0, 1.0)
            )
            mine, theirs = (chi2(pack, picture, operator, damaged) for picture in (restored, free))
            left[pattern] = mine / theirs
        assert max(left.values()) < LEFT, (kind, left)


def check_photographs_of_odd_size_need_whole_cells(pack):
    """300 x 451 is no whole number of cells: the sentence says what size is, and what to do."""
    image = photograph(NAMES[1])
    assert image.shape[1:3] == (300, 451)
    model, vae = model_of(pack, "sd15"), cosine_vae(pack, 4)
    (operator,) = pack.call("DamageNoise")
    refuses(
        lambda: restored_by(pack, model, "sd15", vae, image, "RestoreDDS", operator, image, **DDS),
        "damaged image must be 448 x 296 pixels",
        "got 451 x 300",
        "crop",
    )


def check_photographs_of_odd_size_by_a_model_of_pictures(pack):
    """A model that samples pixels takes 300 x 451 as it is: no cell, no VAE."""
    image = photograph(NAMES[1])
    # At this size attention would be all of the time.
    shape = {"transformer_depth": [0, 0], "transformer_depth_output": [0] * 4, "transformer_depth_middle": -1}
    config = comfy.supported_models.SD15({**pack.tiny._unet_config(None), "in_channels": 3, "out_channels": 3, **shape})
    pack.tiny._own_heads(config)
    config.latent_format = comfy.latent_formats.LatentFormat()
    config.latent_format.latent_channels = 3
    eps = comfy.model_base.ModelType.EPS
    model = _loaded(pack, config, lambda: comfy.model_base.BaseModel(config, model_type=eps))
    known = damages(pack, *image.shape[1:3])

    def drawn(what, damaged, trust):
        settings = {"operator": known[what], "damaged": damaged, "noise": NOISE, **DDS, "trust": trust}
        (sampler,) = pack.call("RestoreDDS", **settings)
        state = run(pack, model, "sd15", sampler, torch.zeros(1, 3, *image.shape[1:3]))
        return (state.movedim(1, -1) + 1) / 2

    free = drawn("noise", image, 0.0)
    for what in ("smaller", "motion", "jpeg"):
        damaged = damaged_by(pack, image, known[what], what)
        mine, theirs = (chi2(pack, picture, known[what], damaged) for picture in (drawn(what, damaged, 1.0), free))
        assert mine < 0.1 * theirs, (what, mine, theirs)
