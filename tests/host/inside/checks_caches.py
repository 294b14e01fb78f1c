"""Patches that skip calls of the network are refused by whatever asks it, under the names that they are known by."""

import comfy_extras.nodes_easycache as easycache
from helpers import Counter, around, refuses
from running import advanced, edit, fit, invert, play, resuming

# Names that patches of other packs give themselves.
CACHES = ("TeaCache", "ApplyFBCacheOnModel", "FirstBlockCache", "MagCache")
INVERTING = (
    "Invert", "EDICTCouple", "BDIAInvert", "BELMInvert", "FixedPointInvert", "SPDInvert", "DirectInversion",
    "NoiseMapInvert", "RFInversion",
)  # fmt: skip


def _named(model, name):
    """The MODEL with a function of a pack around its network, which calls it as if nothing were."""

    def unet_wrapper_function(apply_model, args):
        return apply_model(args["input"], args["timestep"], **args["c"])

    unet_wrapper_function.__qualname__ = f"{name}.apply.<locals>.unet_wrapper_function"
    return around(model, unet_wrapper_function)


def check_every_node_refuses_caches(pack):
    """A MODEL behind the host's own nodes, or those of packs, is refused by every node and SAMPLER that asks it."""
    counter, model = Counter(pack.tiny.model("sd15")), pack.tiny.model("sd15")
    source, target, negative = (pack.tiny.conditioning("sd15", seed) for seed in (0, 9, 5))
    _, _, latent, (inversion, out, _, sigmas) = invert(pack, "sd15", model=model, method="ddim", keep_path=True)
    (solver,) = pack.call("RFSolverSample")
    own = resuming(pack, inversion)
    runs = [
        *(lambda m, n=node: invert(pack, "sd15", node=n, model=m) for node in INVERTING),
        *(lambda m, n=node: edit(pack, n, "sd15", m) for node in ("InfEdit", "FlowEdit")),
        *(lambda m, s=sampler: advanced(m, source, s, sigmas, out) for sampler in (own, solver)),
        lambda m: play(pack, m, inversion),
        lambda m: pack.call("NegativePromptInversion", model=m, inversion=inversion, target=target),
        lambda m: fit(pack, m, inversion, negative),
        lambda m: pack.call("NoiseOptimize", model=m, inversion=inversion, reference=latent, positive=target),
        lambda m: pack.call("InversionReport", model=m, inversion=inversion),
    ]
    settings = dict(reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False)
    hosts = [
        node.execute(model=counter.model, **settings).result[0]
        for node in (easycache.EasyCacheNode, easycache.LazyCacheNode)
    ]
    for skips, name in (
        (hosts[0], "easycache"),
        (hosts[1], "lazycache"),
        *((_named(counter.model, n), n) for n in CACHES),
    ):
        for run in runs if name in ("easycache", CACHES[0]) else runs[:1]:
            refuses(lambda r=run, m=skips: r(m), "got the cache patch", name, "connect the MODEL from before that node")
    assert counter.calls == 0
    # A wrapper that is none of them is let through.
    play(pack, _named(model, "Timing"), inversion)
