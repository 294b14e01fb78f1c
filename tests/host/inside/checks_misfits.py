"""Conditionings and latents of another model: one sentence in place of the host's own errors, and no false alarm."""

import comfy.model_management
import tiny_dits
import torch
from attending import plan
from helpers import advanced, invert, refuses, same_snapshot, snapshot


def _resized(conditioning, text=0, pooled=0):
    """A conditioning whose text and pooled text are that much wider, or narrower."""
    ((embedding, extras),) = conditioning
    extras = dict(extras)
    if pooled:
        extras["pooled_output"] = torch.nn.functional.pad(extras["pooled_output"], (0, pooled))
    return [[torch.nn.functional.pad(embedding, (0, text)), extras]]


def _without_pooled(conditioning):
    return [
        [embedding, {key: extras[key] for key in extras if key != "pooled_output"}]
        for embedding, extras in conditioning
    ]


def check_pooled_text_that_is_missing(pack):
    """A prompt of Stable Diffusion 1.5 on SDXL: each node names the input, and the model stays as it was."""
    own, negative, foreign = (
        pack.tiny.conditioning(kind, seed) for kind, seed in (("sdxl", 0), ("sdxl", 1), ("sd15", 0))
    )
    model, _, latent, (linked, *_) = invert(pack, "sdxl")
    before = snapshot(model)
    said = ("must hold the pooled text that SDXL reads, got none", "the CLIP that belongs to this model")

    def refused(name, *path, **inputs):
        refuses(lambda: pack.call(*path, **inputs), f"{name} must", *said)

    climbing = {"latent": latent, "steps": 3, "scheduler": "simple", "strength": 1.0}
    refused("source", "Invert", model=model, source=foreign, method="midpoint", cfg=1.0, **climbing)
    guided = {"model": model, "source": own, "method": "midpoint", "cfg": 2.0, **climbing}
    refused("negative", "Invert", negative=foreign, **guided)
    playing = {"model": model, "inversion": linked}
    refused("positive", "Resample", positive=foreign, cfg=1.0, **playing)
    refused("negative", "Resample", positive=own, negative=foreign, cfg=2.0, **playing)
    edit = {"model": model, "latent": latent, "steps": 3, "scheduler": "simple", "seed": 0, "target_cfg": 2.0}
    for source, target, uncond, name in (
        (foreign, own, negative, "source"),
        (own, foreign, negative, "target"),
        (own, own, foreign, "negative"),
    ):
        sides = {"source": source, "target": target, "negative": uncond, "source_cfg": 1.0, **edit}
        refused(name, "InfEdit", strength=1.0, eta=1.0, **sides)
        refused(name, "FlowEdit", n_max=3, n_avg=1, n_min=0, **sides)
    refused("target", "Resample", positive=foreign, cfg=1.0, attention=plan(pack), **playing)
    same_snapshot(model, before)
    pack.call("Resample", positive=own, negative=negative, cfg=2.0, **playing)


def _invert(pack, kind, model, source):
    return pack.call(
        "Invert", model=model, source=source, latent=tiny_dits.latent(kind, size=(4, 6), frames=2), steps=2,
        scheduler="simple", method="euler", cfg=1.0, strength=1.0,
    )  # fmt: skip


def check_conditionings_of_another_width(pack):
    """Text and pooled text of another width, on every architecture that reads them.

    Flux is given a pooled text that is too short: the host cuts longer ones.
    """
    for kind in tiny_dits.KINDS:
        model, source = tiny_dits.model(kind), tiny_dits.conditioning(kind)
        name = type(model.model.model_config).__name__
        text, pooled = pack.tiny.CONTEXT, pack.tiny.POOLED
        said = f"source must hold text of {text} channels for {name}, got {text + 8} channels; encode"
        refuses(lambda m=model, k=kind, s=source: _invert(pack, k, m, _resized(s, text=8)), said)
        if source[0][1].get("pooled_output") is not None:
            said = f"source must hold pooled text of {pooled} channels for {name}, got {pooled - 4} channels; encode"
            refuses(lambda m=model, k=kind, s=source: _invert(pack, k, m, _resized(s, pooled=-4)), said)
        _invert(pack, kind, model, source)


def check_text_of_another_width_beside_a_controlnet(pack):
    """A ControlNet, which fails over the text before the UNet does, is not in the way of the sentence."""
    for kind in tiny_dits.UNETS:
        source, image = _resized(tiny_dits.conditioning(kind), text=8), torch.zeros(1, 32, 48, 3)
        apply = pack.host_nodes.ControlNetApplyAdvanced().apply_controlnet
        (source, _) = apply(source, source, pack.tiny.control_net(kind), image, 1.0, 0.0, 1.0)
        model = tiny_dits.model(kind)
        refuses(lambda k=kind, m=model, s=source: _invert(pack, k, m, s), "must hold text of 32 channels", "got 40")


def check_samplers_under_guiders_of_the_host(pack):
    """The pack's samplers say it too; a latent of other channels is named first."""
    model, source, latent, (linked, out, noise, sigmas) = invert(pack, "sdxl")
    other = _resized(source, text=8)
    (rf,) = pack.call("RFSolverSample", solver="midpoint")
    (own,) = pack.call("InversionSampler", inversion=linked, sampler_name="same as inversion")
    (stock,) = pack.call("InversionSampler", inversion=linked, sampler_name="euler")
    (beside,) = pack.call("RFSolverSample", solver="midpoint", attention=plan(pack), inversion=linked)
    for sampler in (rf, own, stock, beside):
        for sides in ((other, source), (source, other)):
            refuses(
                lambda sampler=sampler, sides=sides: advanced(
                    model, sides[0], sampler, sigmas, out, noise, sides[1], cfg=2.0
                ),
                f"{'positive' if sides[0] is other else 'negative'} must hold text of 32 channels for SDXL, got 40",
            )
    (read,) = pack.call(
        "RFSolverSample", solver="midpoint", attention=plan(pack), inversion=linked.with_conditioning(other, None)
    )
    refuses(lambda: advanced(model, source, read, sigmas, out, noise), "source must hold text of 32 channels for SDXL")
    wide = {"samples": torch.ones(1, 16, 8, 12)}
    refuses(
        lambda: advanced(model, source, rf, sigmas.flip(0), wide), "latent must have the 4 channels", "got 16; encode"
    )
    (guider,) = pack.call(
        "AttentionGuider", model=model, source=source, target=_without_pooled(source), attention=plan(pack), cfg=1.0,
        both=False,
    )  # fmt: skip
    drawn, samples = torch.zeros_like(latent["samples"]), latent["samples"]
    refuses(
        lambda: guider.sample(drawn, samples, rf, sigmas, disable_pbar=True, seed=0),
        "target must hold the pooled text that SDXL reads",
    )


def check_nothing_else_is_explained_away(pack):
    """What the network is given by an adapter counts as little as errors of other origin and the user's interrupt."""
    model, source, latent, _ = invert(pack, "sdxl")
    inputs = {"latent": latent, "steps": 3, "scheduler": "simple", "method": "euler", "cfg": 1.0, "strength": 1.0}

    def patched(model, wrapper):
        changed = model.clone()
        changed.set_model_unet_function_wrapper(wrapper)
        return changed

    def adapted(apply_model, args):
        text = args["c"]["c_crossattn"][..., : pack.tiny.CONTEXT]
        return apply_model(args["input"], args["timestep"], **{**args["c"], "c_crossattn": text})

    wide = _resized(source, text=8)
    (wanted,) = pack.call("Invert", model=model, source=source, **inputs)[1:2]
    (found,) = pack.call("Invert", model=patched(model, adapted), source=wide, **inputs)[1:2]
    assert torch.equal(found["samples"], wanted["samples"])
    plain = pack.tiny.model("sd15"), pack.tiny.conditioning("sd15")
    # A block that is given a picture of other channels says nothing of the prompt, nor does a layer of an adapter.
    flux, layer = tiny_dits.model("flux"), torch.nn.Linear(24, 8)
    cut = flux.clone()
    cut.set_model_patch_replace(
        lambda args, more: more["original_block"]({**args, "img": args["img"][..., :-1]}), "dit", "double_block", 1
    )
    for broken in (cut, patched(flux, lambda apply_model, args: layer(args["c"]["c_crossattn"]))):
        try:
            _invert(pack, "flux", broken, tiny_dits.conditioning("flux"))
        except RuntimeError:
            continue
        raise AssertionError("an error of the network or of an adapter was swallowed")
    for error, other, prompt in (
        (RuntimeError("size mismatch"), model, source),
        (KeyError("noise"), *plain),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), model, wide),
        (comfy.model_management.InterruptProcessingException(), model, wide),
    ):

        def failing(apply_model, args, error=error):
            raise error

        try:
            pack.call("Invert", model=patched(other, failing), source=prompt, **inputs)
        except BaseException as met:
            assert met is error, f"{error!r} became {met!r}"
        else:
            raise AssertionError(f"{error!r} was swallowed")
