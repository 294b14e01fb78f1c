"""Few steps: the host's LCM sampling under InfEdit and the inversions, and the LCM-LoRA of the eps demo model."""

import functools
import logging
import shutil
from pathlib import Path

import comfy.model_management
import comfy.samplers
import folder_paths
import nodes
import torch
from helpers import Counter, refuses, relative, same_snapshot, snapshot

STEPS = 4
PAIRS = ("EDICTCouple", "BDIAInvert", "BELMInvert")
# The host's LCM sampling knows only these timesteps.
TIMESTEPS = set(range(19, 1000, 20))
# Few steps are long ones, which enlarge the rounding of the float32 network; seen on tiny SDXL: 2e-6.
EXACT = 1e-5
WORDS = {"size": "big", "colour": "red", "shape": "circle", "position": "left", "background": "blue"}


def _lcm(model):
    """The MODEL behind the core node ModelSamplingDiscrete, set to lcm."""
    node = nodes.NODE_CLASS_MAPPINGS.get("ModelSamplingDiscrete")
    if node is None:
        import comfy_extras.nodes_model_advanced as advanced

        node = advanced.ModelSamplingDiscrete
    return node().patch(model, "lcm", False)[0]


class _Timesteps(Counter):
    """Sees the timesteps that the network is told."""

    def __init__(self, model):
        super().__init__(model)
        self.seen = set()

    def __call__(self, apply_model, args):
        sampling = self.model.get_model_object("model_sampling")
        self.seen |= {round(float(t)) for t in sampling.timestep(args["timestep"])}
        return super().__call__(apply_model, args)


def _invert(pack, node_id, kind, model, latent, source=None, **changes):
    inputs = {
        "model": model,
        "source": pack.tiny.conditioning(kind) if source is None else source,
        "latent": latent,
        "steps": STEPS,
        "scheduler": "sgm_uniform",
        "cfg": 1.0,
        "strength": 1.0,
        **changes,
    }
    return pack.call(node_id, **inputs)


def check_lcm_pairs_come_back(pack):
    """The pairs are exact whatever the network answers: few steps and many, a batch, not square, guided."""
    for kind in ("sd15", "sdxl"):
        negative = pack.tiny.conditioning(kind, seed=5)
        for node_id in PAIRS:
            for steps, changes in ((STEPS, {}), (20, {}), (STEPS, {"cfg": 2.0, "negative": negative})):
                spy = _Timesteps(_lcm(pack.tiny.model(kind)))
                latent = pack.tiny.latent(kind, batch=2)
                linked, _ = _invert(pack, node_id, kind, spy.model, latent, steps=steps, **changes)
                (back,) = pack.call("Resample", model=spy.model, inversion=linked, **{"cfg": 1.0, **changes})
                error = relative(back["samples"], latent["samples"])
                assert error <= EXACT, (kind, node_id, steps, changes, error)
                assert spy.seen and spy.seen <= TIMESTEPS, (node_id, spy.seen)


def check_lcm_pair_edits_inside_a_mask(pack):
    """A pair of the few-step model plays towards a target; outside the mask it is the source bit for bit."""
    for node_id in PAIRS:
        model, latent = _lcm(pack.tiny.model("sd15")), pack.tiny.latent("sd15", batch=2)
        linked, _ = _invert(pack, node_id, "sd15", model, latent)
        mask = torch.zeros(1, 64, 96)
        mask[:, 16:48, 16:48] = 1.0
        target = pack.tiny.conditioning("sd15", seed=9)
        (edited,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0, positive=target, mask=mask)
        inside = torch.zeros_like(latent["samples"], dtype=torch.bool)
        inside[..., 2:6, 2:6] = True
        assert torch.equal(edited["samples"][~inside], latent["samples"][~inside]), node_id
        assert not torch.equal(edited["samples"][inside], latent["samples"][inside]), node_id


def check_lcm_infedit(pack):
    """Four steps: equal prompts are the identity, guided too; rows of a batch stand alone; it asks trained levels."""
    for kind in ("sd15", "sdxl"):
        spy = _Timesteps(_lcm(pack.tiny.model(kind)))
        latent = pack.tiny.latent(kind, batch=2)
        source, target = pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, seed=9)

        def edit(to, z=latent, model=spy.model, kind=kind, seed=3, **changes):
            inputs = {
                "model": model,
                "source": pack.tiny.conditioning(kind),
                "target": to,
                "latent": z,
                "steps": STEPS,
                "scheduler": "sgm_uniform",
                "source_cfg": 1.0,
                "target_cfg": 1.0,
                "strength": 1.0,
                "eta": 1.0,
                "seed": seed,
                **changes,
            }
            return pack.call("InfEdit", **inputs)[0]["samples"]

        guided = {"source_cfg": 1.5, "target_cfg": 1.5, "negative": pack.tiny.conditioning(kind, seed=5)}
        for changes in ({}, guided):
            error = relative(edit(source, **changes), latent["samples"])
            assert error < 1e-6, (kind, changes.keys(), error)
        together = edit(target)
        assert bool(together.isfinite().all()) and relative(together, latent["samples"]) > 1e-3, kind
        for row in range(2):
            alone = edit(target, {"samples": latent["samples"][row : row + 1]}, seed=3 + row)
            assert relative(together[row : row + 1], alone) < 1e-4, (kind, row)
        assert spy.seen <= TIMESTEPS and len(spy.seen) == STEPS, spy.seen


class _Warnings(logging.Handler):
    """Keeps what the host warns of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def __enter__(self):
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *error):
        logging.getLogger().removeHandler(self)


def _stock_loader(pack, model):
    """The MODEL with the LoRA by LoraLoaderModelOnly from models/loras, and what the host warned of."""
    name = "shapes_lcm.safetensors"
    folder = folder_paths.get_folder_paths("loras")[0]
    Path(folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(pack.module("demo.models").LCM_LORA, f"{folder}/{name}")
    assert str(pack.workspace) in folder, "the scratch directory is where the file goes"
    assert name in nodes.NODE_CLASS_MAPPINGS["LoraLoaderModelOnly"].INPUT_TYPES()["required"]["lora_name"][0]
    with _Warnings() as warned, torch.inference_mode():
        (patched,) = nodes.NODE_CLASS_MAPPINGS["LoraLoaderModelOnly"]().load_lora_model_only(model, name, 1.0)
    return patched, warned.lines


@functools.cache
def _shapes(pack, lcm=False):
    return pack.call("LoadShapesModel", kind="eps", lcm=lcm)


def _encode(clip, text):
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def _drawn(model, clip, vae, captions, steps=STEPS, cfg=1.0):
    """Pictures of stock nodes: KSampler lcm on empty latents."""
    pictures = []
    for seed, caption in enumerate(captions):
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        with torch.inference_mode():
            (out,) = nodes.KSampler().sample(
                model, seed, steps, cfg, "lcm", "sgm_uniform", _encode(clip, caption), _encode(clip, ""), latent
            )
            pictures.append(nodes.VAEDecode().decode(vae, out)[0])
    return (torch.cat(pictures).clamp(0, 1) * 255).round().byte().numpy()


def check_lcm_lora_loads_in_the_stock_loader(pack):
    """Every key of the file has its layer, the node's switch does the same, and the model stays as it was."""
    model, clip, vae = pack.call("LoadShapesModel", kind="eps")
    before = snapshot(model)
    patched, warned = _stock_loader(pack, model)
    assert not warned, warned
    tensors = comfy.utils.load_torch_file(str(pack.module("demo.models").LCM_LORA), safe_load=True)
    assert len(patched.patches) == len({name.split(".")[0] for name in tensors}) > 100
    captions = ["a big red circle on the left of a blue background"]
    by_stock = _drawn(_lcm(patched), clip, vae, captions)
    by_switch = _drawn(_lcm(_shapes(pack, True)[0]), clip, vae, captions)
    without = _drawn(_lcm(model), clip, vae, captions)
    assert (by_stock == by_switch).all() and (by_stock != without).any()
    comfy.model_management.unload_all_models()
    same_snapshot(model, before)


def check_lcm_lora_is_that_of_diffusers(pack):
    """denoised under the host's LCM sampling is that of the diffusers network with the LoRA added, to 1e-4."""
    lcm = pack.module("demo.lcm")
    theirs = pack.module("demo.models").load("eps")
    lcm.apply(theirs.denoiser)
    model, clip, _ = _shapes(pack, True)
    model = _lcm(model)
    caption = "a small yellow star on a purple background"
    sampling = model.get_model_object("model_sampling")
    noise = torch.randn((1, 4, 16, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ask = pack.module("demo.measure").denoiser(theirs, [caption], 1.0)
        for timestep in (999, 499, 99):
            sigma = float(sampling.sigma(torch.tensor(float(timestep))))
            x = noise * (1 + sigma**2) ** 0.5
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(_encode(clip, caption), _encode(clip, ""))
            guider.set_cfg(1.0)
            probe = pack.module("nodes.host.session").ScriptSampler(
                lambda run, x=x, sigma=sigma: run.denoiser()(x.double(), sigma), standing_in=True
            )
            zeros = torch.zeros_like(x)
            guider.sample(zeros, zeros, probe, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
            error = relative(probe.result, ask(x, sigma, timestep))
            assert error < 1e-4, (timestep, error)


def check_lcm_levels_are_the_hosts(pack):
    """What the standalone measurement asks is what stock nodes ask: sigmas to 1e-4, and the nearest timesteps."""
    sampling = _lcm(pack.tiny.model("sd15")).get_model_object("model_sampling")
    for steps in (1, 2, 4, 8):
        timesteps, sigmas = pack.module("demo.lcm").levels(steps)
        wanted = comfy.samplers.calculate_sigmas(sampling, "sgm_uniform", steps)
        assert torch.allclose(torch.tensor(sigmas), wanted, rtol=1e-4), (steps, sigmas, wanted)
        # Halfway between two of the 50 timesteps rounding decides.
        halfway = 0.51 * pack.module("demo.lcm").SKIP
        for mine, asked in zip(timesteps, torch.linspace(999.0, 19.0, steps + 1).tolist()):
            assert abs(mine - asked) <= halfway and mine in TIMESTEPS, (steps, mine, asked)
        hosts = sampling.timestep(wanted[:-1]).tolist()
        assert all(abs(mine - host) in (0, 20) for mine, host in zip(timesteps, hosts)), (steps, timesteps, hosts)


def check_lcm_lora_draws_in_four_steps(pack):
    """Held-out captions read right after four calls of the stock sampler lcm without guidance."""
    measure = pack.module("demo.measure")
    scenes = measure.unseen(12, seed=3)
    model, clip, vae = _shapes(pack, True)
    pictures = _drawn(_lcm(model), clip, vae, [scene.caption for scene in scenes])
    found = measure.verdicts(scenes, pictures)
    right = sum(all(column[i] for column in found.values()) for i in range(len(scenes)))
    assert right >= 11, (right, found)


def _source(pack, vae):
    """A picture with its mask, caption and latent."""
    picture, mask, caption = pack.call("ShapesPicture", **WORDS, seed=5, batch_size=1)
    with torch.inference_mode():
        return picture, mask, caption, nodes.VAEEncode().encode(vae, picture)[0]


def check_lcm_fixed_point_comes_nearer(pack):
    """On the few-step model: more iterations leave a smaller residual and a nearer round trip, also in four steps.

    An untrained network is no test: the first step solves denoised(x) = source, which needs a network that denoises.
    """
    model, clip, vae = _shapes(pack, True)
    *_, caption, latent = _source(pack, vae)
    spy = _Timesteps(_lcm(model))
    for steps in (STEPS, 12):
        found = []
        for iterations in (1, 4, 12):
            (linked, *_, residual, _) = _invert(
                pack, "FixedPointInvert", "sd15", spy.model, latent, steps=steps, iterations=iterations,
                source=_encode(clip, caption),
            )  # fmt: skip
            (back,) = pack.call("Resample", model=spy.model, inversion=linked, cfg=1.0)
            found.append((relative(back["samples"], latent["samples"]), residual))
        errors, residuals = zip(*found)
        assert errors[2] < 0.5 * errors[1] and errors[1] < 0.5 * errors[0], (steps, errors)
        assert residuals[2] < 0.5 * residuals[1] and residuals[1] < 0.5 * residuals[0], (steps, residuals)
        assert errors[2] < 0.02, (steps, errors)
    assert spy.seen <= TIMESTEPS, spy.seen


def check_lcm_pairs_come_back_on_the_lora(pack):
    """Four steps of a trained few-step model, up and back: exact, and the noise not run away."""
    model, clip, vae = _shapes(pack, True)
    *_, caption, latent = _source(pack, vae)
    model, core = _lcm(model), pack.module("inversion")
    for node_id in PAIRS:
        linked, _ = _invert(pack, node_id, "sd15", model, latent, source=_encode(clip, caption))
        (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
        error = relative(back["samples"], latent["samples"])
        assert error <= EXACT, (node_id, error)
        record = linked
        std = core.noise_std(record.x, record.x0, record.sigma, record.space)
        assert 0.4 < std < 4.0, (node_id, std)


def check_lcm_lora_edits_in_four_steps(pack):
    """InfEdit with the LoRA changes the word that differs, in four steps at cfg 1, and keeps the rest."""
    world, reader = pack.module("demo.world"), pack.module("demo.reader")
    model, clip, vae = _shapes(pack, True)
    picture, mask, caption, latent = _source(pack, vae)
    for change in ({"colour": "green"}, {"background": "white"}, {"shape": "square"}, {"position": "right"}):
        wanted = world.parse(caption).changed(**change)
        (edited,) = pack.call(
            "InfEdit",
            model=_lcm(model),
            source=_encode(clip, caption),
            target=_encode(clip, wanted.caption),
            latent=latent,
            steps=STEPS,
            scheduler="sgm_uniform",
            source_cfg=1.0,
            target_cfg=1.0,
            strength=1.0,
            eta=1.0,
            seed=0,
        )
        with torch.inference_mode():
            pixels = nodes.VAEDecode().decode(vae, edited)[0]
        seen = reader.read((pixels[0].clamp(0, 1) * 255).round().byte().numpy())
        for name in WORDS:
            assert getattr(seen, name) == getattr(wanted, name), (change, name, getattr(seen, name))
        if "colour" in change:
            error = (pixels[0] - picture[0])[mask[0] == 0].square().mean().sqrt()
            assert float(error) < 0.08, float(error)


def check_lcm_switch_refuses(pack):
    """The flow model, a missing file, half a file and a foreign one are one sentence each."""
    node = pack.node("LoadShapesModel")
    assert (
        node.validate_inputs(kind="flow", lcm=True) == "kind must be eps for the LCM LoRA, got 'flow'; switch lcm off."
    )
    assert node.validate_inputs(kind="flow", lcm=False) is True and node.validate_inputs(kind="eps", lcm=True) is True
    assert node.validate_inputs() is True and node.validate_inputs(lcm=True) is True
    refuses(lambda: pack.call("LoadShapesModel", kind="flow", lcm=True), "kind must be eps for the LCM LoRA")
    assert not _shapes(pack)[0].patches
    shapes, models = pack.module("nodes.shapes.models"), pack.module("demo.models")
    copy = pack.workspace / "lcm_weights"
    path = copy / models.LCM_LORA.relative_to(models.WEIGHTS)
    path.parent.mkdir(parents=True)

    def load():
        return shapes.with_lcm_lora(_shapes(pack)[0], "eps", copy)

    refuses(load, "demo models must lie in", "install the pack again")
    whole = models.LCM_LORA.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuses(load, "demo models must lie in", "install the pack again")
    shutil.copy(models.WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors", path)
    refuses(load, "LoRA in", "must fit the demo model, got 0 layers")
