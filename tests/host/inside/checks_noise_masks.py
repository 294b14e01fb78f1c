"""A noise mask under the pack's samplers: outside it the latent comes out as under the host's own."""

import comfy.samplers
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from helpers import advanced, invert, refuses, relative

# Single numbers are walked beside the latent, so what is left is float32 rounding of the host's maps.
ROUNDING = 1e-6
# The first ends at a level below which the midpoint of the last step lies.
SCHEDULERS = ("karras", "simple")


class _Fresh:
    """A NOISE that knows no inversion."""

    def generate_noise(self, latent):
        return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(8))


def _mask():
    mask = torch.zeros(1, 8, 12)
    mask[:, :, 7:] = 1.0
    return mask


def _samplers(pack, linked, method):
    (own,) = pack.call("InversionSampler", inversion=linked, sampler_name="same as inversion")
    (rf,) = pack.call("RFSolverSample", solver=method)
    return own, rf


def check_the_kept_part_is_the_source(pack):
    """On every space and schedule, with the noise of the inversion and with any other, batched too."""
    for kind in ("sd15", "sd15_v", "sd3", "wan"):
        target = pack.tiny.conditioning(kind, seed=7)
        for scheduler in SCHEDULERS:
            for method in ("midpoint", "fireflow"):
                model, _, latent, (linked, _, noise, sigmas) = invert(
                    pack, kind, batch=2, method=method, scheduler=scheduler
                )
                masked, samples = {**latent, "noise_mask": _mask()}, latent["samples"]
                own, rf = _samplers(pack, linked, method)
                for sampler, start in ((own, noise), (rf, noise), (rf, _Fresh())):
                    found = advanced(model, target, sampler, sigmas, masked, start)
                    off = relative(found[..., :7], samples[..., :7])
                    assert off < ROUNDING, (kind, scheduler, method, off)
                    assert relative(found[..., 7:], samples[..., 7:]) > 1e-2, (kind, scheduler, method)


def check_what_is_not_kept_is_untouched(pack):
    """A mask of ones changes nothing; where a run stops above 0 the kept part is the host's own re-noised latent."""
    for kind in ("sd15", "sd3"):
        target = pack.tiny.conditioning(kind, seed=7)
        model, _, latent, (linked, _, noise, sigmas) = invert(pack, kind, scheduler="karras")
        euler = comfy.samplers.sampler_object("euler")
        for sampler in _samplers(pack, linked, "midpoint"):
            ones = {**latent, "noise_mask": torch.ones(1, 8, 12)}
            whole = advanced(model, target, sampler, sigmas, ones, noise)
            assert relative(whole, advanced(model, target, sampler, sigmas, latent, noise)) < ROUNDING, kind
            masked = {**latent, "noise_mask": _mask()}
            short = [advanced(model, target, way, sigmas[:-1], masked, noise) for way in (sampler, euler)]
            off = relative(short[0][..., :7], short[1][..., :7])
            assert off < 1e-5, (kind, off)
            # With a network that always answers the same, a soft mask is the host's mixture.
            soft = {**latent, "noise_mask": torch.linspace(0.0, 1.0, 12).expand(1, 8, 12)}
            fixed = model.clone()
            fixed.set_model_sampler_cfg_function(lambda args: args["input"] - 0.5, disable_cfg1_optimization=True)
            mixed = [advanced(fixed, target, way, sigmas, soft, noise) for way in (euler, sampler)]
            weight = soft["noise_mask"][:, None]
            # What midpoint leaves where nothing is kept is its own.
            bare = [advanced(fixed, target, way, sigmas, latent, noise) for way in (euler, sampler)]
            wanted = mixed[0] + weight * (bare[1] - bare[0])
            assert relative(mixed[1], wanted) < 1e-5, (kind, relative(mixed[1], wanted))


def check_masks_that_change_with_the_level(pack):
    """Differential diffusion lets go of everything by an eps model's lowest level, so nothing is put back there."""
    model, _, latent, (linked, _, noise, sigmas) = invert(pack, "sd15", scheduler="karras")
    patch = DifferentialDiffusion()
    (patched,) = patch.apply(model) if hasattr(patch, "apply") else patch.execute(model).result
    masked, target = {**latent, "noise_mask": _mask()}, pack.tiny.conditioning("sd15", seed=7)
    # The network answers the same to everything, so that only the last step tells what was kept there.
    patched.set_model_sampler_cfg_function(lambda args: args["input"] - 0.5, disable_cfg1_optimization=True)
    answer = patched.get_model_object("latent_format").process_out(torch.tensor(0.5))
    for sampler in _samplers(pack, linked, "midpoint"):
        found = advanced(patched, target, sampler, sigmas, masked, noise)
        before = advanced(patched, target, sampler, sigmas[:-1], masked, noise)
        # The midpoint lies below the lowest level, which takes its place: the step goes half of the way.
        off = relative(found, (before + answer) / 2.0)
        assert off < 1e-3, off


def check_solvers_that_carry_more_refuse(pack):
    """Pairs, residuals and pulls would not keep anything; a stock sampler from their state does."""
    for method in ("edict", "bdia", "belm", "noise_map", "direct", "rf_inversion"):
        model, _, latent, (linked, _, noise, sigmas) = invert(pack, "sd15", method=method)
        target, masked = pack.tiny.conditioning("sd15", seed=7), {**latent, "noise_mask": _mask()}
        own, stock = (
            pack.call("InversionSampler", inversion=linked, sampler_name=name)[0]
            for name in ("same as inversion", "euler")
        )
        refuses(
            lambda own=own, m=model, arguments=(sigmas, masked, noise), t=target: advanced(m, t, own, *arguments),
            f"latent must come without a noise_mask for the solver of {method}", "got one; choose a stock sampler",
        )  # fmt: skip
        found = advanced(model, target, stock, sigmas, masked, noise)
        off = relative(found[..., :7], latent["samples"][..., :7])
        assert off < 1e-4, (method, off)
