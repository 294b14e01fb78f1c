"""What checks do with the nodes of the pack and of the host: walks, edits, and the Shapes world."""

import functools

import comfy.samplers
import nodes
import torch

STEPS = 4
WORDS = dict(size="big", colour="red", shape="circle", position="left", background="blue")


def invert(pack, kind, batch=1, model=None, latent=None, node="Invert", **changes):
    """Run a node that inverts, on a tiny model; returns (model, source, latent, outputs)."""
    model = pack.tiny.model(kind) if model is None else model
    latent = pack.tiny.latent(kind, batch=batch) if latent is None else latent
    inputs = {"source": pack.tiny.conditioning(kind), **changes}
    return model, inputs["source"], latent, pack.call(node, model=model, latent=latent, **inputs)


def play(pack, model, inversion, **changes):
    """Samples of Resample: the reconstruction, at cfg 1 where nothing else is said."""
    return pack.call("Resample", model=model, inversion=inversion, **changes)[0]["samples"]


def edit(pack, node, kind, model=None, latent=None, **changes):
    """Samples of InfEdit or FlowEdit on a tiny model."""
    model = pack.tiny.model(kind) if model is None else model
    latent = pack.tiny.latent(kind) if latent is None else latent
    prompts = {name: pack.tiny.conditioning(kind, seed) for name, seed in (("source", 0), ("target", 9))}
    return pack.call(node, model=model, latent=latent, **{**prompts, "seed": 3, **changes})[0]["samples"]


def fit(pack, model, inversion, negative, **changes):
    """What NullTextOptimize gives after a few updates that nothing stops."""
    inputs = {"cfg": 3.0, "inner_steps": 3, "stop": 0.0, "stop_growth": 0.0, **changes}
    return pack.call("NullTextOptimize", model=model, inversion=inversion, negative=negative, **inputs)


def reloaded(pack, inversion):
    """An inversion as it comes back from a file."""
    (name,) = pack.call("SaveInversion", inversion=inversion, filename_prefix="retrace/reloaded")
    return pack.call("LoadInversion", file=name)[0]


def resuming(pack, inversion, sampler_name="same as inversion", **changes):
    """InversionSampler's SAMPLER."""
    return pack.call("InversionSampler", inversion=inversion, sampler_name=sampler_name, **changes)[0]


@functools.cache
def shapes(pack, kind="eps", lcm=False):
    """Model, CLIP and VAE of the Shapes world."""
    return pack.call("LoadShapesModel", kind=kind, lcm=lcm)


def encode(clip, text):
    """CLIPTextEncode's CONDITIONING."""
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def decode(vae, samples):
    """The IMAGE of a latent."""
    with torch.inference_mode():
        return vae.decode(samples)


def rendered(pack, vae, scenes, seed):
    """LATENT, IMAGE and true masks of scenes of the Shapes world."""
    pixels, masks = pack.module("demo.world").render(scenes, seed)
    image = torch.from_numpy(pixels) / 255
    with torch.inference_mode():
        return {"samples": vae.encode(image)}, image, torch.from_numpy(masks)


def seen(pack, image):
    """What the rule-based reader sees in a picture of the Shapes world."""
    return pack.module("demo.reader").read((image.clamp(0, 1) * 255).round().byte().numpy())


def trained(pack, kind, seed=1):
    """A model of the Shapes world, the prompt of a picture of it and the empty one, and the picture's latent."""
    model, clip, vae = pack.call("LoadShapesModel", kind=kind)
    picture, _, caption = pack.call("ShapesPicture", **WORDS, seed=seed)[:3]
    with torch.inference_mode():
        return model, [encode(clip, text) for text in (caption, "")], {"samples": vae.encode(picture)}


def advanced(model, positive, sampler, sigmas, latent, noise=None, negative=None, cfg=1.0):
    """What SamplerCustomAdvanced does with a stock guider; noise None is DisableNoise."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive if negative is None else negative)
    guider.set_cfg(cfg)
    return sampled(guider, sampler, sigmas, latent, noise)


def sampled(guider, sampler, sigmas, latent, noise=None):
    """What SamplerCustomAdvanced does with a guider."""
    samples, mask = latent["samples"], latent.get("noise_mask")
    drawn = torch.zeros_like(samples) if noise is None else noise.generate_noise(latent)
    with torch.inference_mode():
        return guider.sample(drawn, samples, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=0)


class Fresh:
    """A NOISE that knows no inversion, or one of given numbers."""

    def __init__(self, numbers=None):
        self.numbers = numbers

    def generate_noise(self, latent):
        if self.numbers is not None:
            return self.numbers
        return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(8))


def middle(latent):
    """A mask in pixels, and the cells that it covers."""
    mask = torch.zeros(1, 64, 96)
    mask[:, 16:48, 16:48] = 1.0
    inside = torch.zeros_like(latent["samples"], dtype=torch.bool)
    inside[..., 2:6, 2:6] = True
    return mask, inside


def controlled(pack, kind, prompts, seed=1):
    """Prompts behind the stock node that applies a ControlNet, and the ControlNet."""
    control = pack.tiny.control_net(kind)
    image = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(seed))
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    return [apply(prompt, prompt, control, image, 0.5, 0.0, 1.0)[0] for prompt in prompts], control
