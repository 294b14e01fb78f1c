"""The nodes of attention control, as a workflow calls them."""

from dataclasses import replace

import attending
import comfy.samplers
import tiny_dits
import torch
from attending import edited, injected, inverted, latent_of, negative_of, plan, resampled, target_of
from helpers import refuses, refuses_each, relative, same_snapshot, snapshot
from running import Fresh, advanced, edit, fit, play, reloaded, resuming, sampled, shapes


def _mask(rows=32, columns=48):
    """A mask in pixels of some rows and columns."""
    mask = torch.zeros(1, 32, 48)
    mask[:, :rows, :columns] = 1.0
    return mask


def check_every_preset_runs_on_every_architecture(pack):
    """Each preset of AttentionInject changes an edit on each family that it is for, and is refused on the others."""
    for kind in tiny_dits.KINDS:
        model, inversion = inverted(pack, kind)
        before, plain = snapshot(model), resampled(pack, model, inversion, kind, None, 3.0)
        for name, preset in pack.module("attention").PRESETS.items():
            if preset.needs_text:
                continue
            changes = {"mask": _mask(8, 8)} if preset.needs_mask and "*" in preset.needs_mask else {}
            if name == "pnp":
                if kind not in tiny_dits.UNETS:
                    call = lambda m=model, n=name: injected(pack, m, n, layers="", end=0.0)  # noqa: E731
                    refuses(call, "pnp must run on sd15, sdxl", tiny_dits.TINY[kind].family)
                    continue
                changes["feature_block"] = 1  # the tiny UNets have no output block 4
            rules, summary = injected(pack, model, name, **changes)
            assert "layers" in summary and "steps 0 to 1" in summary, summary
            acting = resampled(pack, model, inversion, kind, rules, 3.0)
            assert torch.isfinite(acting).all() and relative(acting, plain) > 1e-4, (kind, name)
        same_snapshot(model, before)


def check_every_preset_of_equal_prompts_is_the_source(pack):
    """Invariant 3: with one prompt, latent and noise, every preset's target is its source, guided or not."""
    attention = pack.module("attention")
    for kind in tiny_dits.KINDS:
        model, inversion = inverted(pack, kind)
        wanted = attending.states(pack, model, inversion)[-1]
        plans = {
            f"{preset.name} {variant}": injected(
                pack, model, preset.name, variant=variant or "preset's own", mask=_mask(16)
            )[0]
            for preset in pack.module("nodes.attending.listing").offered()
            for variant in preset.variants or ("",)
            # Adding doubles values; foreground and background read a part of the picture each.
            if preset.name != "pnp" and variant not in ("add", "masked")
        }
        if kind in tiny_dits.UNETS:
            plans["feature"] = attention.AttentionPlan(features=(attention.FeatureRule("feature", "output", 1),))
        plans["qkv"] = plan(pack, "qkv")
        for name, rules in plans.items():
            free = replace(rules, source="free")
            same = edited(pack, model, inversion, kind, free, None, target=inversion.source)
            assert relative(same, wanted) < attending.ROUNDING, (kind, name, relative(same, wanted))


def check_inject_settings(pack):
    """Each input of AttentionInject does something, plans chain, and misfits are refused."""
    model, inversion = inverted(pack, "sd15", steps=4)
    base, mask = resampled(pack, model, inversion, "sd15", injected(pack, model)[0], 3.0), _mask(columns=24)
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
        other = resampled(pack, model, inversion, "sd15", injected(pack, model, **changes)[0], 3.0)
        # A free source of an Euler path without a second prompt reconstructs the path only nearly.
        assert relative(other, base) > 1e-6, changes
    first, _ = injected(pack, model, "structure", end=0.5)
    chained, _ = injected(pack, model, "rf_edit", start=0.5, attention=first)
    assert [rule.name for rule in chained.rules] == ["structure", "rf_edit"]
    resampled(pack, model, inversion, "sd15", chained, 3.0)
    twice, _ = injected(pack, model, attention=injected(pack, model, "rf_edit")[0])
    refuses(lambda: resampled(pack, model, inversion, "sd15", twice, 1.0), "rf_edit", "masactrl")
    default, summary = injected(pack, tiny_dits.model("sdxl"), "kv_edit", layers="", end=0.0, mask=mask)
    assert default.rules[0].window.end == 1.0, summary
    refuses_each(
        lambda **changes: injected(pack, model, **changes),
        ({"layers": "output:30"}, "layers must match", "input:1,3", "got 'output:30'"),
        ({"layers": "nonsense"}, "layers must be like", "'nonsense'"),
        ({"variant": "masked"}, "must have a mask"),
        ({"preset": "kv_edit"}, "must have a mask"),
        ({"variant": "add"}, "variant of masactrl must be one of"),
    )
    node = pack.node("AttentionInject")
    assert "start must not exceed end" in node.validate_inputs(start=0.6, end=0.5)
    assert node.validate_inputs(start=0.6, end=0.0) is True and node.validate_inputs() is True


def check_what_would_do_nothing_is_refused(pack):
    """Inputs that a preset does not read, and defaults that meet nothing on a small UNet, each in a sentence."""
    mask, (sd15, sdxl, flux) = _mask(columns=24), (tiny_dits.model(kind) for kind in ("sd15", "sdxl", "flux"))
    demo, own = shapes(pack)[0], {"layers": "", "end": 0.0}
    small = ("layers must match", "on a model with input:1,3, middle:0, output:0-3", "AttentionSites")
    read = {"mask": mask, "source_mask": mask}
    refuses_each(
        lambda model=sd15, **changes: injected(pack, model, **changes),
        *(({"preset": name, **own}, *small) for name in ("masactrl", "structure", "pnp", "stable_flow", "free_flux")),
        *(({"model": sdxl, "preset": name, **own}, *small) for name in ("masactrl", "stable_flow", "free_flux")),
        ({"model": demo, **own}, "got 'self#10-15'", "input:1,3, middle:0, output:0-3"),
        ({"model": demo, "preset": "pnp"}, "feature_block of pnp feature must be a block", "output:0-3"),
        ({"preset": "structure", "feature_block": 1}, "feature_block must be left out"),
        *(
            ({"preset": name, **more, **read}, f"source_mask must be left out for preset {name}", "is masactrl masked")
            for name, more in (("masactrl", {}), ("masactrl", {"variant": "union"}), ("kv_edit", {}), ("rf_edit", {}))
        ),
        *(
            (
                {"preset": name, "tokens": "text"},
                "tokens must be image on a model whose text stands apart",
                "at input:1",
            )
            for name in ("masactrl", "rf_edit", "reference")
        ),
    )
    _, summary = injected(pack, demo, "pnp", feature_block=1)
    assert "pnp feature: output:1, steps 0 to 1" in summary, summary
    injected(pack, sd15, variant="masked", **read)
    for name in ("masactrl", "rf_edit", "reference"):
        injected(pack, flux, name, tokens="text")
    attention, listing = pack.module("attention"), pack.module("nodes.attending.listing")
    where = {"layers": attention.Layers.parse("input:1"), "limit": 0.5}
    rules = attention.AttentionPlan((attention.Rule("small", (attention.Term(q=attention.Take()),), **where),))
    call = lambda: listing.check_layers(rules, attending.resolver(pack, sd15), (1, 4, 64, 64))  # noqa: E731
    refuses(call, "at most 0.5 of the latent's side for small", "(64, 64)")


def check_sites_are_listed(pack):
    """AttentionSites names stacks, kinds, tokens and presets of every architecture, without touching the model."""
    offered = pack.module("nodes.attending.listing").offered()
    for kind in tiny_dits.KINDS:
        model, latent = tiny_dits.model(kind), tiny_dits.latent(kind, size=(8, 12))
        before, knows = snapshot(model), attending.resolver(pack, model)
        (text,) = pack.call("AttentionSites", model=model, latent=latent)
        same_snapshot(model, before)
        assert all(f"{slot.stack}:" in text for slot in knows.slots), (kind, text)
        for count in {site.grid[0] * site.grid[1] * site.grid[2] for site in knows.sites(latent["samples"].shape)}:
            assert f" {count} (" in text, (kind, count, text)
        for preset, variant in ((each, variant) for each in offered for variant in each.variants or ("",)):
            layers = preset.layers_of(knows.family, variant, knows.preset_layers)
            start, end = preset.default_window(knows.family, variant)
            steps = "not for this family" if layers is None else f"{layers}  steps {start:g} to {end:g}, "
            assert f"  {preset.name}: {steps}" in text or f"  {preset.name} {variant}: {steps}" in text, (kind, text)
        assert pack.call("AttentionSites", model=model)[0] != text


def check_inversion_free_edits_read_the_source(pack):
    """InfEdit and FlowEdit read from the source at every level; equal prompts still give the source back."""

    def of(node, model, kind, latent, rules, **changes):
        sides = {"source": tiny_dits.conditioning(kind), "target": target_of(kind)}
        return edit(pack, node, kind, model, latent, attention=rules, **{**sides, **changes})

    for kind in tiny_dits.KINDS:
        model, latent = tiny_dits.model(kind), latent_of(kind, batch=2)
        before = snapshot(model)
        for node in ("InfEdit", "FlowEdit"):
            used = (None, plan(pack), plan(pack, strength=0.0))
            plain, acting, idle = (of(node, model, kind, latent, rules) for rules in used)
            assert relative(acting, plain) > 1e-4 and torch.isfinite(acting).all(), (kind, node)
            assert relative(idle, plain) < 1e-9, (kind, node, relative(idle, plain))
            same = of(node, model, kind, latent, plan(pack), target=tiny_dits.conditioning(kind))
            assert relative(same, latent["samples"]) < 1e-3, (kind, node, relative(same, latent["samples"]))
        same_snapshot(model, before)
    model, latent = tiny_dits.model("sd15"), tiny_dits.latent("sd15")
    guided = {"source_cfg": 2.0, "target_cfg": 4.0, "negative": negative_of("sd15")}
    for changes in ({"n_min": 1}, {"n_avg": 2}, guided):
        acting, plain = (of("FlowEdit", model, "sd15", latent, rules, **changes) for rules in (plan(pack), None))
        assert relative(acting, plain) > 1e-4, changes
    held = of("FlowEdit", model, "sd15", latent, plan(pack), **guided, mask=torch.zeros(1, 64, 96))
    assert torch.equal(held, latent["samples"])


def check_guider(pack):
    """Under AttentionGuider any sampler runs: pinned to an inversion, or beside a source from the same noise."""
    for kind in ("sd15", "flux", "wan"):
        model, inversion = inverted(pack, kind, batch=2, steps=3)
        source, target, negative = tiny_dits.conditioning(kind), target_of(kind), negative_of(kind)
        inputs = {"model": model, "source": source, "target": target, "attention": plan(pack), "negative": negative}

        def guider(inputs=inputs, **changes):
            return pack.call("AttentionGuider", **{**inputs, "cfg": 3.0, **changes})[0]

        resume, sigmas = resuming(pack, inversion), torch.tensor(inversion.falling, dtype=torch.float32)
        latent = {"samples": inversion.samples}
        small = {"samples": latent["samples"][..., :2]}
        for cfg in (1.0, 3.0):
            pinned = guider(cfg=cfg, inversion=inversion)
            # The host rounds what a sampler returns to float32.
            wanted = resampled(pack, model, inversion, kind, plan(pack), cfg)
            error = relative(sampled(pinned, resume, sigmas, latent), wanted)
            assert error < 1e-5, (kind, cfg, error)
            refuses(lambda g=pinned, a=(resume, sigmas, small): sampled(g, *a), "inversion's size")
        noise = Fresh(torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(7)))
        euler = comfy.samplers.ksampler("euler")
        start = (euler, torch.tensor([float(sigmas[0]), float(sigmas[0]) / 3, 0.0]), latent, noise)
        both = sampled(guider(both=True), *start)
        alone, plain = (advanced(model, prompt, *start, negative, 3.0) for prompt in (source, target))
        assert relative(both[:2], alone) < 1e-4 and relative(both[2:], plain) > 1e-4, kind
        one = guider()
        assert torch.equal(sampled(one, *start), both[2:]), kind
        assert torch.equal(sampled(one, *start), both[2:]), "a guider is used again by later runs"
        # A mask for each picture, the first of them empty.
        masks = torch.stack([torch.zeros(48, 32), torch.ones(48, 32)])
        held = pack.module("nodes.attending.plan_masks").picture_mask(masks)
        few = replace(inputs["attention"], rules=tuple(replace(r, mask=held) for r in inputs["attention"].rules))
        parted = sampled(guider(attention=few), *start)
        assert relative(parted[:1], plain[:1]) < 1e-4 and relative(parted[1:], both[3:]) < 1e-4, kind
        assert torch.isfinite(sampled(one, pack.call("RFSolverSample")[0], *start[1:])).all()
        refuses_each(
            guider,
            ({"inversion": inversion, "both": True}, "both must be off"),
            ({"negative": None}, "cfg must be 1 without a negative"),
            ({"inversion": inversion, "model": tiny_dits.model("sd3"), "cfg": 1.0}, "model"),
        )


def check_loaded_and_fitted_inversions(pack):
    """One from a file asks for its source; fitted embeddings stand in for the negative beside a source too."""
    model, inversion = inverted(pack, "sd15")
    loaded, rules = reloaded(pack, inversion), plan(pack)
    refuses(lambda: resampled(pack, model, loaded, "sd15", rules), "source must be connected to control attention")
    again = resampled(pack, model, loaded, "sd15", rules, source=inversion.source)
    assert torch.equal(again, resampled(pack, model, inversion, "sd15", rules))
    fitted = fit(pack, model, inversion, negative_of("sd15"), inner_steps=2)[0]
    for source in ("pinned", "free"):
        plain = resampled(pack, model, fitted, "sd15", None, 3.0)
        acting = resampled(pack, model, fitted, "sd15", plan(pack, source=source), 3.0)
        assert relative(acting, plain) > 1e-4 and torch.isfinite(acting).all()
    as_source = resampled(pack, model, fitted, "sd15", rules, 3.0, target=inversion.source)
    back = play(pack, model, fitted, cfg=3.0)
    assert relative(as_source, back) < relative(acting, back)


def check_every_method_takes_a_plan(pack):
    """Inversions of every method are edited under a plan, pinned and free."""
    whole = plan(pack, source="free", kinds=("self", "cross"), group="all")
    for method in pack.module("inversion").METHODS:
        model, inversion = inverted(pack, "sd15", method=method, steps=3)
        plain = resampled(pack, model, inversion, "sd15", None)
        for source in ("pinned", "free"):
            acting = resampled(pack, model, inversion, "sd15", plan(pack, source=source))
            assert torch.isfinite(acting).all() and relative(acting, plain) > 1e-5, (method, source)
        if method == "belm":
            continue  # it begins every edit with a new mate, the source's rows too
        same, back = edited(pack, model, inversion, "sd15", whole, False), attending.states(pack, model, inversion)[-1]
        # An edit adds the residuals to what the model gave, a reconstruction takes the path itself.
        assert relative(same, back) < 1e-6 if method == "direct" else torch.equal(same, back), method
