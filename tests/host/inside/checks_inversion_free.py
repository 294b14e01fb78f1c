"""InfEdit and FlowEdit in the host: on every kind of model, from both demo models, and with LCM sampling."""

import functools
import itertools

import comfy.model_management
import comfy.samplers
import nodes
import torch
from helpers import Counter, no_interrupt, refuses, relative, same_snapshot, snapshot

STEPS = 4
INPUTS = {"InfEdit": {"strength": 1.0, "eta": 1.0}, "FlowEdit": {"n_max": STEPS, "n_avg": 1, "n_min": 0}}


def _edit(pack, node, kind, model=None, latent=None, target_seed=9, **changes):
    """Run a node on a tiny model; returns (source latent, result)."""
    latent = pack.tiny.latent(kind) if latent is None else latent
    inputs = {
        "model": pack.tiny.model(kind) if model is None else model,
        "source": pack.tiny.conditioning(kind),
        "target": pack.tiny.conditioning(kind, seed=target_seed),
        "latent": latent,
        "steps": STEPS,
        "scheduler": "simple",
        "source_cfg": 1.0,
        "target_cfg": 1.0,
        "seed": 3,
        **INPUTS[node],
        **changes,
    }
    (out,) = pack.call(node, **inputs)
    return latent["samples"], out["samples"]


def check_inversion_free_equal_prompts_give_the_source_back(pack):
    """Bit for bit at float32: on eps, v and flow models, pictures and clips, batches, with and without guidance."""
    for node in INPUTS:
        for kind in pack.tiny.KINDS:
            model, negative = pack.tiny.model(kind), pack.tiny.conditioning(kind, seed=5)
            for cfg in (1.0, 3.0):
                before, after = _edit(
                    pack,
                    node,
                    kind,
                    model,
                    pack.tiny.latent(kind, batch=2),
                    target_seed=0,
                    source_cfg=cfg,
                    target_cfg=cfg,
                    negative=negative,
                )
                assert relative(after, before) < 1e-6, (node, kind, cfg, relative(after, before))


def check_inversion_free_edits(pack):
    """Another prompt or guidance changes the latent; the seed decides how, and the queue repeats bit for bit."""
    for node in INPUTS:
        for kind in pack.tiny.KINDS:
            model, negative = pack.tiny.model(kind), pack.tiny.conditioning(kind, seed=5)
            before, first = _edit(pack, node, kind, model)
            assert first.shape == before.shape and first.dtype == before.dtype and bool(first.isfinite().all())
            assert relative(first, before) > 1e-3, (node, kind)
            torch.manual_seed(77)
            assert torch.equal(_edit(pack, node, kind, model)[1], first), (node, kind)
            assert relative(_edit(pack, node, kind, model, seed=4)[1], first) > 1e-4, (node, kind)
            _, guided = _edit(pack, node, kind, model, target_cfg=2.3, negative=negative)
            assert relative(guided, first) > 1e-4, (node, kind)
            _, guided = _edit(pack, node, kind, model, target_seed=0, target_cfg=2.3, negative=negative)
            assert relative(guided, before) > 1e-4, (node, kind)


def check_inversion_free_evaluates_as_the_method_says(pack):
    """Calls of the network: each branch once a level, twice where it is guided, no two prompts share a forward."""
    for node, changes, calls in (
        ("InfEdit", {}, 2 * STEPS),
        ("InfEdit", {"strength": 0.5}, STEPS),
        ("InfEdit", {"target_cfg": 2.0}, 3 * STEPS),
        ("InfEdit", {"source_cfg": 3.0, "target_cfg": 2.0}, 4 * STEPS),
        ("FlowEdit", {"n_avg": 3}, 6 * STEPS),
        ("FlowEdit", {"n_max": 3, "n_min": 1, "n_avg": 2}, 2 * 2 * 2 + 1),
    ):
        for kind in ("sd15", "sd3"):
            counter = Counter(pack.tiny.model(kind))
            negative = pack.tiny.conditioning(kind, seed=5)
            _edit(pack, node, kind, counter.model, negative=negative, **changes)
            assert counter.calls == calls, (node, kind, changes, counter.calls)


def _stock_denoiser(pack, model, space, positive, negative, cfg):
    """The model under one prompt, where each call is a run of a stock guider of its own."""
    core, session = pack.module("inversion"), pack.module("nodes.host.session")

    def denoise(x, sigma):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        probe = session.ScriptSampler(lambda run: run.denoiser()(x, sigma), standing_in=True)
        zeros = torch.zeros_like(x, dtype=torch.float32)
        with torch.inference_mode():
            guider.sample(zeros, zeros, probe, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
        return probe.result

    floor = pack.module("nodes.host.parametrisation").sigma_floor(
        model.get_model_object("model_sampling"), space, torch.float64
    )
    return core.Denoiser(denoise, space, floor)


def check_inversion_free_follows_the_core(pack):
    """The node gives what the core gives on two stock guiders, one for each prompt."""
    core, latents = pack.module("inversion"), pack.module("nodes.host.latents")
    for node, rule in (("InfEdit", core.InfEdit()), ("FlowEdit", core.FlowEdit())):
        for kind, space in (("sd15_v", "ve"), ("flux", "flow"), ("wan", "flow")):
            model, negative = pack.tiny.model(kind), pack.tiny.conditioning(kind, seed=5)
            latent = pack.tiny.latent(kind)
            levels = pack.module("nodes.host.schedule").rising_sigmas(model, "simple", STEPS)
            source = _stock_denoiser(pack, model, space, pack.tiny.conditioning(kind), negative, 1.5)
            target = _stock_denoiser(pack, model, space, pack.tiny.conditioning(kind, seed=9), negative, 2.5)
            clean = latents.into_model(model, latent["samples"])
            wanted = latents.out_of_model(model, rule.edit(source, target, clean, levels, STEPS, core.EditOptions(3)))
            _, result = _edit(pack, node, kind, model, latent, source_cfg=1.5, target_cfg=2.5, negative=negative)
            # Stock guiders may put both prompts into one forward, which rounds otherwise.
            assert relative(result, wanted) < 1e-4, (node, kind, relative(result, wanted))


def check_inversion_free_masks(pack):
    """Outside a mask the result is the source bit for bit, feathered and not, also where values are nearly zero."""
    masks = pack.module("nodes.host.masks")
    for node, extra in (("InfEdit", {}), ("FlowEdit", {}), ("FlowEdit", {"n_min": 2})):
        for kind in pack.tiny.KINDS:
            latent = pack.tiny.latent(kind, batch=2)
            latent["samples"][..., 0, :] = 0.0
            latent["samples"][..., 1, :] *= 1e-12
            mask = torch.zeros(1, 64, 96)
            mask[:, 19:45, 26:71] = 1.0
            for feather in (0, 6):
                before, after = _edit(pack, node, kind, latent=latent, mask=mask, feather=feather, **extra)
                cells = masks.on_latent_grid(mask, before.shape, feather)
                outside = (cells == 0).expand_as(before)
                assert torch.equal(after[outside], before[outside]), (node, kind, feather)
                assert 0.9 < float((after != before)[~outside].float().mean()), (node, kind)
                assert 0.1 < float(outside.float().mean()) < 0.95


def check_inversion_free_rows_are_independent(pack):
    """Row r of a batch is the single picture with seed + r, and what LatentFromBatch cuts out of it."""
    for node in INPUTS:
        for kind in pack.tiny.KINDS:
            model, both = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
            _, together = _edit(pack, node, kind, model, both)
            for row in range(2):
                one = {"samples": both["samples"][row : row + 1]}
                _, alone = _edit(pack, node, kind, model, one, seed=3 + row)
                assert relative(together[row : row + 1], alone) < 1e-4, (node, kind, row)
                if both["samples"].ndim == 4:
                    (cut,) = nodes.LatentFromBatch().frombatch(both, row, 1)
                    assert torch.equal(_edit(pack, node, kind, model, cut)[1], alone), (node, kind, row)


def check_inversion_free_leaves_everything_as_it_was(pack):
    """Neither model nor inputs change; other entries of the LATENT are handed on."""
    for node in INPUTS:
        for kind in pack.tiny.KINDS:
            model, latent = pack.tiny.model(kind), pack.tiny.latent(kind)
            source, target = pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, seed=9)
            before, kept = snapshot(model), latent["samples"].clone()
            conds = [source[0][0].clone(), target[0][0].clone()]
            masked = {**latent, "noise_mask": torch.ones(1, 8, 12), "downscale_ratio_spacial": 8}
            (out,) = pack.call(
                node,
                model=model,
                source=source,
                target=target,
                latent=masked,
                steps=STEPS,
                scheduler="simple",
                source_cfg=1.0,
                target_cfg=1.0,
                seed=3,
                **INPUTS[node],
            )
            same_snapshot(model, before)
            assert torch.equal(latent["samples"], kept) and set(out) == {"samples", "noise_mask"}
            assert torch.equal(out["samples"], _edit(pack, node, kind, model, latent)[1]), "a noise mask is not used"
            assert torch.equal(source[0][0], conds[0]) and torch.equal(target[0][0], conds[1])


def check_inversion_free_interrupt_and_progress(pack):
    """An interrupt ends a run within one model call; progress counts the levels and shows finite pictures."""
    session, core = pack.module("nodes.host.session"), pack.module("inversion")
    for node in INPUTS:
        with no_interrupt():
            counter = Counter(pack.tiny.model("sd15"), interrupt_after=3)
            try:
                _edit(pack, node, "sd15", counter.model)
            except comfy.model_management.InterruptProcessingException:
                pass
            else:
                raise AssertionError("the run went on")
            assert counter.calls == 3, counter.calls
        _edit(pack, node, "sd15")
    seen = []

    def script(run):
        rule = core.FlowEdit(n_min=2)
        clean = torch.randn(1, 16, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        source, target = run.denoiser("source"), run.denoiser("target")
        return rule.edit(source, target, clean, (0.0, 0.25, 0.5, 1.0), 3, core.EditOptions(on_step=run.tell))

    sampler = session.ScriptSampler(script, standing_in=True)
    prompts = {name: pack.tiny.conditioning("sd3", seed=seed) for name, seed in (("source", 0), ("target", 9))}
    guider = session.Guider(pack.tiny.model("sd3"), {name: session.Branch(prompt) for name, prompt in prompts.items()})
    with torch.inference_mode():
        guider.sample(
            torch.zeros(1, 16, 8, 12),
            torch.ones(1, 16, 8, 12),
            sampler,
            torch.tensor([1.0, 0.5, 0.25, 0.0]),
            callback=lambda index, x0, x, total: seen.append((index, total, x0.dtype, bool(x0.isfinite().all()))),
            disable_pbar=True,
            seed=0,
        )
    assert seen == [(index, 3, torch.float32, True) for index in range(3)], seen


def _lcm(model):
    """The MODEL under the host's LCM sampling."""
    node = nodes.NODE_CLASS_MAPPINGS.get("ModelSamplingDiscrete")
    if node is None:
        import comfy_extras.nodes_model_advanced as advanced

        node = advanced.ModelSamplingDiscrete
    return node().patch(model, "lcm", False)[0]


def check_inversion_free_with_lcm_sampling(pack):
    """ModelSamplingDiscrete lcm is a model as any other: identity, edit and mask hold, at every scheduler."""
    for kind in ("sd15", "sdxl"):
        model = _lcm(pack.tiny.model(kind))
        for node in INPUTS:
            before, after = _edit(pack, node, kind, model, target_seed=0)
            assert relative(after, before) < 1e-6, (node, kind)
            before, after = _edit(pack, node, kind, model)
            assert bool(after.isfinite().all()) and relative(after, before) > 1e-3, (node, kind)
            plain = _edit(pack, node, kind)[1]
            assert relative(after, plain) > 1e-4, "LCM sampling has levels of its own"
        for scheduler in comfy.samplers.SCHEDULER_NAMES:
            _, after = _edit(pack, "InfEdit", kind, model, scheduler=scheduler)
            assert bool(after.isfinite().all()), scheduler


def check_inversion_free_takes_sigmas(pack):
    """SIGMAS of a scheduler node do what steps and scheduler do."""
    model = pack.tiny.model("sd3")
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    for node in INPUTS:
        wanted = _edit(pack, node, "sd3", model)[1]
        for given in (sigmas, sigmas.flip(0)):
            assert torch.equal(_edit(pack, node, "sd3", model, steps=30, sigmas=given)[1], wanted), node


def check_inversion_free_refusals(pack):
    """One sentence each, before the model runs."""
    for node in INPUTS:
        counter = Counter(pack.tiny.model("sd15"))

        def call(node=node, model=counter.model, **changes):
            return lambda: _edit(pack, node, "sd15", model, **changes)

        refuses(call(target_cfg=2.3), "target_cfg must be 1 without a negative, got 2.3")
        refuses(call(source_cfg=3.5), "source_cfg must be 1 without a negative, got 3.5")
        refuses(call(mask=torch.ones(3, 64, 96)), "mask must hold 1")
        refuses(call(latent={"samples": torch.full((1, 4, 8, 12), torch.nan)}), "latent must be finite")
        refuses(call(sigmas=torch.tensor([14.0, 3.0, 1.0])), "sigmas must reach 0")
        cached = counter.model.clone()
        cached.add_wrapper_with_key("outer_sample", "easycache", lambda executor, *a, **k: executor(*a, **k))
        refuses(call(model=cached), "got the cache patch 'easycache'")
        assert counter.calls == 0
    refuses(lambda: _edit(pack, "FlowEdit", "sd3", n_max=5), "n_max must lie between 1 and the number of steps 4")
    refuses(lambda: _edit(pack, "FlowEdit", "sd3", n_min=4), "n_min must be below n_max 4, got 4")


@functools.cache
def _shapes(pack, kind):
    return pack.call("LoadShapesModel", kind=kind)


# Edits of the demo models: one word of the caption changes. Settings as in the nodes' help.
DEMO = {
    "InfEdit": {
        "kind": "eps",
        "steps": 12,
        "scheduler": "sgm_uniform",
        "source_cfg": 1.0,
        "target_cfg": 2.3,
        "strength": 1.0,
        "eta": 1.0,
    },
    "FlowEdit": {
        "kind": "flow",
        "steps": 28,
        "scheduler": "simple",
        "source_cfg": 1.5,
        "target_cfg": 5.5,
        "n_max": 24,
        "n_avg": 1,
        "n_min": 0,
    },
}
WORDS = {"size": "big", "colour": "red", "shape": "circle", "position": "left", "background": "blue"}


def check_inversion_free_on_the_demo_models(pack):
    """The official settings change one word of a picture, as the rule-based reader sees it; equal prompts nothing."""
    world, reader = pack.module("demo.world"), pack.module("demo.reader")
    for node, settings in DEMO.items():
        settings = dict(settings)
        model, clip, vae = _shapes(pack, settings.pop("kind"))
        picture, mask, caption = pack.call("ShapesPicture", **WORDS, seed=5, batch_size=1)
        wanted = world.parse(caption).changed(colour="green")

        def encode(text, clip=clip):
            return nodes.CLIPTextEncode().encode(clip, text)[0]

        with torch.inference_mode():
            latent = nodes.VAEEncode().encode(vae, picture)[0]
        shared = {"model": model, "source": encode(caption), "latent": latent, "seed": 0, "negative": encode("")}
        (edited,) = pack.call(node, target=encode(wanted.caption), **shared, **settings)
        with torch.inference_mode():
            pixels = nodes.VAEDecode().decode(vae, edited)[0]
        seen = reader.read((pixels[0].clamp(0, 1) * 255).round().byte().numpy())
        for name in WORDS:
            assert getattr(seen, name) == getattr(wanted, name), (node, name, getattr(seen, name))
        # A picture of the model's own that only shares the prompt would differ everywhere.
        outside = mask[0] < 0.5
        error = (pixels[0] - picture[0])[outside].square().mean().sqrt()
        assert float(error) < 0.12, (node, float(error))
        settings["target_cfg"] = settings["source_cfg"]
        (same,) = pack.call(node, target=encode(caption), **shared, **settings)
        assert relative(same["samples"], latent["samples"]) < 1e-6, node


def check_inversion_free_lcm_on_the_demo_model(pack):
    """Four steps of the host's LCM sampling on the eps demo model run and edit."""
    model, clip, vae = _shapes(pack, "eps")
    picture, _, caption = pack.call("ShapesPicture", **WORDS, seed=5, batch_size=1)
    captions = (caption, caption.replace("red", "green"))
    source, target = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in captions)
    with torch.inference_mode():
        latent = nodes.VAEEncode().encode(vae, picture)[0]
    results = []
    for conditionings in itertools.product((source,), (source, target)):
        (out,) = pack.call(
            "InfEdit",
            model=_lcm(model),
            source=conditionings[0],
            target=conditionings[1],
            latent=latent,
            steps=4,
            scheduler="sgm_uniform",
            source_cfg=1.0,
            target_cfg=1.0,
            strength=1.0,
            eta=1.0,
            seed=0,
        )
        assert bool(out["samples"].isfinite().all())
        results.append(relative(out["samples"], latent["samples"]))
    assert results[0] < 1e-6 and results[1] > 0.05, results
