"""Round trips and transport on every kind of model."""

import comfy.samplers
import torch
from helpers import Counter, advanced, invert, relative

# Ways down from one state agree to float32 rounding of that state.
CLOSE = 1e-5
# Ways up amplify rounding: a random network sends a latent that is 1e-7 off some 1e-4 off in the noise.
CLOSE_UP = 1e-3


def check_every_kind_comes_back_finite(pack):
    """Inversion, reconstruction and all that stock samplers get are finite, at full strength and below."""
    for kind in pack.tiny.KINDS:
        for strength in (1.0, 0.5):
            model, _, latent, (linked, out, noise, sigmas) = invert(pack, kind, batch=2, strength=strength)
            (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
            for tensor in (out["samples"], back["samples"], noise.generate_noise(out), sigmas):
                assert torch.isfinite(tensor).all(), kind
            assert back["samples"].shape == latent["samples"].shape, kind
            assert back["samples"].dtype == latent["samples"].dtype, kind
            assert sigmas[-1] == 0 and len(sigmas) == linked.index + 1, kind
            assert linked.x.dtype == torch.float64, kind
            assert linked.space == ("flow" if kind in pack.tiny.FLOWS else "ve"), kind


def check_states_reach_stock_samplers(pack):
    """NOISE with either latent, and the stored state itself, start a stock sampler at one and the same state."""
    for kind in pack.tiny.KINDS:
        for strength in (1.0, 0.5):
            model, source, latent, (linked, out, noise, sigmas) = invert(pack, kind, strength=strength, cfg=1.0)
            (resume,) = pack.call("InversionSampler", inversion=linked, sampler_name="euler")
            stored = advanced(model, source, resume, sigmas, out)
            euler = comfy.samplers.sampler_object("euler")
            for start in (out, latent):
                drawn = advanced(model, source, euler, sigmas, start, noise)
                assert relative(drawn, stored) < CLOSE, (kind, strength, relative(drawn, stored))


def check_latent_alone_carries_eps_states(pack):
    """With DisableNoise the LATENT is the state wherever a latent can be it."""
    for kind, strength in (("sd15", 1.0), ("sd15_v", 0.5), ("sdxl", 1.0), ("sd3", 0.5), ("wan", 0.5)):
        model, source, _, (linked, out, _, sigmas) = invert(pack, kind, strength=strength)
        (resume,) = pack.call("InversionSampler", inversion=linked, sampler_name="euler")
        stored = advanced(model, source, resume, sigmas, out)
        carried = advanced(model, source, comfy.samplers.sampler_object("euler"), sigmas, out)
        assert relative(carried, stored) < CLOSE, (kind, relative(carried, stored))


def check_resume_equals_resample(pack):
    """The inversion's own solver gives one result as a node and inside SamplerCustomAdvanced."""
    for kind in pack.tiny.KINDS:
        for method in ("midpoint", "fireflow"):
            model, source, _, (linked, out, _, sigmas) = invert(pack, kind, method=method)
            (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
            (resume,) = pack.call("InversionSampler", inversion=linked, sampler_name="same as inversion")
            resumed = advanced(model, source, resume, sigmas, out)
            assert relative(resumed, back["samples"]) < 1e-6, (kind, method, relative(resumed, back["samples"]))


def check_exact_methods_are_exact(pack):
    """A method that claims to come back does so on every kind, on any network: fresh, from a file, and resumed.

    Two states must travel in float64 for it; through a LATENT the error would be some 1e-2.
    """
    methods = pack.module("inversion").METHODS
    exact = [name for name, method in methods.items() if method.reversible]
    assert exact
    for kind in pack.tiny.KINDS:
        for method in exact:
            model, source, latent, (linked, out, _, sigmas) = invert(pack, kind, method=method)
            (name,) = pack.call("SaveInversion", inversion=linked, filename_prefix="exact", half=False)
            (loaded,) = pack.call("LoadInversion", file=name)
            for each, given in ((linked, None), (loaded, source)):
                (back,) = pack.call("Resample", model=model, inversion=each, cfg=1.0, source=given)
                assert relative(back["samples"], latent["samples"]) < 1e-6, (kind, method)
            (resume,) = pack.call("InversionSampler", inversion=linked, sampler_name="same as inversion")
            resumed = advanced(model, source, resume, sigmas, out)
            assert relative(resumed, latent["samples"]) < 1e-6, (kind, method)


def check_every_method_edits(pack):
    """Every method plays its record towards a target, at full strength and below, and differs from the source."""
    for method in list(pack.module("inversion").METHODS):
        for kind, strength in (("sd15", 1.0), ("flux", 0.5)):
            model, _, latent, (linked, *_) = invert(pack, kind, method=method, strength=strength)
            target = pack.tiny.conditioning(kind, seed=9)
            (edited,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0, positive=target)
            assert torch.isfinite(edited["samples"]).all(), (kind, method)
            assert relative(edited["samples"], latent["samples"]) > 1e-3, (kind, method)


def check_rf_solver_both_ways(pack):
    """As a SAMPLER over rising SIGMAS it finds Invert's state, and over falling ones Resample's latent."""
    for kind in pack.tiny.KINDS:
        model, source, latent, (linked, _, _, sigmas) = invert(pack, kind)
        record = linked
        (sampler,) = pack.call("RFSolverSample", solver="midpoint")
        for start in (0.0, 1e-4):  # 1e-4 is what FlipSigmas writes for 0
            rising = torch.cat([torch.tensor([start]), sigmas.flip(0)[1:]])
            up = advanced(model, source, sampler, rising, latent)
            state = pack.module("nodes.host.latents").into_model(model, up)
            assert relative(state, record.x) < CLOSE_UP, (kind, start, relative(state, record.x))
        (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
        down = advanced(model, source, sampler, sigmas, {"samples": up})
        assert relative(down, back["samples"]) < CLOSE_UP, (kind, relative(down, back["samples"]))


def check_rf_solver_takes_repeated_levels(pack):
    """A level that a scheduler gives twice is no step, as for stock samplers."""
    model, source, latent, (_, _, _, sigmas) = invert(pack, "sd15")
    (sampler,) = pack.call("RFSolverSample", solver="midpoint")
    doubled = sigmas.repeat_interleave(2)
    for once, twice, start in ((sigmas.flip(0), doubled.flip(0), latent), (sigmas, doubled, latent)):
        wanted = advanced(model, source, sampler, once, start)
        assert torch.equal(advanced(model, source, sampler, twice, start), wanted)


def check_rf_solver_inside_the_grid(pack):
    """Stopping below the top and going on follows the host's convention for partial runs."""
    for kind in ("sd15", "sd3"):
        model, source, latent, (_, _, _, sigmas) = invert(pack, kind)
        (sampler,) = pack.call("RFSolverSample", solver="midpoint")
        rising = sigmas.flip(0)
        whole = advanced(model, source, sampler, rising, latent)
        half = advanced(model, source, sampler, rising[:3], latent)
        rest = advanced(model, source, sampler, rising[2:], {"samples": half})
        assert relative(rest, whole) < CLOSE_UP, (kind, relative(rest, whole))


def check_rf_solver_starts_like_the_host(pack):
    """Over falling SIGMAS with noise it asks the network first what a stock sampler asks it first."""
    for kind in ("sd15", "sd3", "flux", "wan"):
        for drop in (0, 1):
            model, source, latent, (_, _, noise, sigmas) = invert(pack, kind)
            (ours,) = pack.call("RFSolverSample", solver="midpoint")
            asked = []
            for sampler in (ours, comfy.samplers.sampler_object("euler")):
                counter = Counter(model)
                advanced(counter.model, source, sampler, sigmas[drop:], latent, noise)
                asked.append(counter.first)
            assert relative(*asked) < 1e-6, (kind, drop, relative(*asked))


def check_batch_rows_are_independent(pack):
    """A batch of two is two singles, up to what batched kernels round differently."""
    for kind in pack.tiny.KINDS:
        model = pack.tiny.model(kind)
        both = pack.tiny.latent(kind, batch=2)
        _, _, _, (together, *_) = invert(pack, kind, model=model, latent=both)
        for row in range(2):
            one = {"samples": both["samples"][row : row + 1]}
            _, _, _, (alone, *_) = invert(pack, kind, model=model, latent=one)
            error = relative(together.x[row : row + 1], alone.x)
            assert error < CLOSE_UP, (kind, row, error)


def check_guidance(pack):
    """With a negative and cfg 3 the round trip is that denoiser's own, and cfg matters."""
    for kind in ("sd15", "sdxl", "sd3"):
        model = pack.tiny.model(kind)
        negative = pack.tiny.conditioning(kind, seed=5)
        _, source, _, (guided, out, _, sigmas) = invert(pack, kind, model=model, cfg=3.0, negative=negative)
        _, _, _, (plain, *_) = invert(pack, kind, model=model)
        assert relative(guided.x, plain.x) > 1e-3, kind
        (back,) = pack.call("Resample", model=model, inversion=guided, cfg=1.0)
        (resume,) = pack.call("InversionSampler", inversion=guided, sampler_name="same as inversion")
        resumed = advanced(model, source, resume, sigmas, out, negative=negative, cfg=3.0)
        assert relative(resumed, back["samples"]) < CLOSE, (kind, relative(resumed, back["samples"]))


def check_every_scheduler(pack):
    """Every scheduler of the host gives a grid that can be climbed."""
    grid = pack.module("nodes.host.schedule")
    for kind in ("sd15", "sd3", "flux", "wan"):
        model = pack.tiny.model(kind)
        for name in comfy.samplers.SCHEDULER_NAMES:
            for steps in (2, 20, 150):
                levels = grid.rising_sigmas(model, name, steps)
                assert levels[0] == 0.0 and all(a < b for a, b in zip(levels, levels[1:])), (kind, name, steps)
