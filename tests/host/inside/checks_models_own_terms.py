"""A model is asked in its own terms: the size of its noise, the scale of its states, what it predicts, and sound."""

import copy
import importlib
import unittest

import comfy.ldm.audio.embedders
import comfy.model_base
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models
import torch
from helpers import refuses, relative

NOISE_SCALE = 8.0


def watched(model, answer=None):
    """The MODEL, and the states and sigmas that its network is asked at; an answer stands in the network's place."""
    seen, copied = [], model.clone()

    def ask(apply_model, asked):
        seen.append((float(asked["timestep"][0]), asked["input"]))
        if answer is not None:
            return answer(asked["input"], asked["timestep"].reshape(-1, *[1] * (asked["input"].ndim - 1)))
        return apply_model(asked["input"], asked["timestep"], **asked["c"])

    copied.set_model_unet_function_wrapper(ask)
    return copied, seen


def inverted(pack, model, source, latent, **changes):
    """What Invert makes with these changes to its inputs."""
    inputs = {"steps": 4, "scheduler": "simple", "method": "midpoint", "cfg": 1.0, "strength": 1.0, **changes}
    return pack.call("Invert", model=model, source=source, latent=latent, **inputs)[0]


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
    source, latent = pack.tiny.conditioning("flux"), pack.tiny.latent("flux", batch=2)
    clean = model.get_model_object("latent_format").process_in(latent["samples"])
    edit = {"source": source, "target": pack.tiny.conditioning("flux", 9), "latent": latent, "steps": 4}
    edit |= {"scheduler": "simple", "source_cfg": 1.0, "target_cfg": 1.0, "seed": 0}
    runs = {
        "InfEdit": lambda each: pack.call("InfEdit", model=each, strength=1.0, eta=1.0, **edit),
        "FlowEdit": lambda each: pack.call("FlowEdit", model=each, n_max=4, n_avg=1, n_min=0, **edit),
        "noise_map": lambda each: inverted(pack, each, source, latent, method="noise_map"),
        "rf_inversion": lambda each: inverted(
            pack, each, source, latent, method="rf_inversion", rf_inversion_gamma=1.0
        ),
    }
    for name, run in runs.items():
        asked, seen = watched(model)
        run(asked)
        noises = [(x[:2] - (1.0 - sigma) * clean) / sigma for sigma, x in seen if sigma > 0.1]
        assert noises and all(abs(float(noise.std()) / NOISE_SCALE - 1.0) < 0.1 for noise in noises[:2]), name
    # D is the latent itself, so that all noise of the state is what it was mixed with.
    exact, _ = watched(model, lambda x, sigma: clean[: len(x)].to(x))
    drawn = inverted(pack, exact, source, latent, method="noise_map")
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
    source = pack.tiny.conditioning("sd15")
    asked, seen = watched(model)
    inversion = inverted(pack, asked, source, latent, steps=12)
    assert all(abs(float(x.std()) - 1.0) < 0.1 for _, x in seen), [(sigma, float(x.std())) for sigma, x in seen]
    assert abs(float(inversion.x.std()) / inversion.sigma - 1.0) < 0.1
    (back,) = pack.call("Resample", model=asked, inversion=inversion, cfg=1.0)
    assert relative(back["samples"], latent["samples"]) < 0.05


def check_flow_networks_that_predict_the_latent(pack):
    """Their error would be divided by sigma: they are asked no lower than .05, or refused where nothing tells them."""
    model = pack.tiny.model("flux")
    source, latent = pack.tiny.conditioning("flux"), pack.tiny.latent("flux", batch=2)
    wrong = 0.01 * pack.tiny.latent("flux", batch=2, seed=5)["samples"]
    latent["samples"] = model.get_model_object("latent_format").process_out(latent["samples"])
    # The exact denoiser of white latents, and an error that does not fall with sigma.
    asked, seen = watched(model, lambda x, s: x * (1.0 - s) / ((1.0 - s) ** 2 + s**2) + wrong.to(x))
    for method in ("euler", "midpoint", "fireflow", "bdia", "belm"):
        refuses(
            lambda method=method: inverted(pack, asked, source, latent, method=method, steps=20),
            "model must predict a velocity", "choose the method direct, ddim or edict",
        )  # fmt: skip
    assert abs(float(inverted(pack, asked, source, latent, method="edict", steps=20).x.std()) - 1.0) < 0.1
    model.model.diffusion_model.register_buffer("__x0__", torch.tensor([]))
    for method in ("euler", "midpoint", "fireflow", "bdia", "belm"):
        seen.clear()
        inversion = inverted(pack, asked, source, latent, method=method, steps=20)
        assert min(sigma for sigma, _ in seen) > 0.049, method
        assert abs(float(inversion.x.std()) - 1.0) < 0.1, (method, float(inversion.x.std()))


def check_regressions_are_refused(pack):
    """A network that maps pictures to pictures mixes no noise, whatever the host's sampling says."""
    kinds = (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.IMG_TO_IMG)
    model = with_sampling(pack.tiny.model("sd15"), *kinds)
    refuses(
        lambda: inverted(pack, model, pack.tiny.conditioning("sd15"), pack.tiny.latent("sd15")),
        "model must mix noise as a diffusion or rectified flow model does", "inversion is not defined",
    )  # fmt: skip


def check_the_noise_schedule_belongs_to_the_model(pack):
    """Another schedule or parametrisation is another model, and is refused; another shift is only another grid."""
    advanced = importlib.import_module("comfy_extras.nodes_model_advanced")
    model, source, latent = pack.tiny.model("sd15"), pack.tiny.conditioning("sd15"), pack.tiny.latent("sd15")
    inversion = inverted(pack, model, source, latent)

    def patched(node, to, **inputs):
        with torch.inference_mode():
            kind = getattr(advanced, node)
            return (kind().patch(to, **inputs) if hasattr(kind, "FUNCTION") else kind.execute(to, **inputs).result)[0]

    pack.call(
        "Resample", model=patched("ModelSamplingDiscrete", model, sampling="eps", zsnr=False), inversion=inversion
    )
    for other in (
        patched("ModelSamplingDiscrete", model, sampling="eps", zsnr=True),
        patched("ModelSamplingDiscrete", model, sampling="v_prediction", zsnr=False),
        patched("ModelSamplingContinuousEDM", model, sampling="eps", sigma_max=120.0, sigma_min=0.002),
    ):
        refuses(lambda m=other: pack.call("Resample", model=m, inversion=inversion), "must be the one that made")
    flow = pack.tiny.model("sd3")
    inversion = inverted(pack, flow, pack.tiny.conditioning("sd3"), pack.tiny.latent("sd3"))
    pack.call("Resample", model=patched("ModelSamplingSD3", flow, shift=6.0), inversion=inversion)


def _sound():
    """A tiny Stable Audio, and a source and target of it."""
    numbers = [comfy.ldm.audio.embedders.NumberConditioner(768, min_val=0, max_val=512).state_dict() for _ in range(2)]
    unet = {"audio_model": "dit1.0", "io_channels": 64, "embed_dim": 768, "num_heads": 12, "cond_token_dim": 768}
    unet |= {"global_cond_dim": 1536, "depth": 1, "project_cond_tokens": False, "global_cond_type": "prepend"}
    return unet, numbers


def check_sound(pack):
    """Latents of one dimension: exact, edited, masked in time, told by the report, saved nowhere differently."""
    unet, numbers = _sound()
    with torch.inference_mode():
        config = comfy.supported_models.StableAudio({**unet, "dtype": torch.float32})
        config.manual_cast_dtype = None
        made = comfy.model_base.StableAudio1(config, *numbers).eval()
        for module in (made.diffusion_model, made.seconds_start_embedder, made.seconds_total_embedder):
            pack.tiny._fill(module, 0)
        cpu = torch.device("cpu")
        model = comfy.model_patcher.ModelPatcher(made, load_device=cpu, offload_device=cpu)
    generator = torch.Generator().manual_seed(0)
    about = {"seconds_start": 0, "seconds_total": 4}
    source, target = ([[torch.randn(1, 8, 768, generator=generator), about]] for _ in range(2))
    latent = {"samples": torch.randn(2, 64, 24, generator=generator)}
    before = latent["samples"].clone()
    inversion = inverted(pack, model, source, latent, method="edict", keep_path=True)
    (back,) = pack.call("Resample", model=model, inversion=inversion, cfg=1.0)
    assert relative(back["samples"], before) < 1e-6
    report = pack.call("InversionReport", model=model, inversion=inversion)[0]
    assert "2 x 64 x 24" in report
    # Time runs from left to right in a mask.
    mask = torch.zeros(1, 10, 240)
    mask[:, :, :120] = 1.0
    edit = {"source": source, "target": target, "latent": latent, "steps": 4, "scheduler": "simple", "seed": 0}
    edit |= {"source_cfg": 1.0, "target_cfg": 1.0, "mask": mask}
    for edited in (
        pack.call("Resample", model=model, inversion=inversion, cfg=1.0, positive=target, mask=mask)[0],
        pack.call("FlowEdit", model=model, n_max=4, n_avg=1, n_min=0, **edit)[0],
        pack.call("InfEdit", model=model, strength=1.0, eta=1.0, **edit)[0],
    ):
        assert torch.equal(edited["samples"][..., 12:], before[..., 12:])
        assert relative(edited["samples"][..., :12], before[..., :12]) > 1e-3
    attention = pack.module("attention")
    rule = attention.Rule("test", (attention.Term(k=attention.Take(), v=attention.Take()),))
    plan = attention.AttentionPlan(rules=(rule,))
    plain, attended = (
        pack.call("Resample", model=model, inversion=inversion, cfg=1.0, positive=target, attention=each)[0]["samples"]
        for each in (None, plan)
    )
    assert relative(attended, plain) > 1e-4
