"""What is refused, in one sentence each, and what a refusal leaves behind."""

import torch
from helpers import advanced, invert, refuses, same_snapshot, snapshot


def check_bad_widgets(pack):
    """What is seen on no single widget is refused when the node runs."""
    refuses(lambda: invert(pack, "sd15", cfg=2.0), "cfg must be 1 without a negative, got 2")
    refuses(lambda: invert(pack, "sd15", sigmas=torch.tensor([14.0, 3.0, 1.0])), "sigmas must reach 0")
    refuses(lambda: invert(pack, "sd15", sigmas=torch.tensor([14.0, 3.0, 5.0, 0.0])), "sigmas must rise or fall")
    refuses(lambda: invert(pack, "sd15", sigmas=torch.tensor([14.0, 0.0])), "steps must be at least 2")
    refuses(lambda: invert(pack, "sd3", sigmas=torch.tensor([2.0, 0.5, 0.0])), "must not exceed 1")


def check_misfits(pack):
    """An inversion is refused by another model, and a sampler by another size or grid."""
    eps, _, _, (linked, out, noise, sigmas) = invert(pack, "sd15")
    flow = pack.tiny.model("sd3")
    before = snapshot(flow)
    refuses(lambda: pack.call("Resample", model=flow, inversion=linked, cfg=1.0), "'ve'", "'flow'")
    refuses(lambda: pack.call("InversionReport", model=flow, inversion=linked), "'ve'", "'flow'")
    other = pack.tiny.model("sd15", seed=1)
    refuses(lambda: pack.call("Resample", model=other, inversion=linked, cfg=1.0), "model", "BaseModel:")
    same_snapshot(flow, before)
    source = pack.tiny.conditioning("sd15")
    (resume,) = pack.call("InversionSampler", inversion=linked, sampler_name="same as inversion")
    small = {"samples": torch.randn(1, 4, 8, 8)}
    refuses(
        lambda: advanced(eps, source, resume, sigmas, small), "latent must have the inversion's size", "(1, 4, 8, 8)"
    )
    refuses(lambda: noise.generate_noise(small), "latent_image must have the size", "(1, 4, 8, 8)")
    refuses(lambda: advanced(eps, source, resume, sigmas[1:], out), "sigmas must start at the inversion's sigma")
    refuses(lambda: advanced(eps, source, resume, sigmas.flip(0), out), "sigmas must")
    refuses(lambda: advanced(other, source, resume, sigmas, out), "model", "BaseModel:")
    refuses(lambda: invert(pack, "sd3", model=flow, latent=small), "16 channels", "got 4")
    clip = {"samples": torch.randn(1, 4, 3, 8, 8)}
    refuses(lambda: invert(pack, "sd15", model=eps, latent=clip), "latent must be pictures", "(1, 4, 3, 8, 8)")
    refuses(lambda: invert(pack, "sd15", model=eps, source=[]), "source must hold a conditioning")
    refuses(lambda: pack.call("Resample", model=eps, inversion=linked, cfg=4.0, positive=source), "cfg must be 1")
    refuses(
        lambda: pack.call("InversionSampler", inversion=linked, sampler_name="euler_ancestral"), "sampler_name must be"
    )
    refuses(
        lambda: pack.call("InversionReport", model=eps, inversion=linked, reconstructed=small),
        "reconstructed must have the inversion's size",
    )


def check_broken_latents(pack):
    """Values that are not finite and latents of several streams are refused."""
    bad = pack.tiny.latent("sd15")
    bad["samples"][0, 0, 0, 0] = float("nan")
    refuses(lambda: invert(pack, "sd15", latent=bad), "latent must be finite")

    class Nested:
        is_nested = True

    refuses(lambda: invert(pack, "sd15", latent={"samples": Nested()}), "latent must hold one tensor")


def check_skipping_patches(pack):
    """Models that skip evaluations are refused under every node that walks."""
    model, source, _, (linked, out, _, sigmas) = invert(pack, "sd15")
    (resume,) = pack.call("InversionSampler", inversion=linked, sampler_name="same as inversion")
    (rf,) = pack.call("RFSolverSample", solver="midpoint")
    for key in ("easycache", "lazycache"):
        cached = model.clone()
        cached.add_wrapper_with_key("outer_sample", key, lambda executor, *args, **kwargs: executor(*args, **kwargs))
        part = f"got the cache patch '{key}'"
        refuses(lambda m=cached: invert(pack, "sd15", model=m), part)
        refuses(lambda m=cached: pack.call("Resample", model=m, inversion=linked, cfg=1.0), part)
        refuses(lambda m=cached: advanced(m, source, resume, sigmas, out), part)
        refuses(lambda m=cached: advanced(m, source, rf, sigmas, out), part)


def check_loaded_records_ask_for_their_source(pack):
    """Without conditioning a record can be edited; to reconstruct it the source is asked for, and is enough."""
    model, source, _, (linked, *_) = invert(pack, "sd15")
    (name,) = pack.call("SaveInversion", inversion=linked, filename_prefix="retrace/inversion", half=False)
    (loaded,) = pack.call("LoadInversion", file=name)
    refuses(lambda: pack.call("Resample", model=model, inversion=loaded, cfg=1.0), "source must be connected")
    (wanted,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
    (back,) = pack.call("Resample", model=model, inversion=loaded, cfg=1.0, source=source)
    assert torch.equal(back["samples"], wanted["samples"])
    pack.call("Resample", model=model, inversion=loaded, cfg=1.0, positive=source)


def check_loaded_guided_records_ask_for_their_negative(pack):
    """The cfg of the node does not count in a reconstruction, so it is no remedy either."""
    negative = pack.tiny.conditioning("sd15", seed=3)
    model, source, _, (linked, *_) = invert(pack, "sd15", cfg=3.0, negative=negative)
    (name,) = pack.call("SaveInversion", inversion=linked, filename_prefix="retrace/guided", half=False)
    (loaded,) = pack.call("LoadInversion", file=name)
    inputs = {"model": model, "inversion": loaded, "source": source}
    parts = ("negative must be connected to reconstruct a loaded inversion", "made at cfg 3", "got nothing; connect")
    refuses(lambda: pack.call("Resample", cfg=1.0, **inputs), *parts)
    refuses(lambda: pack.call("InversionReport", **inputs), *parts)
    (wanted,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
    (back,) = pack.call("Resample", cfg=1.0, negative=negative, **inputs)
    assert torch.equal(back["samples"], wanted["samples"])


def check_noise_mask_without_noise(pack):
    """RFSolverSample cannot keep a region of a latent that is itself the noise, and says so."""
    model, source, _, (_, out, _, sigmas) = invert(pack, "sd15")
    (rf,) = pack.call("RFSolverSample", solver="midpoint")
    masked = {**out, "noise_mask": torch.ones(1, 8, 12)}
    refuses(lambda: advanced(model, source, rf, sigmas, masked), "noise must come with a noise_mask")
