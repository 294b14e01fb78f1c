"""What is refused, in one sentence each, and what a refusal leaves behind."""

import torch
from helpers import refuses, refuses_each, same_snapshot, snapshot
from running import advanced, invert, play, reloaded, resuming


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
        (
            {"node": "InversionReport", "model": eps, "reconstructed": small},
            "reconstructed must have the inversion's size",
        ),
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
    resume = resuming(pack, inversion)
    refuses_each(
        lambda model=eps, sampler=resume, sigmas=sigmas, latent=out: advanced(model, source, sampler, sigmas, latent),
        ({"latent": small}, "latent must have the inversion's size", "(1, 4, 8, 8)"),
        ({"sigmas": sigmas[1:]}, "sigmas must start at the inversion's sigma"),
        ({"sigmas": sigmas.flip(0)}, "sigmas must"),
        ({"model": other}, "model", "BaseModel:"),
        # It cannot keep a region of a latent that is itself the noise.
        (
            {"sampler": solver, "latent": {**out, "noise_mask": torch.ones(1, 8, 12)}},
            "noise must come with a noise_mask",
        ),
    )
    refuses(lambda: noise.generate_noise(small), "latent_image must have the size", "(1, 4, 8, 8)")


def check_loaded_inversions_ask_for_their_conditioning(pack):
    """Without conditioning one can be edited; to reconstruct it the source is asked for, and its negative if guided.

    The cfg of the node does not count in a reconstruction, so it is no remedy either.
    """
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
