"""A model is asked in its own terms: the size of its noise, the scale of its states, what it predicts, and sound."""

import copy
import importlib
import unittest

import comfy.ldm.audio.embedders
import comfy.model_base
import comfy.model_sampling
import comfy.supported_models
import torch
from attending import plan
from helpers import around, refuses, relative
from restoring import patched
from running import edit, invert, play

NOISE_SCALE = 8.0
VELOCITIES = ("euler", "midpoint", "fireflow", "bdia", "belm")


def watched(model, answer=None):
    """The MODEL, and the states and sigmas that its network is asked at; an answer stands in the network's place."""
    asked = []

    def ask(apply_model, args):
        asked.append((float(args["timestep"][0]), args["input"]))
        if answer is not None:
            return answer(args["input"], args["timestep"].reshape(-1, *[1] * (args["input"].ndim - 1)))
        return apply_model(args["input"], args["timestep"], **args["c"])

    return around(model, ask), asked


def with_sampling(model, *kinds):
    """The MODEL with another sampling of the host's."""
    copied = model.clone()
    kind = type("Sampling", kinds, {})
    with torch.inference_mode():
        copied.add_object_patch("model_sampling", kind(model.model.model_config))
    return copied


def check_noise_of_another_size(pack):
    """Every node that draws noise draws that of the model, and the report counts in it."""
    model = pack.tiny.model("flux")
    sampling = copy.deepcopy(model.get_model_object("model_sampling"))
    sampling.noise_scale = NOISE_SCALE
    if pack.module("nodes.host.parametrisation").noise_scale(sampling) == 1.0:
        raise unittest.SkipTest("this host has no noise of another size")
    model.add_object_patch("model_sampling", sampling)
    latent = pack.tiny.latent("flux", batch=2)
    clean = model.get_model_object("latent_format").process_in(latent["samples"])
    for run in (
        lambda m: edit(pack, "InfEdit", "flux", m, latent),
        lambda m: edit(pack, "FlowEdit", "flux", m, latent),
        lambda m: invert(pack, "flux", 2, m, method="noise_map"),
        lambda m: invert(pack, "flux", 2, m, method="rf_inversion", rf_inversion_gamma=1.0),
    ):
        asked, states = watched(model)
        run(asked)
        noises = [(x[:2] - (1.0 - sigma) * clean) / sigma for sigma, x in states if sigma > 0.1]
        assert noises and all(abs(float(noise.std()) / NOISE_SCALE - 1.0) < 0.1 for noise in noises[:2])
    # D is the latent itself, so that all noise of the state is what it was mixed with.
    exact, _ = watched(model, lambda x, sigma: clean[: len(x)].to(x))
    drawn = invert(pack, "flux", 2, exact, method="noise_map")[3][0]
    report = pack.call("InversionReport", model=exact, inversion=drawn)[0]
    assert abs(float(report.split("noise std over expected: ")[1].split()[0]) - 1.0) < 0.1, report


def check_networks_that_read_states_of_variance_one(pack):
    """CogVideoX: with v = 0, right for white latents, every state that the network sees has the variance of one."""
    if not hasattr(comfy.model_sampling, "V_PREDICTION_DDPM"):
        raise unittest.SkipTest("this host has no network of that kind")
    kinds = (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION_DDPM)
    model = with_sampling(pack.tiny.model("sd15"), *kinds)
    with torch.inference_mode():
        for weight in model.model.diffusion_model.out[2].parameters():
            weight.zero_()
    latent = pack.tiny.latent("sd15", batch=2, size=(16, 16))
    latent["samples"] = model.get_model_object("latent_format").process_out(latent["samples"])
    asked, states = watched(model)
    inversion = invert(pack, "sd15", model=asked, latent=latent, steps=12)[3][0]
    assert all(abs(float(x.std()) - 1.0) < 0.1 for _, x in states), [(sigma, float(x.std())) for sigma, x in states]
    assert abs(float(inversion.x.std()) / inversion.sigma - 1.0) < 0.1
    assert relative(play(pack, asked, inversion), latent["samples"]) < 0.05


def check_flow_networks_that_predict_the_latent(pack):
    """Their error would be divided by sigma: they are asked no lower than .05, or refused where nothing tells them."""
    model, latent = pack.tiny.model("flux"), pack.tiny.latent("flux", batch=2)
    wrong = 0.01 * pack.tiny.latent("flux", batch=2, seed=5)["samples"]
    latent["samples"] = model.get_model_object("latent_format").process_out(latent["samples"])
    # The exact denoiser of white latents, and an error that does not fall with sigma.
    asked, states = watched(model, lambda x, s: x * (1.0 - s) / ((1.0 - s) ** 2 + s**2) + wrong.to(x))

    def by(method):
        states.clear()
        return invert(pack, "flux", model=asked, latent=latent, method=method, steps=20)[3][0]

    for method in VELOCITIES:
        said = ("model must predict a velocity", "choose the method direct, ddim or edict")
        refuses(lambda method=method: by(method), *said)
    assert abs(float(by("edict").x.std()) - 1.0) < 0.1
    model.model.diffusion_model.register_buffer("__x0__", torch.tensor([]))
    for method in VELOCITIES:
        inversion = by(method)
        assert min(sigma for sigma, _ in states) > 0.049, method
        assert abs(float(inversion.x.std()) - 1.0) < 0.1, (method, float(inversion.x.std()))


def check_regressions_are_refused(pack):
    """A network that maps pictures to pictures mixes no noise, whatever the host's sampling says."""
    kinds = (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.IMG_TO_IMG)
    model = with_sampling(pack.tiny.model("sd15"), *kinds)
    said = ("model must mix noise as a diffusion or rectified flow model does", "inversion is not defined")
    refuses(lambda: invert(pack, "sd15", model=model), *said)


def check_the_noise_schedule_belongs_to_the_model(pack):
    """Another schedule or parametrisation is another model, and is refused; another shift is only another grid."""
    advanced = importlib.import_module("comfy_extras.nodes_model_advanced")
    model = pack.tiny.model("sd15")
    inversion = invert(pack, "sd15", model=model)[3][0]

    def patched(node, to, **inputs):
        with torch.inference_mode():
            kind = getattr(advanced, node)
            return (kind().patch(to, **inputs) if hasattr(kind, "FUNCTION") else kind.execute(to, **inputs).result)[0]

    play(pack, patched("ModelSamplingDiscrete", model, sampling="eps", zsnr=False), inversion)
    for other in (
        patched("ModelSamplingDiscrete", model, sampling="eps", zsnr=True),
        patched("ModelSamplingDiscrete", model, sampling="v_prediction", zsnr=False),
        patched("ModelSamplingContinuousEDM", model, sampling="eps", sigma_max=120.0, sigma_min=0.002),
    ):
        refuses(lambda m=other: play(pack, m, inversion), "must be the one that made")
    flow = pack.tiny.model("sd3")
    inversion = invert(pack, "sd3", model=flow)[3][0]
    play(pack, patched("ModelSamplingSD3", flow, shift=6.0), inversion)


def _sound(pack):
    """A MODEL of a tiny Stable Audio."""
    numbers = [comfy.ldm.audio.embedders.NumberConditioner(768, min_val=0, max_val=512).state_dict() for _ in range(2)]
    unet = {"audio_model": "dit1.0", "io_channels": 64, "embed_dim": 768, "num_heads": 12, "cond_token_dim": 768}
    unet |= {"global_cond_dim": 1536, "depth": 1, "project_cond_tokens": False, "global_cond_type": "prepend"}
    with torch.inference_mode():
        config = comfy.supported_models.StableAudio({**unet, "dtype": torch.float32})
        config.manual_cast_dtype = None
        made = comfy.model_base.StableAudio1(config, *numbers).eval()
        for module in (made.diffusion_model, made.seconds_start_embedder, made.seconds_total_embedder):
            pack.tiny._fill(module, 0)
        return patched(made)


def check_sound(pack):
    """Latents of one dimension: exact, edited, masked in time, told by the report, saved nowhere differently."""
    model, generator = _sound(pack), torch.Generator().manual_seed(0)
    about = {"seconds_start": 0, "seconds_total": 4}
    source, target = ([[torch.randn(1, 8, 768, generator=generator), about]] for _ in range(2))
    latent = {"samples": torch.randn(2, 64, 24, generator=generator)}
    before, given = latent["samples"].clone(), {"model": model, "source": source, "latent": latent}
    inversion = pack.call("Invert", method="edict", keep_path=True, **given)[0]
    assert relative(play(pack, model, inversion), before) < 1e-6
    assert "2 x 64 x 24" in pack.call("InversionReport", model=model, inversion=inversion)[0]
    said = "vae must be left out for sound"
    refuses(lambda: pack.call("InversionReport", model=model, inversion=inversion, vae=object()), said)
    # Time runs from left to right in a mask.
    mask = torch.zeros(1, 10, 240)
    mask[:, :, :120] = 1.0
    for edited in (
        play(pack, model, inversion, positive=target, mask=mask),
        *(pack.call(node, target=target, mask=mask, **given)[0]["samples"] for node in ("FlowEdit", "InfEdit")),
    ):
        assert torch.equal(edited[..., 12:], before[..., 12:])
        assert relative(edited[..., :12], before[..., :12]) > 1e-3
    plain, attended = (play(pack, model, inversion, positive=target, attention=each) for each in (None, plan(pack)))
    assert relative(attended, plain) > 1e-4
