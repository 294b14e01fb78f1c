"""Conditionings and latents of another model: one sentence in place of the host's own errors, and no false alarm."""

import comfy.model_management
import tiny_dits
import torch
from attending import inverted, plan
from helpers import around, refuses, same_snapshot, snapshot
from running import advanced, invert, play, resuming, sampled


def _resized(conditioning, text=0, pooled=0):
    """A conditioning whose text and pooled text are that much wider, or narrower."""
    ((embedding, extras),) = conditioning
    extras = dict(extras)
    if pooled:
        extras["pooled_output"] = torch.nn.functional.pad(extras["pooled_output"], (0, pooled))
    return [[torch.nn.functional.pad(embedding, (0, text)), extras]]


def check_pooled_text_that_is_missing(pack):
    """A prompt of Stable Diffusion 1.5 on SDXL: each node names the input, and the model stays as it was."""
    kinds = (("sdxl", 0), ("sdxl", 1), ("sd15", 0))
    own, negative, foreign = (pack.tiny.conditioning(kind, seed) for kind, seed in kinds)
    model, _, latent, (inversion, *_) = invert(pack, "sdxl")
    before = snapshot(model)
    climb, back = {"node": "Invert", "latent": latent}, {"node": "Resample", "inversion": inversion}
    pair = {"latent": latent, "source": own, "target": own, "negative": negative, "target_cfg": 2.0}
    for name, inputs in (
        ("source", {**climb, "source": foreign}),
        ("negative", {**climb, "source": own, "negative": foreign, "cfg": 2.0}),
        ("positive", {**back, "positive": foreign}),
        ("negative", {**back, "positive": own, "negative": foreign, "cfg": 2.0}),
        ("target", {**back, "positive": foreign, "attention": plan(pack)}),
        *((name, {"node": n, **pair, name: foreign}) for n in ("InfEdit", "FlowEdit") for name in list(pair)[1:4]),
    ):
        said = ("must hold the pooled text that SDXL reads, got none", "the CLIP that belongs to this model")
        call = lambda node, **inputs: pack.call(node, model=model, **inputs)  # noqa: E731
        refuses(lambda c=call, i=inputs: c(**i), f"{name} must", *said)
    same_snapshot(model, before)
    play(pack, model, inversion, positive=own, negative=negative, cfg=2.0)


def check_conditionings_of_another_width(pack):
    """Text and pooled text of another width, on every architecture that reads them."""
    # Flux is given a pooled text that is too short: the host cuts longer ones.
    for kind in tiny_dits.KINDS:
        model, source = tiny_dits.model(kind), tiny_dits.conditioning(kind)
        name, text, pooled = type(model.model.model_config).__name__, pack.tiny.CONTEXT, pack.tiny.POOLED
        wide = [("text", text, 8)]
        if source[0][1].get("pooled_output") is not None:
            wide.append(("pooled text", pooled, -4))
        for what, width, more in wide:
            said = f"source must hold {what} of {width} channels for {name}, got {width + more} channels; encode"
            other = _resized(source, **{what.split()[0]: more})
            refuses(lambda k=kind, m=model, s=other: inverted(pack, k, model=m, source=s), said)
        inverted(pack, kind, model=model)


def check_text_of_another_width_beside_a_controlnet(pack):
    """A ControlNet, which fails over the text before the UNet does, is not in the way of the sentence."""
    for kind in tiny_dits.UNETS:
        source, image = _resized(tiny_dits.conditioning(kind), text=8), torch.zeros(1, 32, 48, 3)
        apply = pack.host_nodes.ControlNetApplyAdvanced().apply_controlnet
        (source, _) = apply(source, source, pack.tiny.control_net(kind), image, 1.0, 0.0, 1.0)
        refuses(lambda k=kind, s=source: inverted(pack, k, source=s), "must hold text of 32 channels", "got 40")


def check_samplers_under_guiders_of_the_host(pack):
    """The pack's samplers say it too; a latent of other channels is named first."""
    model, source, latent, (inversion, out, noise, sigmas) = invert(pack, "sdxl")
    other, rules = _resized(source, text=8), {"attention": plan(pack)}
    beside = {**rules, "inversion": inversion}
    read = {**beside, "inversion": inversion.with_conditioning(other, None)}
    rf, beside, read = (pack.call("RFSolverSample", **inputs)[0] for inputs in ({}, beside, read))
    for sampler in (rf, beside, resuming(pack, inversion), resuming(pack, inversion, "euler")):
        for sides, name in (((other, source), "positive"), ((source, other), "negative")):
            refuses(
                lambda s=sampler, sides=sides: advanced(model, sides[0], s, sigmas, out, noise, sides[1], cfg=2.0),
                f"{name} must hold text of 32 channels for SDXL, got 40",
            )
    said = "source must hold text of 32 channels for SDXL"
    refuses(lambda: advanced(model, source, read, sigmas, out, noise), said)
    wide, said = {"samples": torch.ones(1, 16, 8, 12)}, ("latent must have the 4 channels", "got 16; encode")
    refuses(lambda: advanced(model, source, rf, sigmas.flip(0), wide), *said)
    bare = [[source[0][0], {}]]
    (guider,) = pack.call("AttentionGuider", model=model, source=source, target=bare, **rules)
    said = "target must hold the pooled text that SDXL reads"
    refuses(lambda: sampled(guider, rf, sigmas, latent), said)


def check_nothing_else_is_explained_away(pack):
    """What the network is given by an adapter counts as little as errors of other origin and the user's interrupt."""
    model, source, _, (_, wanted, *_) = invert(pack, "sdxl", method="euler")

    def adapted(apply_model, args):
        text = args["c"]["c_crossattn"][..., : pack.tiny.CONTEXT]
        return apply_model(args["input"], args["timestep"], **{**args["c"], "c_crossattn": text})

    wide = _resized(source, text=8)
    _, out, *_ = invert(pack, "sdxl", model=around(model, adapted), source=wide, method="euler")[3]
    assert torch.equal(out["samples"], wanted["samples"])
    # A block that is given a picture of other channels says nothing of the prompt, nor does a layer of an adapter.
    flux, layer = tiny_dits.model("flux"), torch.nn.Linear(24, 8)
    cut = flux.clone()
    cut.set_model_patch_replace(
        lambda args, more: more["original_block"]({**args, "img": args["img"][..., :-1]}), "dit", "double_block", 1
    )
    for broken in (cut, around(flux, lambda apply_model, args: layer(args["c"]["c_crossattn"]))):
        try:
            inverted(pack, "flux", model=broken)
        except RuntimeError:
            continue
        raise AssertionError("an error of the network or of an adapter was swallowed")
    for error, kind, prompt in (
        (RuntimeError("size mismatch"), "sdxl", source),
        (KeyError("noise"), "sd15", pack.tiny.conditioning("sd15")),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "sdxl", wide),
        (comfy.model_management.InterruptProcessingException(), "sdxl", wide),
    ):

        def failing(apply_model, args, error=error):
            raise error

        try:
            invert(pack, kind, model=around(pack.tiny.model(kind), failing), source=prompt)
        except BaseException as met:
            assert met is error, f"{error!r} became {met!r}"
        else:
            raise AssertionError(f"{error!r} was swallowed")
