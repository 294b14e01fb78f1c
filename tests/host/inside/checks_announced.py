"""Patches of other packs read `cond_or_uncond`: 0 is the positive side, 1 the negative, also where one runs alone."""

import torch
from attending import plan
from helpers import around
from running import trained


def check_the_negative_is_announced_as_the_negative(pack):
    """By every node that guides: each side in a forward of its own, the positive as 0, the negative as 1."""
    told = []

    def watch(apply_model, args):
        told.append(tuple(args["c"]["transformer_options"]["cond_or_uncond"]))
        assert told[-1] == tuple(args["cond_or_uncond"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    for kind in ("eps", "flow"):
        model, (source, negative), latent = trained(pack, kind)

        def of(node, *sides, model=around(model, watch), negative=negative, kind=kind, **inputs):  # noqa: B008
            told.clear()
            outputs = pack.call(node, model=model, negative=negative, **inputs)
            assert set(told) == set(sides), (kind, node, told)
            return outputs[0]

        climb = {"source": source, "latent": latent, "steps": 3, "method": "euler", "keep_path": True}
        guided, plain = of("Invert", (0,), (1,), cfg=3.0, **climb), of("Invert", (0,), **climb)
        assert not torch.equal(guided.x, plain.x), kind
        back = {"inversion": plain, "cfg": 3.0, "positive": source}
        of("Resample", (0,), (1,), **back)
        of("Resample", (0,), (1,), attention=plan(pack), **back)
        of("InfEdit", (0,), (1,), source=source, target=source, latent=latent, target_cfg=3.0)
        of("NullTextOptimize", (0,), (1,), inversion=plain, cfg=3.0, inner_steps=1)
