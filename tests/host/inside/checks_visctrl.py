"""VisCtrl in the host: references that are read, crops that are put back, and what is refused."""

import functools

import nodes
import tiny_dits
import torch
from helpers import refuses, relative, same_snapshot, snapshot

KINDS = ("sd15", "sdxl", "sd3", "flux", "wan")
REFERENCE = "a big yellow cross on the right of a cyan background"
TARGET = "a big purple square on the right of a cyan background"


def _run(pack, model, reference, target, prompts, **changes):
    inputs = {
        "model": model,
        "reference_prompt": prompts[0],
        "target_prompt": prompts[1],
        "reference": reference,
        "target": target,
        "passes": 1,
        "steps": 3,
        "start_step": 0,
        "cfg": 1.0,
        "later_steps": 2,
        "later_start_step": 0,
        "later_cfg": 1.0,
        "start_layer": 0,
        "method": "ddim",
        "scheduler": "simple",
        "alpha": 0.5,
        "seed": 0,
        "crop": "none",
        **changes,
    }
    return pack.call("VisCtrl", **inputs)[0]["samples"]


def _latent(kind, seed=0, batch=2, size=(4, 6), frames=2):
    """A latent that is not square; clips have frames."""
    latent = tiny_dits.latent(kind, batch=batch, size=size, frames=frames)
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(50 + seed))
    return {"samples": noise}


def _plain(pack, model, target, prompt, **changes):
    """The reconstruction by the same method, which VisCtrl is where nothing is read."""
    inputs = {"steps": 3, "scheduler": "simple", "method": "ddim", "cfg": 1.0, "strength": 1.0, **changes}
    linked = pack.call("Invert", model=model, source=prompt, latent=target, **inputs)[0]
    return pack.call("Resample", model=model, inversion=linked, cfg=inputs["cfg"])[0]["samples"]


def check_visctrl_of_a_reference_that_is_the_target(pack):
    """It is as good as the reconstruction, on every kind of network, for batches, clips, guided; the MODEL stays."""
    for kind in KINDS:
        model, target = tiny_dits.model(kind), _latent(kind)
        before = snapshot(model)
        source = tiny_dits.conditioning(kind)
        plain = _plain(pack, model, target, source)
        lost = relative(plain, target["samples"])
        same = _run(pack, model, target, target, (source, source))
        assert same.shape == target["samples"].shape and relative(same, plain) < max(1e-5, lost), (
            kind,
            relative(same, plain),
            lost,
        )
        # Step for step the rows are equal, so that the first evaluation reads what it has itself.
        other = _run(pack, model, _latent(kind, 3), target, (source, source))
        assert relative(other, plain) > 1e-4 and relative(other, plain) > relative(same, plain), kind
        negative = tiny_dits.conditioning(kind, seed=3)
        guided = _run(pack, model, _latent(kind, 3), target, (source, source), cfg=2.0, negative=negative)
        assert relative(guided, other) > 1e-4, kind
        same_snapshot(model, before)


def check_visctrl_knobs(pack):
    """Passes, windows and layers act; a queue repeats bit for bit; a picture of a batch is what it is alone."""
    for kind in ("sd15", "flux"):
        model, target, reference = tiny_dits.model(kind), _latent(kind), _latent(kind, 3, batch=1)
        source = tiny_dits.conditioning(kind)
        prompts = (source, source)
        seen = [_run(pack, model, reference, target, prompts)]
        assert torch.equal(seen[0], _run(pack, model, reference, target, prompts)), kind
        alone = _run(pack, model, reference, {"samples": target["samples"][1:]}, prompts)
        assert relative(alone, seen[0][1:]) < 1e-4, kind
        last = {"start_step": 2}
        for change in ({"passes": 2}, {"passes": 3}, last, {"start_layer": 2}, {"layers": "0.0-0.4"}, {"steps": 4}):
            found = _run(pack, model, reference, target, prompts, **change)
            assert all(relative(found, other) > 1e-6 for other in seen), (kind, change)
            seen.append(found)
        # One reference leaves nothing to draw and to weight.
        for change in ({"alpha": 0.1}, {"seed": 9}):
            assert torch.equal(
                _run(pack, model, reference, target, prompts, passes=2, **change),
                _run(pack, model, reference, target, prompts, passes=2),
            ), (kind, change)


def check_visctrl_draws_among_references(pack):
    """Each picture reads one of several references, the same as if that one alone were connected."""
    model, target = tiny_dits.model("sd15"), _latent("sd15")
    source = tiny_dits.conditioning("sd15")
    prompts, several = (source, source), _latent("sd15", 3, batch=3)
    single = [_run(pack, model, {"samples": several["samples"][i : i + 1]}, target, prompts) for i in range(3)]
    draws = pack.module("inversion").drawn(3, 1, 4, [0, 1])[0]
    found = _run(pack, model, several, target, prompts, seed=4)
    for item, chosen in enumerate(draws):
        errors = [relative(found[item], each[item]) for each in single]
        assert errors[chosen] < 1e-4 and min(errors[:chosen] + errors[chosen + 1 :]) > 1e-4, (item, chosen, errors)
    two = [_run(pack, model, several, target, prompts, seed=4, passes=2, alpha=a) for a in (0.2, 0.5, 1.0)]
    assert relative(two[0], two[1]) > 1e-5 and relative(two[1], two[2]) > 1e-5
    # A picture serves all frames of a clip.
    clip, still = _latent("wan", frames=2), _latent("wan", 3, batch=1, frames=1)
    source = tiny_dits.conditioning("wan")
    moving = _run(pack, tiny_dits.model("wan"), still, clip, (source, source))
    assert moving.shape == clip["samples"].shape and bool(moving.isfinite().all())


def check_visctrl_masks(pack):
    """Outside the mask all stays bit for bit; the reference's mask says what is read; a mask for each picture."""
    for kind in ("sd15", "flux", "wan"):
        model, reference = tiny_dits.model(kind), _latent(kind, 3, size=(8, 12))
        target = _latent(kind, size=(8, 12))
        source = tiny_dits.conditioning(kind)
        prompts = (source, source)
        samples = target["samples"]
        mask = torch.zeros(2, *samples.shape[-2:])
        mask[0, 1:4, 2:7] = mask[1, 5:7, 1:4] = 1.0
        other = torch.zeros(2, *samples.shape[-2:])
        other[:, 3:6, 3:8] = 1.0
        whole = _run(pack, model, reference, target, prompts)
        inside = (mask > 0)[:, None] if samples.ndim == 4 else (mask > 0)[:, None, None]
        inside = inside.expand_as(samples)
        for change in ({}, {"reference_mask": other}):
            for crop in ("none", "latent") if change else ("none",):
                found = _run(pack, model, reference, target, prompts, mask=mask, crop=crop, **change)
                assert torch.equal(found[~inside], samples[~inside]), (kind, change, crop)
                assert relative(found[inside], samples[inside]) > 1e-4, (kind, change, crop)
        read = _run(pack, model, reference, target, prompts, reference_mask=other)
        assert relative(read, whole) > 1e-5, kind
        everything = torch.ones(1, 8, 8)
        assert relative(_run(pack, model, reference, target, prompts, reference_mask=everything), whole) < 1e-5, kind


@functools.cache
def _demo(pack):
    """The eps demo model with a reference, a target and their masks."""
    model, clip, vae = pack.call("LoadShapesModel", kind="eps", lcm=False)
    world = pack.module("demo.world")
    found = []
    for caption in (REFERENCE, TARGET):
        pixels, mask = world.render([world.parse(caption)], 3)
        with torch.inference_mode():
            image = torch.from_numpy(pixels) / 255
            found.append(({"samples": vae.encode(image)}, torch.from_numpy(mask), image))
    prompts = [nodes.CLIPTextEncode().encode(clip, text)[0] for text in (REFERENCE, TARGET)]
    return model, clip, vae, found, prompts


def check_visctrl_crops_in_pixels(pack):
    """Squares around the masks at another scale: outside the mask bit for bit, inside something else."""
    model, _, vae, ((reference, seen, _), (target, mask, _)), prompts = _demo(pack)
    mask = torch.nn.functional.max_pool2d(mask[:, None], 9, 1, 4)[:, 0]
    samples = target["samples"]
    grid = pack.module("nodes.host.masks").on_latent_grid(mask, samples.shape).expand_as(samples)
    for white in (True, False):
        inputs = {"mask": mask, "reference_mask": seen, "crop": "pixels", "vae": vae, "crop_size": 64, "steps": 2}
        found = _run(pack, model, reference, target, prompts, white_background=white, **inputs)
        assert torch.equal(found[grid == 0], samples[grid == 0]) and found.dtype == samples.dtype, white
        assert relative(found[grid == 1], samples[grid == 1]) > 1e-2, white


def check_visctrl_carries_the_subject_over(pack):
    """On the demo model the target becomes what the reference shows, pass by pass, and without reading it does not."""
    model, _, vae, ((reference, _, yellow), (target, mask, _)), prompts = _demo(pack)
    inside = mask[0] > 0.95
    mask = torch.nn.functional.max_pool2d(mask[:, None], 13, 1, 6)[:, 0]
    inputs = {"steps": 8, "later_steps": 5, "scheduler": "normal", "method": "midpoint", "mask": mask}
    far = {}
    for name, change in (("unread", {"start_step": 7, "layers": "0.0-0.0"}), ("1", {}), ("3", {"passes": 3})):
        found = _run(pack, model, reference, target, (prompts[0], prompts[0]), **{**inputs, **change})
        with torch.inference_mode():
            far[name] = float((vae.decode(found)[0] - yellow[0])[inside].square().mean())
    print("distance to the reference:", {name: round(each, 4) for name, each in far.items()})  # noqa: T201
    assert far["3"] < 0.7 * far["1"] and far["1"] < 0.9 * far["unread"], far


def check_visctrl_refuses(pack):
    """Unequal sizes, empty or missing masks, steps in which nothing is read, no negative, layers that are not there."""
    model, target = tiny_dits.model("sd15"), _latent("sd15")
    source = tiny_dits.conditioning("sd15")

    def attempt(reference=target, **changes):
        return lambda: _run(pack, model, reference, target, (source, source), **changes)

    refuses(attempt(_latent("sd15", size=(6, 6))), "reference must have the target's size")
    refuses(attempt(start_step=3), "start_step must be below the 3 steps")
    refuses(attempt(passes=2, later_start_step=2), "later_start_step must be below")
    refuses(attempt(cfg=3.0), "cfg must be 1 without a negative")
    refuses(attempt(start_layer=99), "layers must match")
    mask = torch.ones(1, 4, 6)
    refuses(attempt(crop="latent"), "reference_mask must be connected")
    refuses(attempt(crop="latent", reference_mask=mask), "mask must be connected")
    refuses(attempt(crop="latent", reference_mask=mask, mask=mask * 0), "mask must show something")
    small = _latent("sd15", size=(2, 6))
    refuses(attempt(small, crop="latent", reference_mask=mask, mask=mask), "set crop to")
    refuses(attempt(crop="pixels", mask=mask), "vae must be connected")
    node = pack.node("VisCtrl")
    assert isinstance(node.validate_inputs(steps=3, start_step=3), str)
    assert isinstance(node.validate_inputs(layers="what"), str)
