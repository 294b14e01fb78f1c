"""Round trips and transport on every kind of model: one state, whichever way it goes to the host's samplers."""

import comfy.samplers
import torch
from helpers import Counter, relative
from running import advanced, invert, play, reloaded, resuming

# Ways down from one state agree to float32 rounding of that state.
CLOSE = 1e-5
# Ways up amplify rounding: a random network sends a latent that is 1e-7 off some 1e-4 off in the noise.
CLOSE_UP = 1e-3


def check_states_reach_stock_samplers(pack):
    """NOISE with either latent, and the stored state itself, start a stock sampler at one and the same state."""
    euler = comfy.samplers.sampler_object("euler")
    for kind in pack.tiny.KINDS:
        for strength in (1.0, 0.5):
            model, source, latent, (inversion, out, noise, sigmas) = invert(pack, kind, strength=strength)
            assert sigmas[-1] == 0 and len(sigmas) == inversion.index + 1, kind
            stored = advanced(model, source, resuming(pack, inversion, "euler"), sigmas, out)
            assert stored.dtype == latent["samples"].dtype, kind
            for start in (out, latent):
                drawn = advanced(model, source, euler, sigmas, start, noise)
                assert relative(drawn, stored) < CLOSE, (kind, strength, relative(drawn, stored))
            # With DisableNoise the LATENT is the state wherever a latent can be it.
            if (kind, strength) in (("sd15", 1.0), ("sd15_v", 0.5), ("sdxl", 1.0), ("sd3", 0.5), ("wan", 0.5)):
                carried = advanced(model, source, euler, sigmas, out)
                assert relative(carried, stored) < CLOSE, (kind, relative(carried, stored))


def check_resume_equals_resample(pack):
    """The inversion's own solver gives one result as a node and inside SamplerCustomAdvanced, guided too."""
    for kind in pack.tiny.KINDS:
        more = (("midpoint", 3.0),) if kind in ("sd15", "sdxl", "sd3") else ()
        for method, cfg in (("midpoint", 1.0), ("fireflow", 1.0), *more):
            guided = {"cfg": cfg, "negative": None if cfg == 1.0 else pack.tiny.conditioning(kind, seed=5)}
            model, source, _, (inversion, out, _, sigmas) = invert(pack, kind, method=method, **guided)
            resumed = advanced(model, source, resuming(pack, inversion), sigmas, out, **guided)
            error = relative(resumed, play(pack, model, inversion))
            assert error < (1e-6 if cfg == 1.0 else CLOSE), (kind, method, cfg, error)
            if cfg != 1.0:
                plain = invert(pack, kind, model=model, method=method)[3][0]
                assert relative(inversion.x, plain.x) > 1e-3, kind


def check_exact_methods_are_exact(pack):
    """A method that claims to come back does so on every kind, on any network: fresh, from a file, and resumed."""
    # Two states must travel in float64 for it; through a LATENT the error would be some 1e-2.
    exact = [name for name, method in pack.module("inversion").METHODS.items() if method.reversible]
    assert exact
    for kind in pack.tiny.KINDS:
        for method in exact:
            model, source, latent, (inversion, out, _, sigmas) = invert(pack, kind, method=method)
            for back in (
                play(pack, model, inversion),
                play(pack, model, reloaded(pack, inversion), source=source),
                advanced(model, source, resuming(pack, inversion), sigmas, out),
            ):
                assert relative(back, latent["samples"]) < 1e-6, (kind, method)


def check_rf_solver_both_ways(pack):
    """As a SAMPLER over rising SIGMAS it finds Invert's state, and over falling ones Resample's latent."""
    (sampler,) = pack.call("RFSolverSample", solver="midpoint")
    for kind in pack.tiny.KINDS:
        model, source, latent, (inversion, _, _, sigmas) = invert(pack, kind)
        for start in (0.0, 1e-4):  # 1e-4 is what FlipSigmas writes for 0
            rising = torch.cat([torch.tensor([start]), sigmas.flip(0)[1:]])
            up = advanced(model, source, sampler, rising, latent)
            state = pack.module("nodes.host.latents").into_model(model, up)
            assert relative(state, inversion.x) < CLOSE_UP, (kind, start, relative(state, inversion.x))
        down = advanced(model, source, sampler, sigmas, {"samples": up})
        error = relative(down, play(pack, model, inversion))
        assert error < CLOSE_UP, (kind, error)
        # Stopping below the top and going on follows the host's convention for partial runs.
        half = advanced(model, source, sampler, rising[:3], latent)
        rest = advanced(model, source, sampler, rising[2:], {"samples": half})
        assert relative(rest, up) < CLOSE_UP, (kind, relative(rest, up))
        # A level that a scheduler gives twice is no step, as for stock samplers.
        for levels in (sigmas.flip(0), sigmas) if kind == "sd15" else ():
            wanted = advanced(model, source, sampler, levels, latent)
            assert torch.equal(advanced(model, source, sampler, levels.repeat_interleave(2), latent), wanted)


def check_rf_solver_starts_like_the_host(pack):
    """Over falling SIGMAS with noise it asks the network first what a stock sampler asks it first."""
    (ours,) = pack.call("RFSolverSample", solver="midpoint")
    for kind in ("sd15", "sd3", "flux", "wan"):
        model, source, latent, (_, _, noise, sigmas) = invert(pack, kind)
        for drop in (0, 1):
            asked = []
            for sampler in (ours, comfy.samplers.sampler_object("euler")):
                counter = Counter(model)
                advanced(counter.model, source, sampler, sigmas[drop:], latent, noise)
                asked.append(counter.first)
            assert relative(*asked) < 1e-6, (kind, drop, relative(*asked))


def check_batch_rows_are_independent(pack):
    """A batch of two is two singles, up to what batched kernels round differently."""
    for kind in pack.tiny.KINDS:
        model, _, both, (together, *_) = invert(pack, kind, batch=2)
        for row in range(2):
            one = {"samples": both["samples"][row : row + 1]}
            error = relative(together.x[row : row + 1], invert(pack, kind, model=model, latent=one)[3][0].x)
            assert error < CLOSE_UP, (kind, row, error)


def check_every_scheduler(pack):
    """Every scheduler of the host gives a grid that can be climbed."""
    grid = pack.module("nodes.host.schedule")
    for kind in ("sd15", "sd3", "flux", "wan"):
        model = pack.tiny.model(kind)
        for name in comfy.samplers.SCHEDULER_NAMES:
            for steps in (2, 20, 150):
                levels = grid.rising_sigmas(model, name, steps)
                assert levels[0] == 0.0 and all(a < b for a, b in zip(levels, levels[1:])), (kind, name, steps)
