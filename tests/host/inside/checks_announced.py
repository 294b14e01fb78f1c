"""Patches of other packs read `cond_or_uncond`: 0 is the positive side, 1 the negative, also where one runs alone."""

import torch
from attending import plan
from helpers import trained

CFG = 3.0


def _announced(model):
    """A copy of a MODEL, and what its forwards are announced as, one entry a forward."""
    told = []

    def watch(apply_model, args):
        told.append(tuple(args["c"]["transformer_options"]["cond_or_uncond"]))
        assert told[-1] == tuple(args["cond_or_uncond"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    watched = model.clone()
    watched.set_model_unet_function_wrapper(watch)
    return watched, told


def check_the_negative_is_announced_as_the_negative(pack):
    """By every node that guides: each side in a forward of its own, the positive as 0, the negative as 1."""
    for kind in ("eps", "flow"):
        model, (source, negative), latent = trained(pack, kind)
        model, told = _announced(model)
        steps = {"steps": 3, "scheduler": "simple", "negative": negative}

        def of(node, told=told, **inputs):
            told.clear()
            return pack.call(node, **inputs), set(told)

        invert = {"model": model, "source": source, "latent": latent, "method": "euler", "strength": 1.0, **steps}
        (linked, *_), sides = of("Invert", cfg=CFG, keep_path=True, **invert)
        assert sides == {(0,), (1,)}, (kind, "Invert", sides)
        (plain, *_), sides = of("Invert", cfg=1.0, keep_path=True, **invert)
        assert sides == {(0,)}, (kind, "Invert at cfg 1", sides)
        edit = {"model": model, "inversion": plain, "cfg": CFG, "positive": source, "negative": negative}
        _, sides = of("Resample", **edit)
        assert sides == {(0,), (1,)}, (kind, "Resample", sides)
        _, sides = of("Resample", attention=plan(pack), **edit)
        assert sides == {(0,), (1,)}, (kind, "Resample with attention", sides)
        pair = {"model": model, "source": source, "target": source, "latent": latent, "source_cfg": 1.0, **steps}
        _, sides = of("InfEdit", target_cfg=CFG, strength=1.0, eta=1.0, seed=0, **pair)
        assert sides == {(0,), (1,)}, (kind, "InfEdit", sides)
        _, sides = of(
            "NullTextOptimize",
            model=model,
            inversion=plain,
            negative=negative,
            cfg=CFG,
            inner_steps=1,
            learning_rate=0.01,
            stop=0.0,
            stop_growth=0.0,
        )
        assert sides == {(0,), (1,)}, (kind, "NullTextOptimize", sides)
        assert not torch.equal(linked.x, plain.x), kind
