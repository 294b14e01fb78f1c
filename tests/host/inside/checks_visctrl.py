"""VisCtrl in the host: references that are read, crops that are put back, and what is refused."""

import functools

import tiny_dits
import torch
from helpers import refuses_each, relative, same_snapshot, snapshot
from running import decode, encode, play, rendered, shapes

KINDS = ("sd15", "sdxl", "sd3", "flux", "wan")
REFERENCE = "a big yellow cross on the right of a cyan background"
TARGET = "a big purple square on the right of a cyan background"
# One pass of three steps that reads from the first on.
SHORT = dict(passes=1, steps=3, start_step=0, later_steps=2, later_start_step=0, later_cfg=1.0, start_layer=0)


def _run(pack, model, reference, target, prompt, **changes):
    inputs = {"reference_prompt": prompt, "target_prompt": prompt, "reference": reference, "target": target}
    return pack.call("VisCtrl", model=model, **{**inputs, **SHORT, "scheduler": "simple", **changes})[0]["samples"]


def _latent(kind, seed=0, batch=2, size=(4, 6), frames=2):
    """A latent that is not square; clips have frames."""
    shape = tiny_dits.latent(kind, batch=batch, size=size, frames=frames)["samples"].shape
    return {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(50 + seed))}


def check_visctrl_of_a_reference_that_is_the_target(pack):
    """It is as good as the reconstruction, on every kind of network, for batches, clips, guided; the MODEL stays."""
    for kind in KINDS:
        model, target, source = tiny_dits.model(kind), _latent(kind), tiny_dits.conditioning(kind)
        before = snapshot(model)
        inversion = pack.call("Invert", model=model, source=source, latent=target, steps=3, method="ddim")[0]
        plain = play(pack, model, inversion)
        lost, same = relative(plain, target["samples"]), _run(pack, model, target, target, source)
        # Step for step the rows are equal, so that the first evaluation reads what it has itself.
        assert same.shape == plain.shape and relative(same, plain) < max(1e-5, lost), (kind, relative(same, plain))
        other = _run(pack, model, _latent(kind, 3), target, source)
        assert relative(other, plain) > 1e-4 and relative(other, plain) > relative(same, plain), kind
        negative = tiny_dits.conditioning(kind, seed=3)
        guided = _run(pack, model, _latent(kind, 3), target, source, cfg=2.0, negative=negative)
        assert relative(guided, other) > 1e-4, kind
        same_snapshot(model, before)


def check_visctrl_knobs(pack):
    """Passes, windows and layers act; a queue repeats bit for bit; a picture of a batch is what it is alone."""
    for kind in ("sd15", "flux"):
        model, target, reference = tiny_dits.model(kind), _latent(kind), _latent(kind, 3, batch=1)

        def of(target=target, model=model, reference=reference, kind=kind, **changes):
            return _run(pack, model, reference, target, tiny_dits.conditioning(kind), **changes)

        results = [of()]
        assert torch.equal(results[0], of()), kind
        alone = of({"samples": target["samples"][1:]})
        assert relative(alone, results[0][1:]) < 1e-4, kind
        last = {"start_step": 2}
        for change in ({"passes": 2}, {"passes": 3}, last, {"start_layer": 2}, {"layers": "0.0-0.4"}, {"steps": 4}):
            results.append(of(**change))
            assert all(relative(results[-1], other) > 1e-6 for other in results[:-1]), (kind, change)
        # One reference leaves nothing to draw and to weight.
        for change in ({"alpha": 0.1}, {"seed": 9}):
            assert torch.equal(of(passes=2, **change), results[1]), (kind, change)


def check_visctrl_draws_among_references(pack):
    """Each picture reads one of several references, the same as if that one alone were connected."""
    model, target, source = tiny_dits.model("sd15"), _latent("sd15"), tiny_dits.conditioning("sd15")
    several = _latent("sd15", 3, batch=3)
    single = [_run(pack, model, {"samples": several["samples"][i : i + 1]}, target, source) for i in range(3)]
    drawn = _run(pack, model, several, target, source, seed=4)
    for item, chosen in enumerate(pack.module("inversion").drawn(3, 1, 4, [0, 1])[0]):
        errors = [relative(drawn[item], each[item]) for each in single]
        assert errors[chosen] < 1e-4 and min(errors[:chosen] + errors[chosen + 1 :]) > 1e-4, (item, chosen, errors)
    low, half, full = (_run(pack, model, several, target, source, seed=4, passes=2, alpha=a) for a in (0.2, 0.5, 1.0))
    assert relative(low, half) > 1e-5 and relative(half, full) > 1e-5
    # A picture serves all frames of a clip.
    clip, still = _latent("wan"), _latent("wan", 3, batch=1, frames=1)
    moving = _run(pack, tiny_dits.model("wan"), still, clip, tiny_dits.conditioning("wan"))
    assert moving.shape == clip["samples"].shape and bool(moving.isfinite().all())


def check_visctrl_masks(pack):
    """Outside the mask all stays bit for bit; the reference's mask says what is read; a mask for each picture."""
    for kind in ("sd15", "flux", "wan"):
        model, reference, target = tiny_dits.model(kind), _latent(kind, 3, size=(8, 12)), _latent(kind, size=(8, 12))
        source, samples = tiny_dits.conditioning(kind), target["samples"]
        mask, other = torch.zeros(2, 2, *samples.shape[-2:])
        mask[0, 1:4, 2:7] = mask[1, 5:7, 1:4] = other[:, 3:6, 3:8] = 1.0
        inside = (mask > 0).reshape(2, *[1] * (samples.ndim - 3), *samples.shape[-2:]).expand_as(samples)
        for change in ({}, {"reference_mask": other}, {"reference_mask": other, "crop": "latent"}):
            edited = _run(pack, model, reference, target, source, mask=mask, **change)
            assert torch.equal(edited[~inside], samples[~inside]), (kind, change)
            assert relative(edited[inside], samples[inside]) > 1e-4, (kind, change)
        whole, part, all_of_it = (
            _run(pack, model, reference, target, source, reference_mask=each)
            for each in (None, other, torch.ones(1, 8, 8))
        )
        assert relative(part, whole) > 1e-5 and relative(all_of_it, whole) < 1e-5, kind


@functools.cache
def _demo(pack):
    """The eps demo model, its VAE, and latent, picture and mask of a reference and of a target; their prompts."""
    model, clip, vae = shapes(pack)
    pictures = [rendered(pack, vae, [pack.module("demo.world").parse(each)], 3) for each in (REFERENCE, TARGET)]
    return model, vae, pictures, encode(clip, REFERENCE)


def check_visctrl_on_the_demo_model(pack):
    """The target becomes what the reference shows, pass by pass, and without reading it does not."""
    # Squares around the masks at another scale: outside the mask bit for bit, inside something else.
    model, vae, ((reference, yellow, shown), (target, _, mask)), prompt = _demo(pack)
    inside, far = mask[0] > 0.95, {}
    grown = torch.nn.functional.max_pool2d(mask[:, None], 13, 1, 6)[:, 0]
    inputs = {"steps": 8, "later_steps": 5, "scheduler": "normal", "method": "midpoint", "mask": grown}
    for name, change in (("unread", {"start_step": 7, "layers": "0.0-0.0"}), ("1", {}), ("3", {"passes": 3})):
        edited = _run(pack, model, reference, target, prompt, **{**inputs, **change})
        far[name] = float((decode(vae, edited)[0] - yellow[0])[inside].square().mean())
    assert far["3"] < 0.7 * far["1"] and far["1"] < 0.9 * far["unread"], far
    mask, samples = torch.nn.functional.max_pool2d(mask[:, None], 9, 1, 4)[:, 0], target["samples"]
    grid = pack.module("nodes.host.masks").on_latent_grid(mask, samples.shape).expand_as(samples)
    inputs = {"mask": mask, "reference_mask": shown, "crop": "pixels", "vae": vae, "crop_size": 64, "steps": 2}
    for white in (True, False):
        edited = _run(pack, model, reference, target, prompt, white_background=white, **inputs)
        assert torch.equal(edited[grid == 0], samples[grid == 0]) and edited.dtype == samples.dtype, white
        assert relative(edited[grid == 1], samples[grid == 1]) > 1e-2, white


def check_visctrl_refuses(pack):
    """Unequal sizes, empty or missing masks, steps in which nothing is read, no negative, layers that are not there."""
    model, target, mask = tiny_dits.model("sd15"), _latent("sd15"), torch.ones(1, 4, 6)
    crop = {"crop": "latent", "reference_mask": mask}
    refuses_each(
        lambda reference=target, **changes: _run(
            pack, model, reference, target, tiny_dits.conditioning("sd15"), **changes
        ),
        ({"reference": _latent("sd15", size=(6, 6))}, "reference must have the target's size"),
        ({"start_step": 3}, "start_step must be below the 3 steps"),
        ({"passes": 2, "later_start_step": 2}, "later_start_step must be below"),
        ({"cfg": 3.0}, "cfg must be 1 without a negative"),
        ({"start_layer": 99}, "layers must match"),
        ({"crop": "latent"}, "reference_mask must be connected"),
        (crop, "mask must be connected"),
        ({**crop, "mask": mask * 0}, "mask must show something"),
        ({**crop, "reference": _latent("sd15", size=(2, 6)), "mask": mask}, "set crop to"),
        ({"crop": "pixels", "mask": mask}, "vae must be connected"),
    )
    node = pack.node("VisCtrl")
    assert isinstance(node.validate_inputs(steps=3, start_step=3), str)
    assert isinstance(node.validate_inputs(layers="what"), str)
