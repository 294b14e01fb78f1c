"""Small things that several checks need."""

import contextlib

import comfy.model_management
import comfy.samplers
import torch

STEPS = 4


def invert(pack, kind, batch=1, seed=0, model=None, latent=None, **changes):
    """Run Invert on a tiny model; returns (model, source, latent, outputs)."""
    model = pack.tiny.model(kind) if model is None else model
    source = pack.tiny.conditioning(kind)
    latent = pack.tiny.latent(kind, batch=batch, seed=seed) if latent is None else latent
    inputs = {
        "model": model,
        "source": source,
        "latent": latent,
        "steps": STEPS,
        "scheduler": "simple",
        "method": "midpoint",
        "cfg": 1.0,
        "strength": 1.0,
        **changes,
    }
    return model, source, latent, pack.call("Invert", **inputs)


def trained(pack, kind, seed=1):
    """A model of the Shapes world, the prompt of a picture of it and the empty one, and the picture's latent."""
    model, clip, vae = pack.call("LoadShapesModel", kind=kind)
    words = {"size": "big", "colour": "red", "shape": "circle", "position": "left", "background": "blue"}
    picture, _, caption = pack.call("ShapesPicture", **words, seed=seed, batch_size=1)[:3]
    with torch.inference_mode():
        prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (caption, "")]
        return model, prompts, {"samples": vae.encode(picture)}


def advanced(model, positive, sampler, sigmas, latent, noise=None, negative=None, cfg=1.0):
    """What SamplerCustomAdvanced does with a stock guider; noise None is DisableNoise."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive if negative is None else negative)
    guider.set_cfg(cfg)
    samples = latent["samples"]
    drawn = torch.zeros_like(samples) if noise is None else noise.generate_noise(latent)
    with torch.inference_mode():
        return guider.sample(
            drawn, samples, sampler, sigmas, denoise_mask=latent.get("noise_mask"), disable_pbar=True, seed=0
        )


def relative(value, wanted):
    """|value - wanted| / |wanted|."""
    return float((value.double() - wanted.double()).norm() / wanted.double().norm())


def refuses(call, *parts):
    """The call raises a ValueError or TypeError of one sentence that holds all parts."""
    try:
        call()
    except (ValueError, TypeError) as error:
        text = str(error)
        for part in parts:
            assert part in text, f"{part!r} is not in: {text}"
        assert "\n" not in text and text.rstrip().endswith("."), text
        return
    raise AssertionError(f"nothing was refused; expected {parts}")


class Counter:
    """Sees the calls of a model's network through the host's own wrapper option; may interrupt after some."""

    def __init__(self, model, interrupt_after=None):
        self.model = model.clone()
        self.calls = 0
        self.first = None
        self.interrupt_after = interrupt_after
        self.model.set_model_unet_function_wrapper(self)

    def __deepcopy__(self, memo):
        return self

    def __call__(self, apply_model, args):
        self.calls += 1
        if self.first is None:
            self.first = args["input"].clone()
        answer = apply_model(args["input"], args["timestep"], **args["c"])
        if self.calls == self.interrupt_after:
            comfy.model_management.interrupt_current_processing(True)
        return answer


@contextlib.contextmanager
def no_interrupt():
    """Leave no interrupt pending for the next check."""
    try:
        yield
    finally:
        comfy.model_management.interrupt_current_processing(False)


def snapshot(model):
    """Bits of the weights and the shape of the options of a MODEL."""
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    return weights, repr(model.model_options), sorted(map(str, model.object_patches))


def same_snapshot(model, before):
    """The MODEL has the weights and options of the snapshot."""
    weights, options, patches = before
    now = model.model.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[name], weights[name]) for name in weights), "weights changed"
    assert repr(model.model_options) == options and sorted(map(str, model.object_patches)) == patches
