"""A noise mask under the pack's samplers: outside it the latent comes out as under the host's own."""

import comfy.samplers
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from helpers import refuses, relative
from running import Fresh, advanced, invert, resuming

# Single numbers are walked beside the latent, so what is left is float32 rounding of the host's maps.
ROUNDING = 1e-6


def _mask():
    mask = torch.zeros(1, 8, 12)
    mask[:, :, 7:] = 1.0
    return mask


def _inverted(pack, kind, batch=1, method="midpoint", **changes):
    """Model, target, LATENT with the mask, inversion, NOISE, SIGMAS, and both samplers of the pack."""
    model, _, latent, (inversion, _, noise, sigmas) = invert(pack, kind, batch, method=method, **changes)
    solver = method if method in ("midpoint", "fireflow") else "midpoint"
    samplers = resuming(pack, inversion), pack.call("RFSolverSample", solver=solver)[0]
    target, masked = pack.tiny.conditioning(kind, seed=7), {**latent, "noise_mask": _mask()}
    return model, target, masked, inversion, noise, sigmas, samplers


def check_the_outside_is_the_source(pack):
    """On every space and schedule, with the noise of the inversion and with any other, batched too."""
    for kind in ("sd15", "sd15_v", "sd3", "wan"):
        # The first ends at a level below which the midpoint of the last step lies.
        for scheduler in ("karras", "simple"):
            for method in ("midpoint", "fireflow"):
                given = {"method": method, "scheduler": scheduler}
                model, target, masked, _, noise, sigmas, (own, rf) = _inverted(pack, kind, 2, **given)
                for sampler, start in ((own, noise), (rf, noise), (rf, Fresh())):
                    edited, samples = advanced(model, target, sampler, sigmas, masked, start), masked["samples"]
                    off = relative(edited[..., :7], samples[..., :7])
                    assert off < ROUNDING, (kind, scheduler, method, off)
                    assert relative(edited[..., 7:], samples[..., 7:]) > 1e-2, (kind, scheduler, method)


def check_the_inside_is_untouched(pack):
    """A mask of ones changes nothing; where a run stops above 0 the outside is the host's own re-noised latent."""
    euler = comfy.samplers.sampler_object("euler")
    for kind in ("sd15", "sd3"):
        model, target, masked, _, noise, sigmas, samplers = _inverted(pack, kind, scheduler="karras")
        latent = {"samples": masked["samples"]}
        for sampler in samplers:
            whole, bare = (
                advanced(model, target, sampler, sigmas, each, noise)
                for each in ({**latent, "noise_mask": torch.ones(1, 8, 12)}, latent)
            )
            assert relative(whole, bare) < ROUNDING, kind
            short = [advanced(model, target, way, sigmas[:-1], masked, noise) for way in (sampler, euler)]
            off = relative(short[0][..., :7], short[1][..., :7])
            assert off < 1e-5, (kind, off)
            # With a network that always answers the same, a soft mask is the host's mixture.
            soft = {**latent, "noise_mask": torch.linspace(0.0, 1.0, 12).expand(1, 8, 12)}
            fixed = model.clone()
            fixed.set_model_sampler_cfg_function(lambda args: args["input"] - 0.5, disable_cfg1_optimization=True)
            # What midpoint leaves without a mask is its own.
            ways = [(way, each) for each in (soft, latent) for way in (euler, sampler)]
            runs = [advanced(fixed, target, way, sigmas, each, noise) for way, each in ways]
            mixed, bare = runs[:2], runs[2:]
            wanted = mixed[0] + soft["noise_mask"][:, None] * (bare[1] - bare[0])
            assert relative(mixed[1], wanted) < 1e-5, (kind, relative(mixed[1], wanted))


def check_masks_that_change_with_the_level(pack):
    """Differential diffusion lets go of everything by an eps model's lowest level, so nothing is put back there."""
    model, target, masked, _, noise, sigmas, samplers = _inverted(pack, "sd15", scheduler="karras")
    patch = DifferentialDiffusion()
    (patched,) = patch.apply(model) if hasattr(patch, "apply") else patch.execute(model).result
    # The network answers the same to everything, so that only the last step tells what was held there.
    patched.set_model_sampler_cfg_function(lambda args: args["input"] - 0.5, disable_cfg1_optimization=True)
    answer = patched.get_model_object("latent_format").process_out(torch.tensor(0.5))
    for sampler in samplers:
        end, before = (advanced(patched, target, sampler, way, masked, noise) for way in (sigmas, sigmas[:-1]))
        # The midpoint lies below the lowest level, which takes its place: the step goes half of the way.
        off = relative(end, (before + answer) / 2.0)
        assert off < 1e-3, off


def check_solvers_that_carry_more_refuse(pack):
    """Pairs, residuals and pulls would not keep anything; a stock sampler from their state does."""
    for method in ("edict", "bdia", "belm", "noise_map", "direct", "rf_inversion"):
        model, target, masked, inversion, noise, sigmas, (own, _) = _inverted(pack, "sd15", method=method)
        refuses(
            lambda arguments=(model, target, own, sigmas, masked, noise): advanced(*arguments),
            f"latent must come without a noise_mask for the solver of {method}", "got one; choose a stock sampler",
        )  # fmt: skip
        edited = advanced(model, target, resuming(pack, inversion, "euler"), sigmas, masked, noise)
        off = relative(edited[..., :7], masked["samples"][..., :7])
        assert off < 1e-4, (method, off)
