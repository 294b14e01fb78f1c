"""What is refused, in one sentence each, and what a refusal leaves behind."""

import comfy_extras.nodes_easycache as easycache
import torch
from helpers import Counter, around, refuses, refuses_each, same_snapshot, snapshot
from running import advanced, edit, fit, invert, play, reloaded, resuming


def check_bad_inputs(pack):
    """What is seen on no single widget, and latents that are none, are refused when the node runs."""
    bad, clip = pack.tiny.latent("sd15"), {"samples": torch.randn(1, 4, 3, 8, 8)}
    bad["samples"][0, 0, 0, 0] = float("nan")

    class Nested:
        is_nested = True

    refuses_each(
        lambda kind="sd15", **changes: invert(pack, kind, **changes),
        ({"cfg": 2.0}, "cfg must be 1 without a negative, got 2"),
        ({"sigmas": torch.tensor([14.0, 3.0, 1.0])}, "sigmas must reach 0"),
        ({"sigmas": torch.tensor([14.0, 3.0, 5.0, 0.0])}, "sigmas must rise or fall"),
        ({"sigmas": torch.tensor([14.0, 0.0])}, "steps must be at least 2"),
        ({"kind": "sd3", "sigmas": torch.tensor([2.0, 0.5, 0.0])}, "must not exceed 1"),
        ({"latent": bad}, "latent must be finite"),
        ({"latent": {"samples": Nested()}}, "latent must hold one tensor"),
        ({"kind": "sd3", "latent": {"samples": torch.randn(1, 4, 8, 8)}}, "16 channels", "got 4"),
        ({"latent": clip}, "latent must be pictures", "(1, 4, 3, 8, 8)"),
        ({"source": []}, "source must hold a conditioning"),
    )


def check_misfits(pack):
    """An inversion is refused by another model, and a sampler by another size, grid or solver."""
    eps, source, _, (inversion, out, noise, sigmas) = invert(pack, "sd15")
    flow, other, given = pack.tiny.model("sd3"), pack.tiny.model("sd15", seed=1), {"inversion": inversion}
    before, small = snapshot(flow), {"samples": torch.randn(1, 4, 8, 8)}
    refuses_each(
        lambda node="Resample", **changes: pack.call(node, **given, **changes),
        ({"model": flow}, "'ve'", "'flow'"),
        ({"node": "InversionReport", "model": flow}, "'ve'", "'flow'"),
        ({"model": other}, "model", "BaseModel:"),
        ({"model": eps, "cfg": 4.0, "positive": source}, "cfg must be 1"),
        ({"node": "InversionReport", "model": eps, "reconstructed": small}, "reconstructed must have the inversion"),
        *(
            ({"node": "InversionSampler", "sampler_name": name}, "sampler_name must be one of", repr(name))
            # It takes no sampler that draws noise on the way.
            for name in (
                "euler_ancestral",
                "dpmpp_sde",
                "dpmpp_2m_sde",
                "ddpm",
                "lcm",
                "er_sde",
                "sa_solver",
                "seeds_2",
            )
        ),
    )
    same_snapshot(flow, before)
    (solver,) = pack.call("RFSolverSample")
    resume, masked = resuming(pack, inversion), {**out, "noise_mask": torch.ones(1, 8, 12)}
    refuses_each(
        lambda model=eps, sampler=resume, sigmas=sigmas, latent=out: advanced(model, source, sampler, sigmas, latent),
        ({"latent": small}, "latent must have the inversion's size", "(1, 4, 8, 8)"),
        ({"sigmas": sigmas[1:]}, "sigmas must start at the inversion's sigma"),
        ({"sigmas": sigmas.flip(0)}, "sigmas must"),
        ({"model": other}, "model", "BaseModel:"),
        # It cannot keep a region of a latent that is itself the noise.
        ({"sampler": solver, "latent": masked}, "noise must come with a noise_mask"),
    )
    refuses(lambda: noise.generate_noise(small), "latent_image must have the size", "(1, 4, 8, 8)")


def check_loaded_inversions_ask_for_their_conditioning(pack):
    """Without conditioning one can be edited; to reconstruct it the source is asked for, and its negative if guided."""
    # The cfg of the node does not count in a reconstruction, so it is no remedy either.
    negative = pack.tiny.conditioning("sd15", seed=3)
    model, source, _, (plain, *_) = invert(pack, "sd15")
    guided = invert(pack, "sd15", model=model, cfg=3.0, negative=negative)[3][0]
    loaded = reloaded(pack, plain)
    refuses(lambda: play(pack, model, loaded), "source must be connected")
    assert torch.equal(play(pack, model, loaded, source=source), play(pack, model, plain))
    play(pack, model, loaded, source=source, positive=source)
    given = {"model": model, "inversion": reloaded(pack, guided), "source": source}
    parts = ("negative must be connected to reconstruct a loaded inversion", "made at cfg 3", "got nothing; connect")
    for node in ("Resample", "InversionReport"):
        refuses(lambda n=node: pack.call(n, **given), *parts)
    assert torch.equal(play(pack, **given, negative=negative), play(pack, model, guided))


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
    patched = {name: _named(counter.model, name) for name in CACHES}
    for name, node in (("easycache", easycache.EasyCacheNode), ("lazycache", easycache.LazyCacheNode)):
        patched[name] = node.execute(model=counter.model, **settings).result[0]
    said = ("got the cache patch", "connect the MODEL from before that node")
    for name, skips in patched.items():
        for run in runs if name in ("easycache", CACHES[0]) else runs[:1]:
            refuses(lambda r=run, m=skips: r(m), name, *said)
    assert counter.calls == 0
    # A wrapper that is none of them is let through.
    play(pack, _named(model, "Timing"), inversion)
