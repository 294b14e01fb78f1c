"""The nodes of attention control, as a workflow calls them."""

from dataclasses import replace

import comfy.samplers
import tiny_dits
import torch
from attending import edited, inverted, negative_of, plan, reconstructed_state, resampled, target_of
from helpers import advanced, refuses, relative, same_snapshot, snapshot

OWN = "preset's own"
ROUNDING = 2e-5
DEFAULTS = {
    "variant": OWN,
    "layers": "all",
    "start": 0.0,
    "end": 1.0,
    "strength": 1.0,
    "source": "pinned",
    "source_for": OWN,
    "tokens": OWN,
}


def _injected(pack, model, preset="masactrl", **changes):
    return pack.call("AttentionInject", model=model, preset=preset, **{**DEFAULTS, **changes})


def check_every_preset_runs_on_every_architecture(pack):
    """Each preset of AttentionInject changes an edit on each family that it is for, and is refused on the others."""
    presets = pack.module("attention").PRESETS
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind)
        before = snapshot(model)
        mask = torch.zeros(1, 32, 48)
        mask[:, :8, :8] = 1.0
        plain = resampled(pack, model, linked, kind, None, 3.0)
        for name, preset in presets.items():
            if preset.needs_text:
                continue
            changes = {"mask": mask} if preset.needs_mask and "*" in preset.needs_mask else {}
            if name == "pnp":
                if kind not in tiny_dits.UNETS:
                    call = lambda m=model, n=name: _injected(pack, m, n, layers="")  # noqa: E731
                    refuses(call, "pnp must run on sd15, sdxl", tiny_dits.TINY[kind].family)
                    continue
                changes["feature_block"] = 1  # the tiny UNets have no output block 4
            rules, summary = _injected(pack, model, name, **changes)
            assert "layers" in summary and "steps 0 to 1" in summary, summary
            found = resampled(pack, model, linked, kind, rules, 3.0)
            assert torch.isfinite(found).all() and relative(found, plain) > 1e-4, (kind, name, relative(found, plain))
        same_snapshot(model, before)


def check_every_preset_of_equal_prompts_is_the_source(pack):
    """Invariant 3: with one prompt, latent and noise, every preset's target is its source, guided or not."""
    attention = pack.module("attention")
    mask = torch.zeros(1, 32, 48)
    mask[:, :16] = 1.0
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind)
        wanted = reconstructed_state(pack, model, linked)
        plans = {
            f"{preset.name} {variant}": _injected(pack, model, preset.name, variant=variant or OWN, mask=mask)[0]
            for preset in pack.module("nodes.attending.listing").offered()
            for variant in preset.variants or ("",)
            # Adding doubles values; foreground and background read a part of the picture each.
            if preset.name != "pnp" and variant not in ("add", "masked")
        }
        if kind in tiny_dits.UNETS:
            plans["feature"] = attention.AttentionPlan(features=(attention.FeatureRule("feature", "output", 1),))
        for name, rules in plans.items():
            free = replace(rules, source="free")
            found = edited(pack, model, linked, kind, free, None, target=linked.source)
            assert relative(found, wanted) < ROUNDING, (kind, name, relative(found, wanted))


def check_inject_settings(pack):
    """Each input of AttentionInject does something, plans chain, and misfits are refused."""
    model, linked = inverted(pack, "sd15", steps=4)
    base = resampled(pack, model, linked, "sd15", _injected(pack, model)[0], 3.0)
    mask = torch.zeros(1, 32, 48)
    mask[:, :, :24] = 1.0
    for changes in (
        {"variant": "union"},
        {"variant": "masked", "mask": mask},
        {"layers": "output:1"},
        {"end": 0.5},
        {"start": 0.5},
        {"strength": 0.5},
        {"source": "free"},
        {"source_for": "both"},
        {"source_for": "cond"},
        {"mask": mask},
        {"preset": "rf_edit"},
    ):
        found = resampled(pack, model, linked, "sd15", _injected(pack, model, **changes)[0], 3.0)
        # A free source of an Euler path without a second prompt reconstructs the path only nearly.
        assert relative(found, base) > 1e-6, changes
    first, _ = _injected(pack, model, "structure", end=0.5)
    chained, _ = _injected(pack, model, "rf_edit", start=0.5, attention=first)
    assert [rule.name for rule in chained.rules] == ["structure", "rf_edit"]
    resampled(pack, model, linked, "sd15", chained, 3.0)
    twice, _ = _injected(pack, model, "masactrl", attention=_injected(pack, model, "rf_edit")[0])
    refuses(lambda: resampled(pack, model, linked, "sd15", twice, 1.0), "rf_edit", "masactrl")
    default, summary = _injected(pack, tiny_dits.model("sdxl"), "kv_edit", layers="", end=0.0, mask=mask)
    assert default.rules[0].window.end == 1.0, summary
    refuses(lambda: _injected(pack, model, layers="output:30"), "layers must match", "input:1,3", "got 'output:30'")
    refuses(lambda: _injected(pack, model, layers="nonsense"), "layers must be like", "'nonsense'")
    refuses(lambda: _injected(pack, model, variant="masked"), "must have a mask")
    refuses(lambda: _injected(pack, model, "kv_edit"), "must have a mask")
    refuses(lambda: _injected(pack, model, variant="add"), "variant of masactrl must be one of")
    node = pack.node("AttentionInject")
    assert "start must not exceed end" in node.validate_inputs(start=0.6, end=0.5)
    assert node.validate_inputs(start=0.6, end=0.0) is True and node.validate_inputs() is True


def check_what_would_do_nothing_is_refused(pack):
    """Inputs that a preset does not read, and defaults that meet nothing on a small UNet, each in a sentence."""
    mask = torch.zeros(1, 32, 48)
    mask[:, :, :24] = 1.0
    sd15, flux = tiny_dits.model("sd15"), tiny_dits.model("flux")
    for kind, names in (
        ("sd15", ("masactrl", "structure", "pnp", "stable_flow", "free_flux")),
        ("sdxl", ("masactrl", "stable_flow", "free_flux")),
    ):
        model = tiny_dits.model(kind)
        for name in names:
            call = lambda m=model, n=name: _injected(pack, m, n, layers="", end=0.0)  # noqa: E731
            refuses(call, "layers must match", "on a model with input:1,3, middle:0, output:0-3", "AttentionSites")
    demo = pack.call("LoadShapesModel", kind="eps")[0]
    refuses(lambda: _injected(pack, demo, layers=""), "got 'self#10-15'", "input:1,3, middle:0, output:0-3")
    refuses(lambda: _injected(pack, demo, "pnp"), "feature_block of pnp feature must be a block", "output:0-3")
    _, summary = _injected(pack, demo, "pnp", feature_block=1)
    assert "pnp feature: output:1, steps 0 to 1" in summary, summary
    refuses(lambda: _injected(pack, sd15, "structure", feature_block=1), "feature_block must be left out")
    for name, changes in (("masactrl", {}), ("masactrl", {"variant": "union"}), ("kv_edit", {}), ("rf_edit", {})):
        call = lambda n=name, c=changes: _injected(pack, sd15, n, mask=mask, source_mask=mask, **c)  # noqa: E731
        refuses(call, f"source_mask must be left out for preset {name}", "reads it is masactrl masked")
    _injected(pack, sd15, variant="masked", mask=mask, source_mask=mask)
    for name in ("masactrl", "rf_edit", "reference"):
        call = lambda n=name: _injected(pack, sd15, n, tokens="text")  # noqa: E731
        refuses(call, "tokens must be image on a model whose text stands apart", "got text at input:1")
        _injected(pack, flux, name, tokens="text")
    attention = pack.module("attention")
    listing = pack.module("nodes.attending.listing")
    resolver = pack.module("nodes.attending.resolvers").resolver_for(sd15.model.diffusion_model)
    take = attention.Term(q=attention.Take())
    small = attention.Rule("small", (take,), layers=attention.Layers.parse("input:1"), limit=0.5)
    refuses(
        lambda: listing.check_layers(attention.AttentionPlan((small,)), resolver, (1, 4, 64, 64)),
        "at most 0.5 of the latent's side for small",
        "(64, 64)",
    )


def check_sites_are_listed(pack):
    """AttentionSites names stacks, kinds, tokens and presets of every architecture, without touching the model."""
    offered = pack.module("nodes.attending.listing").offered()
    for kind in tiny_dits.KINDS:
        model = tiny_dits.model(kind)
        before = snapshot(model)
        latent = tiny_dits.latent(kind, size=(8, 12))
        (text,) = pack.call("AttentionSites", model=model, latent=latent)
        same_snapshot(model, before)
        resolver = pack.module("nodes.attending.resolvers").resolver_for(model.model.diffusion_model)
        for stack in {slot.stack for slot in resolver.slots}:
            assert f"{stack}:" in text, (kind, text)
        for count in {site.grid[0] * site.grid[1] * site.grid[2] for site in resolver.sites(latent["samples"].shape)}:
            assert f" {count} (" in text, (kind, count, text)
        for preset, variant in ((each, variant) for each in offered for variant in each.variants or ("",)):
            layers = preset.layers_of(resolver.family, variant, resolver.preset_layers)
            start, end = preset.default_window(resolver.family, variant)
            steps = "not for this family" if layers is None else f"{layers}  steps {start:g} to {end:g}, "
            assert f"  {preset.name}: {steps}" in text or f"  {preset.name} {variant}: {steps}" in text, (kind, text)
        (square,) = pack.call("AttentionSites", model=model)
        assert square != text


def _inversion_free(pack, node, model, kind, latent, **changes):
    inputs = {
        "model": model,
        "source": tiny_dits.conditioning(kind),
        "target": target_of(kind),
        "latent": latent,
        "steps": 3,
        "scheduler": "simple",
        "source_cfg": 1.0,
        "target_cfg": 1.0,
        "seed": 5,
        **({"strength": 1.0, "eta": 1.0} if node == "InfEdit" else {"n_max": 3, "n_avg": 1, "n_min": 0}),
        **changes,
    }
    return pack.call(node, **inputs)[0]["samples"]


def check_inversion_free_edits(pack):
    """InfEdit and FlowEdit read from the source at every level; equal prompts still give the source back."""
    for kind in tiny_dits.KINDS:
        model, latent = tiny_dits.model(kind), tiny_dits.latent(kind, batch=2, size=(4, 6), frames=2)
        before = snapshot(model)
        for node in ("InfEdit", "FlowEdit"):
            rules = plan(pack)
            plain = _inversion_free(pack, node, model, kind, latent)
            found = _inversion_free(pack, node, model, kind, latent, attention=rules)
            assert relative(found, plain) > 1e-4 and torch.isfinite(found).all(), (kind, node)
            empty = _inversion_free(pack, node, model, kind, latent, attention=plan(pack, strength=0.0))
            assert relative(empty, plain) < 1e-9, (kind, node, relative(empty, plain))
            same = _inversion_free(
                pack, node, model, kind, latent, attention=rules, target=tiny_dits.conditioning(kind)
            )
            assert relative(same, latent["samples"]) < 1e-3, (kind, node, relative(same, latent["samples"]))
        same_snapshot(model, before)
    model, latent = tiny_dits.model("sd15"), tiny_dits.latent("sd15")
    negative = negative_of("sd15")
    guided = {"source_cfg": 2.0, "target_cfg": 4.0, "negative": negative}
    for changes in ({"n_min": 1}, {"n_avg": 2}, guided, {**guided, "mask": torch.zeros(1, 64, 96)}):
        found = _inversion_free(pack, "FlowEdit", model, "sd15", latent, attention=plan(pack), **changes)
        plain = _inversion_free(pack, "FlowEdit", model, "sd15", latent, **changes)
        if "mask" in changes:
            assert torch.equal(found, latent["samples"])
        else:
            assert relative(found, plain) > 1e-4, changes


def _sampled(guider, sampler, sigmas, latent, noise):
    with torch.inference_mode():
        return guider.sample(noise, latent["samples"], sampler, sigmas, disable_pbar=True, seed=0)


def check_guider(pack):
    """Under AttentionGuider any sampler runs: pinned to an inversion, or beside a source from the same noise."""
    for kind in ("sd15", "flux", "wan"):
        model, linked = inverted(pack, kind, batch=2, steps=3)
        source, target, negative = tiny_dits.conditioning(kind), target_of(kind), negative_of(kind)
        inputs = {"model": model, "source": source, "target": target, "attention": plan(pack), "both": False}
        (resume,) = pack.call("InversionSampler", inversion=linked, sampler_name="same as inversion")
        sigmas = torch.tensor(linked.falling, dtype=torch.float32)
        latent = {"samples": linked.samples}
        nothing = torch.zeros_like(linked.samples)
        for cfg in (1.0, 3.0):
            (guider,) = pack.call("AttentionGuider", cfg=cfg, negative=negative, inversion=linked, **inputs)
            found = _sampled(guider, resume, sigmas, latent, nothing)
            wanted = resampled(pack, model, linked, kind, plan(pack), cfg)
            # The host rounds what a sampler returns to float32.
            assert relative(found, wanted) < 1e-5, (kind, cfg, relative(found, wanted))
            small = {"samples": latent["samples"][..., :2]}
            arguments = (guider, resume, sigmas, small, small["samples"] * 0)
            refuses(lambda given=arguments: _sampled(*given), "inversion's size")
        noise = torch.randn(nothing.shape, generator=torch.Generator().manual_seed(7))
        start = torch.tensor([float(sigmas[0]), float(sigmas[0]) / 3, 0.0])
        (free,) = pack.call("AttentionGuider", cfg=3.0, negative=negative, **{**inputs, "both": True})
        euler = comfy.samplers.ksampler("euler")
        both = _sampled(free, euler, start, latent, noise)
        alone = advanced(model, source, euler, start, latent, _Given(noise), negative, 3.0)
        edit = advanced(model, target, euler, start, latent, _Given(noise), negative, 3.0)
        assert relative(both[:2], alone) < 1e-4 and relative(both[2:], edit) > 1e-4, kind
        (one,) = pack.call("AttentionGuider", cfg=3.0, negative=negative, **inputs)
        assert torch.equal(_sampled(one, euler, start, latent, noise), both[2:]), kind
        again = _sampled(one, euler, start, latent, noise)
        # A mask for each picture, the first of them empty.
        masks = torch.stack([torch.zeros(48, 32), torch.ones(48, 32)])
        held = pack.module("nodes.attending.plan_masks").picture_mask(masks)
        few = replace(inputs["attention"], rules=tuple(replace(r, mask=held) for r in inputs["attention"].rules))
        (masked,) = pack.call("AttentionGuider", cfg=3.0, negative=negative, **{**inputs, "attention": few})
        parted = _sampled(masked, euler, start, latent, noise)
        assert relative(parted[:1], edit[:1]) < 1e-4 and relative(parted[1:], again[1:]) < 1e-4, kind
        assert torch.equal(again, both[2:]), "a guider is used again by later runs"
        (rf,) = pack.call("RFSolverSample", solver="midpoint")
        assert torch.isfinite(_sampled(one, rf, start, latent, noise)).all()
        refuses(
            lambda i=inputs, n=negative, b=linked: pack.call(
                "AttentionGuider", cfg=3.0, negative=n, inversion=b, **{**i, "both": True}
            ),
            "both must be off",
        )
        refuses(lambda i=inputs: pack.call("AttentionGuider", cfg=3.0, **i), "cfg must be 1 without a negative")
    flow = tiny_dits.model("sd3")
    refuses(lambda: pack.call("AttentionGuider", cfg=1.0, inversion=linked, **{**inputs, "model": flow}), "model")


class _Given:
    def __init__(self, noise):
        self.noise = noise

    def generate_noise(self, latent):
        return self.noise


def check_loaded_and_fitted_records(pack):
    """A record from a file asks for its source; fitted embeddings stand in for the negative beside a source too."""
    model, linked = inverted(pack, "sd15")
    (name,) = pack.call("SaveInversion", inversion=linked, filename_prefix="retrace/attended", half=False)
    (loaded,) = pack.call("LoadInversion", file=name)
    rules = plan(pack)
    refuses(lambda: resampled(pack, model, loaded, "sd15", rules), "source must be connected to control attention")
    found = resampled(pack, model, loaded, "sd15", rules, source=linked.source)
    assert torch.equal(found, resampled(pack, model, linked, "sd15", rules))
    (fitted, *_) = pack.call(
        "NullTextOptimize", model=model, inversion=linked, negative=negative_of("sd15"), cfg=3.0, inner_steps=2,
        learning_rate=0.01, stop=1e-5, stop_growth=2e-5, save_unfinished=False,
    )  # fmt: skip
    for source in ("pinned", "free"):
        plain = resampled(pack, model, fitted, "sd15", None, 3.0)
        found = resampled(pack, model, fitted, "sd15", plan(pack, source=source), 3.0)
        assert relative(found, plain) > 1e-4 and torch.isfinite(found).all()
    edited_as_source = resampled(pack, model, fitted, "sd15", rules, 3.0, target=linked.source)
    (back,) = pack.call("Resample", model=model, inversion=fitted, cfg=3.0)
    assert relative(edited_as_source, back["samples"]) < relative(found, back["samples"])


def check_every_method_takes_a_plan(pack):
    """Records of every method are edited under a plan, pinned and free."""
    methods = pack.module("inversion").METHODS
    for method in methods:
        model, linked = inverted(pack, "sd15", method=method, keep_path=True, steps=3)
        for source in ("pinned", "free"):
            rules = plan(pack, source=source)
            found = resampled(pack, model, linked, "sd15", rules)
            plain = resampled(pack, model, linked, "sd15", None)
            assert torch.isfinite(found).all() and relative(found, plain) > 1e-5, (method, source)
            whole = plan(pack, source="free", kinds=("self", "cross"), group="all")
            if method == "belm":
                continue  # it begins every edit with a new mate, the source's rows too
            same = edited(pack, model, linked, "sd15", whole, False)
            back = reconstructed_state(pack, model, linked)
            # An edit adds the residuals to what the model gave, a reconstruction takes the path itself.
            assert relative(same, back) < 1e-6 if method == "direct" else torch.equal(same, back), method
