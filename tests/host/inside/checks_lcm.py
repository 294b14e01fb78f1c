"""Few steps: the host's LCM sampling under InfEdit and the inversions, and the LCM-LoRA of the eps demo model."""

import logging
import shutil
from pathlib import Path

import comfy.model_management
import comfy.samplers
import folder_paths
import nodes
import torch
from helpers import Counter, logged, refuses, relative, same_snapshot, snapshot
from running import STEPS, WORDS, decode, edit, encode, play, seen, shapes

PAIRS = ("EDICTCouple", "BDIAInvert", "BELMInvert")
# The host's LCM sampling knows only these timesteps.
TIMESTEPS = set(range(19, 1000, 20))
# Few steps are long ones, which enlarge the rounding of the float32 network; seen on tiny SDXL: 2e-6.
EXACT = 1e-5


def lcm(model):
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


def check_lcm_edits_without_an_inversion(pack):
    """Equal prompts are the identity, guided too; rows of a batch stand alone; it asks trained levels of every grid."""
    for kind in ("sd15", "sdxl"):
        spy, latent = _Timesteps(lcm(pack.tiny.model(kind))), pack.tiny.latent(kind, batch=2)
        source, negative = pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, seed=5)
        guided = {"source_cfg": 1.5, "target_cfg": 1.5, "negative": negative}
        for node in ("InfEdit", "FlowEdit"):

            def of(z=latent, model=spy.model, kind=kind, node=node, **changes):
                return edit(pack, node, kind, model, z, **{"scheduler": "sgm_uniform", **changes})

            spy.seen.clear()
            for changes in ({}, guided):
                error = relative(of(target=source, **changes), latent["samples"])
                assert error < 1e-6, (kind, node, changes.keys(), error)
            together = of()
            assert bool(together.isfinite().all()) and relative(together, latent["samples"]) > 1e-3, (kind, node)
            assert relative(together, of(model=pack.tiny.model(kind))) > 1e-4, "LCM sampling has levels of its own"
            assert spy.seen <= TIMESTEPS and len(spy.seen) == STEPS, (node, spy.seen)
            for row in range(2):
                alone = of({"samples": latent["samples"][row : row + 1]}, seed=3 + row)
                assert relative(together[row : row + 1], alone) < 1e-4, (kind, node, row)
        for scheduler in comfy.samplers.SCHEDULER_NAMES:
            assert bool(edit(pack, "InfEdit", kind, spy.model, scheduler=scheduler).isfinite().all()), scheduler


def _stock_loader(pack, model):
    """The MODEL with the LoRA by LoraLoaderModelOnly from models/loras, of which the host warns with no word."""
    name, loader = "shapes_lcm.safetensors", nodes.NODE_CLASS_MAPPINGS["LoraLoaderModelOnly"]
    folder = folder_paths.get_folder_paths("loras")[0]
    Path(folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(pack.module("demo.models").LCM_LORA, f"{folder}/{name}")
    assert str(pack.workspace) in folder, "the scratch directory is where the file goes"
    assert name in loader.INPUT_TYPES()["required"]["lora_name"][0]
    with logged(logging.WARNING) as warned, torch.inference_mode():
        (patched,) = loader().load_lora_model_only(model, name, 1.0)
    assert not warned, [each.getMessage() for each in warned]
    return patched


def _drawn(model, clip, vae, captions):
    """Pictures of stock nodes: KSampler lcm on empty latents."""
    pictures = []
    for seed, caption in enumerate(captions):
        latent, prompts = {"samples": torch.zeros(1, 4, 16, 16)}, (encode(clip, caption), encode(clip, ""))
        with torch.inference_mode():
            (out,) = nodes.KSampler().sample(model, seed, STEPS, 1.0, "lcm", "sgm_uniform", *prompts, latent)
        pictures.append(decode(vae, out["samples"]))
    return (torch.cat(pictures).clamp(0, 1) * 255).round().byte().numpy()


def check_lcm_lora_loads_in_the_stock_loader(pack):
    """Every key of the file has its layer, the node's switch does the same, and the model stays as it was."""
    model, clip, vae = pack.call("LoadShapesModel", kind="eps")
    before, patched = snapshot(model), _stock_loader(pack, model)
    tensors = comfy.utils.load_torch_file(str(pack.module("demo.models").LCM_LORA), safe_load=True)
    assert len(patched.patches) == len({name.split(".")[0] for name in tensors}) > 100
    by_stock, by_switch, without = (
        _drawn(lcm(each), clip, vae, ["a big red circle on the left of a blue background"])
        for each in (patched, shapes(pack, "eps", True)[0], model)
    )
    assert (by_stock == by_switch).all() and (by_stock != without).any()
    comfy.model_management.unload_all_models()
    same_snapshot(model, before)


def check_lcm_levels_are_the_hosts(pack):
    """What the standalone measurement asks is what stock nodes ask: sigmas to 1e-4, and the nearest timesteps."""
    sampling = lcm(pack.tiny.model("sd15")).get_model_object("model_sampling")
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
    model, clip, vae = shapes(pack, "eps", True)
    verdicts = measure.verdicts(scenes, _drawn(lcm(model), clip, vae, [scene.caption for scene in scenes]))
    right = sum(all(column[i] for column in verdicts.values()) for i in range(len(scenes)))
    assert right >= 11, (right, verdicts)


def _source(pack):
    """The few-step model, a picture with its mask and caption, and the inputs of a walk on it."""
    model, clip, vae = shapes(pack, "eps", True)
    picture, mask, caption = pack.call("ShapesPicture", **WORDS, seed=5)
    with torch.inference_mode():
        latent = nodes.VAEEncode().encode(vae, picture)[0]
    model = lcm(model)
    given = {"model": model, "source": encode(clip, caption), "latent": latent, "scheduler": "sgm_uniform"}
    return model, clip, vae, picture, mask, caption, given


def check_lcm_pairs_on_the_lora(pack):
    """On a trained few-step model pairs are exact at the levels that it knows, guided too; the noise stays noise."""
    model, clip, *_, given = _source(pack)
    std, spy = pack.module("inversion").noise_std, _Timesteps(model)
    for node, steps, cfg in ((node, *how) for node in PAIRS for how in ((STEPS, 1.0), (20, 1.0), (STEPS, 2.0))):
        guided = {"cfg": cfg, "negative": encode(clip, "")}
        inversion, _ = pack.call(node, **{**given, "model": spy.model, "steps": steps, **guided})
        error = relative(play(pack, spy.model, inversion), given["latent"]["samples"])
        assert error <= EXACT, (node, steps, cfg, error)
        noise = std(inversion.x, inversion.x0, inversion.sigma, inversion.space)
        assert cfg > 1.0 or 0.4 < noise < 4.0, (node, steps, noise)
    assert spy.seen and spy.seen <= TIMESTEPS, spy.seen


def check_lcm_lora_edits_in_four_steps(pack):
    """InfEdit with the LoRA changes the word that differs, in four steps at cfg 1, and keeps the rest."""
    _, clip, vae, picture, mask, caption, given = _source(pack)
    for change in ({"colour": "green"}, {"background": "white"}, {"shape": "square"}, {"position": "right"}):
        wanted = pack.module("demo.world").parse(caption).changed(**change)
        (edited,) = pack.call("InfEdit", target=encode(clip, wanted.caption), **given)
        pixels = decode(vae, edited["samples"])[0]
        read = seen(pack, pixels)
        for name in WORDS:
            assert getattr(read, name) == getattr(wanted, name), (change, name, getattr(read, name))
        if "colour" in change:
            error = (pixels - picture[0])[mask[0] == 0].square().mean().sqrt()
            assert float(error) < 0.08, float(error)
    same = pack.call("InfEdit", target=given["source"], **given)[0]["samples"]
    assert relative(same, given["latent"]["samples"]) < 1e-6


def check_lcm_switch_refuses(pack):
    """The flow model, a missing file, half a file and a foreign one are one sentence each."""
    node, said = pack.node("LoadShapesModel"), "kind must be eps for the LCM LoRA, got 'flow'; switch lcm off."
    assert node.validate_inputs(kind="flow", lcm=True) == said
    for passes in ({"kind": "flow", "lcm": False}, {"kind": "eps", "lcm": True}, {}, {"lcm": True}):
        assert node.validate_inputs(**passes) is True, passes
    refuses(lambda: pack.call("LoadShapesModel", kind="flow", lcm=True), said)
    assert not shapes(pack)[0].patches
    models, copy = pack.module("demo.models"), pack.workspace / "lcm_weights"
    path = copy / models.LCM_LORA.relative_to(models.WEIGHTS)
    path.parent.mkdir(parents=True)

    def load():
        return pack.module("nodes.shapes.models").with_lcm_lora(shapes(pack)[0], "eps", copy)

    refuses(load, "demo models must lie in", "install the pack again")
    whole = models.LCM_LORA.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuses(load, "demo models must lie in", "install the pack again")
    shutil.copy(models.WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors", path)
    refuses(load, "LoRA in", "must fit the demo model, got 0 layers")
