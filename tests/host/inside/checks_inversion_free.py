"""InfEdit and FlowEdit in the host: on every kind of model and on both demo models."""

import comfy.samplers
import nodes
import torch
from helpers import Counter, interrupted, refuses, refuses_each, relative, same_snapshot, snapshot
from running import STEPS, WORDS, advanced, decode, edit, encode, seen, shapes

NODES = ("InfEdit", "FlowEdit")


def check_inversion_free_edits(pack):
    """Equal prompts give the source back; another prompt or guidance changes it; the queue repeats bit for bit."""
    for node in NODES:
        for kind in pack.tiny.KINDS:
            model, negative = pack.tiny.model(kind), pack.tiny.conditioning(kind, seed=5)
            source, target = (pack.tiny.conditioning(kind, seed) for seed in (0, 9))
            latent = pack.tiny.latent(kind)
            both, before = pack.tiny.latent(kind, batch=2), latent["samples"]
            for cfg in (1.0, 3.0):
                guided = {"source_cfg": cfg, "target_cfg": cfg, "negative": negative}
                error = relative(edit(pack, node, kind, model, both, target=source, **guided), both["samples"])
                assert error < 1e-6, (node, kind, cfg, error)
            first = edit(pack, node, kind, model, latent)
            assert first.shape == before.shape and first.dtype == before.dtype and bool(first.isfinite().all())
            torch.manual_seed(77)
            assert torch.equal(edit(pack, node, kind, model, latent), first), (node, kind)
            guided = {"target_cfg": 2.3, "negative": negative}
            for other, least in (
                (before, 1e-3),
                (edit(pack, node, kind, model, latent, seed=4), 1e-4),
                (edit(pack, node, kind, model, latent, **guided), 1e-4),
            ):
                assert relative(first, other) > least, (node, kind)
            assert relative(edit(pack, node, kind, model, latent, target=source, **guided), before) > 1e-4, (node, kind)
            # Neither model nor inputs change; other entries of the LATENT are handed on, but not used.
            tensors = [latent["samples"], source[0][0], target[0][0]]
            weights, copies = snapshot(model), [each.clone() for each in tensors]
            masked = {**latent, "noise_mask": torch.ones(1, 8, 12), "downscale_ratio_spacial": 8}
            (out,) = pack.call(node, model=model, latent=masked, seed=3, source=source, target=target)
            same_snapshot(model, weights)
            assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True)), (node, kind)
            assert set(out) == {"samples", "noise_mask"} and torch.equal(out["samples"], first), (node, kind)
            # Row r of a batch is the single picture with seed + r, and what LatentFromBatch cuts out of it.
            together = edit(pack, node, kind, model, both)
            for row in range(2):
                one = {"samples": both["samples"][row : row + 1]}
                alone = edit(pack, node, kind, model, one, seed=3 + row)
                assert relative(together[row : row + 1], alone) < 1e-4, (node, kind, row)
                if both["samples"].ndim == 4:
                    (cut,) = nodes.LatentFromBatch().frombatch(both, row, 1)
                    assert torch.equal(edit(pack, node, kind, model, cut), alone), (node, kind, row)


def check_inversion_free_evaluates_as_the_method_says(pack):
    """Calls of the network: each branch once a level, twice where it is guided, no two prompts share a forward."""
    for node, changes, calls in (
        ("InfEdit", {}, 2 * STEPS),
        ("InfEdit", {"strength": 0.5}, STEPS),
        ("InfEdit", {"source_cfg": 3.0, "target_cfg": 2.0}, 4 * STEPS),
        ("FlowEdit", {"n_avg": 3}, 6 * STEPS),
        ("FlowEdit", {"n_max": 3, "n_min": 1, "n_avg": 2}, 2 * 2 * 2 + 1),
    ):
        for kind in ("sd15", "sd3"):
            counter = Counter(pack.tiny.model(kind))
            edit(pack, node, kind, counter.model, negative=pack.tiny.conditioning(kind, seed=5), **changes)
            assert counter.calls == calls, (node, kind, changes, counter.calls)


def _stock_denoiser(pack, model, space, positive, negative, cfg):
    """The model under one prompt, where each call is a run of a stock guider of its own."""
    session, parametrisation = pack.module("nodes.host.session"), pack.module("nodes.host.parametrisation")

    def denoise(x, sigma):
        probe = session.ScriptSampler(lambda run: run.denoiser()(x, sigma), standing_in=True)
        zeros = {"samples": torch.zeros_like(x, dtype=torch.float32)}
        advanced(model, positive, probe, torch.tensor([1.0, 0.0]), zeros, negative=negative, cfg=cfg)
        return probe.result

    floor = parametrisation.sigma_floor(model, space, torch.float64)
    return pack.module("inversion").Denoiser(denoise, space, floor)


def check_inversion_free_follows_the_core(pack):
    """The node gives what the core gives on two stock guiders, one for each prompt."""
    core, latents = pack.module("inversion"), pack.module("nodes.host.latents")
    for node, rule in (("InfEdit", core.InfEdit()), ("FlowEdit", core.FlowEdit())):
        for kind, space in (("sd15_v", "ve"), ("flux", "flow"), ("wan", "flow")):
            model, latent = pack.tiny.model(kind), pack.tiny.latent(kind)
            own, other, negative = (pack.tiny.conditioning(kind, seed) for seed in (0, 9, 5))
            levels = pack.module("nodes.host.schedule").rising_sigmas(model, "simple", STEPS)
            source = _stock_denoiser(pack, model, space, own, negative, 1.5)
            target = _stock_denoiser(pack, model, space, other, negative, 2.5)
            clean = latents.into_model(model, latent["samples"])
            wanted = latents.out_of_model(model, rule.edit(source, target, clean, levels, STEPS, core.EditOptions(3)))
            result = edit(pack, node, kind, model, latent, source_cfg=1.5, target_cfg=2.5, negative=negative)
            # Stock guiders may put both prompts into one forward, which rounds otherwise.
            assert relative(result, wanted) < 1e-4, (node, kind, relative(result, wanted))


def check_inversion_free_masks(pack):
    """Outside a mask the result is the source bit for bit, feathered and not, also where values are nearly zero."""
    masks = pack.module("nodes.host.masks")
    for node, extra in (("InfEdit", {}), ("FlowEdit", {}), ("FlowEdit", {"n_min": 2})):
        for kind in pack.tiny.KINDS:
            latent = pack.tiny.latent(kind, batch=2)
            before = latent["samples"]
            before[..., 0, :] = 0.0
            before[..., 1, :] *= 1e-12
            mask = torch.zeros(1, 64, 96)
            mask[:, 19:45, 26:71] = 1.0
            for feather in (0, 6):
                changed = edit(pack, node, kind, latent=latent, mask=mask, feather=feather, **extra) != before
                outside = (masks.on_latent_grid(mask, before.shape, feather) == 0).expand_as(before)
                assert not changed[outside].any() and 0.9 < float(changed[~outside].float().mean()), (node, kind)
                assert 0.1 < float(outside.float().mean()) < 0.95


def check_inversion_free_interrupt_and_progress(pack):
    """An interrupt ends a run within one model call; progress counts the levels and shows finite pictures."""
    session, core = pack.module("nodes.host.session"), pack.module("inversion")
    for node in NODES:
        interrupted(lambda model, n=node: edit(pack, n, "sd15", model), pack.tiny.model("sd15"), 3)
        edit(pack, node, "sd15")
    told = []

    def script(run):
        clean = torch.randn(1, 16, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        options = core.EditOptions(on_step=run.tell)
        sides = run.denoiser("source"), run.denoiser("target")
        return core.FlowEdit(n_min=2).edit(*sides, clean, (0.0, 0.25, 0.5, 1.0), 3, options)

    sampler = session.ScriptSampler(script, standing_in=True)
    prompts = {"source": pack.tiny.conditioning("sd3"), "target": pack.tiny.conditioning("sd3", seed=9)}
    guider = session.Guider(pack.tiny.model("sd3"), {name: session.Branch(prompt) for name, prompt in prompts.items()})
    with torch.inference_mode():
        guider.sample(
            torch.zeros(1, 16, 8, 12), torch.ones(1, 16, 8, 12), sampler, torch.tensor([1.0, 0.5, 0.25, 0.0]), seed=0,
            callback=lambda index, x0, x, total: told.append((index, total, x0.dtype, bool(x0.isfinite().all()))),
            disable_pbar=True,
        )  # fmt: skip
    assert told == [(index, 3, torch.float32, True) for index in range(3)], told
    # SIGMAS of a scheduler node do what steps and scheduler do.
    model = pack.tiny.model("sd3")
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    for node, given in ((node, given) for node in NODES for given in (sigmas, sigmas.flip(0))):
        assert torch.equal(edit(pack, node, "sd3", model, steps=30, sigmas=given), edit(pack, node, "sd3", model)), node


def check_inversion_free_refusals(pack):
    """One sentence each, before the model runs."""
    counter = Counter(pack.tiny.model("sd15"))
    for node in NODES:
        refuses_each(
            lambda n=node, **changes: edit(pack, n, "sd15", **{"model": counter.model, **changes}),
            ({"target_cfg": 2.3}, "target_cfg must be 1 without a negative, got 2.3"),
            ({"source_cfg": 3.5}, "source_cfg must be 1 without a negative, got 3.5"),
            ({"mask": torch.ones(3, 64, 96)}, "mask must hold 1"),
            ({"latent": {"samples": torch.full((1, 4, 8, 12), torch.nan)}}, "latent must be finite"),
            ({"sigmas": torch.tensor([14.0, 3.0, 1.0])}, "sigmas must reach 0"),
        )
    assert counter.calls == 0
    refuses(lambda: edit(pack, "FlowEdit", "sd3", n_max=5), "n_max must lie between 1 and the number of steps 4")
    refuses(lambda: edit(pack, "FlowEdit", "sd3", n_min=4), "n_min must be below n_max 4, got 4")


# Edits of the demo models: one word of the caption changes. Settings as in the nodes' help.
DEMO = {
    "InfEdit": ("eps", dict(steps=12, scheduler="sgm_uniform", source_cfg=1.0, target_cfg=2.3)),
    "FlowEdit": ("flow", dict(steps=28, scheduler="simple", source_cfg=1.5, target_cfg=5.5, n_max=24)),
}


def check_inversion_free_on_the_demo_models(pack):
    """The official settings change one word of a picture, as the rule-based reader sees it; equal prompts nothing."""
    for node, (kind, settings) in DEMO.items():
        model, clip, vae = shapes(pack, kind)
        picture, mask, caption = pack.call("ShapesPicture", **WORDS, seed=5)
        wanted = pack.module("demo.world").parse(caption).changed(colour="green")
        with torch.inference_mode():
            latent = nodes.VAEEncode().encode(vae, picture)[0]
        shared = {"model": model, "source": encode(clip, caption), "latent": latent, "negative": encode(clip, "")}
        (edited,) = pack.call(node, target=encode(clip, wanted.caption), **{**shared, **settings})
        pixels = decode(vae, edited["samples"])[0]
        read = seen(pack, pixels)
        for name in WORDS:
            assert getattr(read, name) == getattr(wanted, name), (node, name, getattr(read, name))
        # A picture of the model's own that only shares the prompt would differ everywhere.
        error = (pixels - picture[0])[mask[0] < 0.5].square().mean().sqrt()
        assert float(error) < 0.12, (node, float(error))
        settings = {**settings, "target_cfg": settings["source_cfg"], "target": shared["source"]}
        (same,) = pack.call(node, **shared, **settings)
        assert relative(same["samples"], latent["samples"]) < 1e-6, node
