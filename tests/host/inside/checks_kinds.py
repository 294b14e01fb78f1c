"""What models and conditionings come with: ControlNet, the pooled part of SDXL, half precision, clips, caches."""

import nodes
import torch
from helpers import STEPS, refuses, relative, same_snapshot, snapshot

CFG = 3.0
UNETS = ("sd15", "sdxl")


def _controlled(kind, pack, image_seed=1, strength=0.5):
    """Source, target and negative conditioning with a ControlNet, applied by the stock node."""
    control = pack.tiny.control_net(kind)
    image = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(image_seed))
    prompts = [pack.tiny.conditioning(kind, seed) for seed in (0, 9, 5)]
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    source, negative = apply(prompts[0], prompts[2], control, image, strength, 0.0, 1.0)
    target, _ = apply(prompts[1], prompts[2], control, image, strength, 0.0, 1.0)
    return control, source, target, negative


def _walk(pack, node_id, model, source, latent, **changes):
    """Invert's inputs, and what it or a node of one method gives."""
    inputs = {"steps": STEPS, "scheduler": "simple", "cfg": 1.0, "strength": 1.0, **changes}
    return pack.call(node_id, model=model, source=source, latent=latent, **inputs)[0]


def _inversion_free(pack, node_id, model, source, target, latent, **changes):
    """InfEdit's or FlowEdit's result."""
    own = {"InfEdit": {"strength": 1.0, "eta": 1.0}, "FlowEdit": {"n_max": STEPS, "n_avg": 1, "n_min": 0}}[node_id]
    inputs = {"steps": STEPS, "scheduler": "simple", "source_cfg": 1.0, "target_cfg": 1.0, "seed": 3, **own, **changes}
    (out,) = pack.call(node_id, model=model, source=source, target=target, latent=latent, **inputs)
    return out["samples"]


def _fit(pack, model, linked, negative, **changes):
    """NullTextOptimize's INVERSION and report."""
    inputs = {"cfg": CFG, "inner_steps": 3, "learning_rate": 0.01, "stop": 0.0, "stop_growth": 0.0, **changes}
    fitted, _, text = pack.call("NullTextOptimize", model=model, inversion=linked, negative=negative, **inputs)
    return fitted, text


def _back(pack, model, linked, **changes):
    """Resample's latent."""
    return pack.call("Resample", model=model, inversion=linked, **{"cfg": 1.0, **changes})[0]["samples"]


def check_controlnet_in_inversions(pack):
    """It acts on the way up and down, at cfg 1 and guided; exact methods stay exact; the model stays as it was."""
    for kind in UNETS:
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        _, source, target, negative = _controlled(kind, pack)
        _, other, _, _ = _controlled(kind, pack, image_seed=2)
        before = snapshot(model)
        plain = _walk(pack, "Invert", model, pack.tiny.conditioning(kind), latent, method="midpoint")
        linked = _walk(pack, "Invert", model, source, latent, method="midpoint")
        assert relative(linked.x, plain.x) > 1e-3, (kind, "the ControlNet did not act")
        another = _walk(pack, "Invert", model, other, latent, method="midpoint")
        assert relative(linked.x, another.x) > 1e-4, (kind, "the hint did not act")
        for cfg in (1.0, CFG):
            pair = _walk(pack, "EDICTCouple", model, source, latent, cfg=cfg, negative=negative)
            assert relative(_back(pack, model, pair), latent["samples"]) < 1e-6, (kind, cfg)
        edited = _back(pack, model, pair, cfg=CFG, positive=target, negative=negative)
        bare = _back(pack, model, pair, cfg=CFG, positive=pack.tiny.conditioning(kind, 9), negative=negative)
        assert bool(edited.isfinite().all()) and relative(edited, bare) > 1e-4, kind
        same_snapshot(model, before)


def check_controlnet_in_inversion_free_edits(pack):
    """Equal prompts give the source back, another prompt edits, and the ControlNet changes how."""
    for kind in UNETS:
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        _, source, target, negative = _controlled(kind, pack)
        for node_id in ("InfEdit", "FlowEdit"):
            guided = {"source_cfg": CFG, "target_cfg": CFG, "negative": negative}
            same = _inversion_free(pack, node_id, model, source, source, latent, **guided)
            assert relative(same, latent["samples"]) < 1e-6, (kind, node_id)
            edited = _inversion_free(pack, node_id, model, source, target, latent)
            prompts = (pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, 9))
            bare = _inversion_free(pack, node_id, model, *prompts, latent)
            assert bool(edited.isfinite().all()) and relative(edited, latent["samples"]) > 1e-3, (kind, node_id)
            assert relative(edited, bare) > 1e-3, (kind, node_id, "the ControlNet did not act")


def check_controlnet_in_null_text(pack):
    """Gradients pass it: no step ends worse, the reconstruction is nearer, and its own weights are left alone."""
    for kind in UNETS:
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        control, source, _, negative = _controlled(kind, pack)
        weights = {name: value.clone() for name, value in control.control_model.state_dict().items()}
        tensors = list(control.control_model.parameters())
        linked = _walk(pack, "Invert", model, source, latent, method="ddim", keep_path=True)
        fitted, text = _fit(pack, model, linked, negative)
        for line in text.splitlines():
            if "updates" in line and "->" in line:
                first, last = (float(word) for word in (line.split()[3], line.split()[5]))
                assert last <= first, (kind, line)
        plain = _back(pack, model, linked, cfg=CFG, positive=source, negative=negative)
        errors = [relative(each, latent["samples"]) for each in (_back(pack, model, fitted), plain)]
        assert errors[0] < errors[1], (kind, errors)
        now = control.control_model.state_dict()
        assert all(torch.equal(now[name], value) for name, value in weights.items()), kind
        assert all(a is b for a, b in zip(tensors, control.control_model.parameters(), strict=True)), kind


def check_pooled_conditioning_acts(pack):
    """The pooled vector of SDXL and SD3 reaches the network in every node, and rows of a batch have their own."""
    for kind in ("sdxl", "sd3"):
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        source, target = pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, 9)
        other = [[source[0][0], {**source[0][1], "pooled_output": target[0][1]["pooled_output"]}]]
        for node_id in ("EDICTCouple", "BDIAInvert", "BELMInvert", "FixedPointInvert"):
            states = [_walk(pack, node_id, model, prompt, latent).x for prompt in (source, other)]
            assert relative(*states) > 1e-4, (kind, node_id)
        for node_id in ("InfEdit", "FlowEdit"):
            edited = _inversion_free(pack, node_id, model, source, other, latent)
            assert relative(edited, latent["samples"]) > 1e-4, (kind, node_id)
        linked = _walk(pack, "Invert", model, source, latent, method="ddim", keep_path=True)
        fits = [_fit(pack, model, linked, negative, inner_steps=1)[0] for negative in (source, other)]
        assert relative(*(fit.embeddings[0] for fit in fits)) > 1e-6, kind


def check_half_precision_networks(pack):
    """The states stay float64 and finite, exact pairs come back, equal prompts give the source back."""
    for dtype in (torch.bfloat16, torch.float16):
        for kind in ("sd15", "sdxl", "sd3", "wan"):
            model, latent = pack.tiny.model(kind, dtype=dtype), pack.tiny.latent(kind, batch=2)
            assert model.model.get_dtype() == dtype
            source, target = pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, 9)
            exact = _walk(pack, "Invert", pack.tiny.model(kind), source, latent, method="edict")
            for method in ("edict", "bdia", "belm", "noise_map"):
                linked = _walk(pack, "Invert", model, source, latent, method=method)
                assert linked.x.dtype == torch.float64 and bool(linked.x.isfinite().all())
                back = _back(pack, model, linked)
                # A state on the border of two halves may fall to the other side on the way back (solvers.md: 9e-4).
                assert relative(back, latent["samples"]) < 1e-3, (kind, dtype, method)
                if method == "edict":
                    assert relative(linked.x, exact.x) > 1e-4, (kind, dtype, "this is no half precision")
            for node_id in ("InfEdit", "FlowEdit"):
                same = _inversion_free(pack, node_id, model, source, source, latent)
                assert relative(same, latent["samples"]) < 1e-6, (kind, dtype, node_id)
                edited = _inversion_free(pack, node_id, model, source, target, latent)
                assert bool(edited.isfinite().all()) and relative(edited, latent["samples"]) > 1e-3, (kind, node_id)


def check_half_precision_of_the_other_methods(pack):
    """Direct inversion is exact at any cfg, a full pull gives the picture, and a descent beats where it begins."""
    for dtype in (torch.bfloat16, torch.float16):
        for kind in ("sd15", "sd3"):
            model, latent = pack.tiny.model(kind, dtype=dtype), pack.tiny.latent(kind, batch=2)
            source, target, negative = (pack.tiny.conditioning(kind, seed) for seed in (0, 9, 5))
            guided = {"cfg": CFG, "negative": negative}
            # The pulls of RF-Inversion: none at all, half way, and one that leaves nothing of the model's answer.
            direct, plain, pulled, full = (
                _walk(pack, "Invert", model, source, latent, method=method, **settings)
                for method, settings in (
                    ("direct", guided),
                    ("rf_inversion", {"rf_inversion_gamma": 0.0, "rf_inversion_eta": 0.0}),
                    ("rf_inversion", {"rf_inversion_eta": 0.5}),
                    ("rf_inversion", {"rf_inversion_eta": 1.0, "rf_inversion_stop": 1.0}),
                )
            )
            for linked in (direct, plain, pulled, full):
                assert linked.x.dtype == torch.float64 and bool(linked.x.isfinite().all())
                edited = _back(pack, model, linked, positive=target, **guided)
                assert bool(edited.isfinite().all()), (kind, dtype, linked.method)
            for back in (_back(pack, model, direct), _back(pack, model, full, positive=target, **guided)):
                assert relative(back, latent["samples"]) < 1e-6, (kind, dtype)
            euler = _walk(pack, "Invert", model, source, latent, method="euler")
            assert torch.equal(plain.x, euler.x), (kind, dtype)
            solved = _walk(pack, "Invert", model, source, latent, method="spd", spd_iterations=2, spd_stop=0.0)
            assert bool(solved.x.isfinite().all()), (kind, dtype)
            for step in str(solved.meta["losses"]).split():
                first, last = map(float, step.split(">"))
                assert 0.0 <= last < first, (kind, dtype, step)


def check_half_precision_null_text(pack):
    """Fits through bfloat16 and float16 networks stay finite and never end worse than they start."""
    for dtype in (torch.bfloat16, torch.float16):
        for kind in ("sd15", "sd3"):
            model, latent = pack.tiny.model(kind, dtype=dtype), pack.tiny.latent(kind)
            source, negative = pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, 5)
            linked = _walk(pack, "Invert", model, source, latent, method="ddim", keep_path=True)
            fitted, text = _fit(pack, model, linked, negative)
            assert all(bool(each.isfinite().all()) for each in fitted.embeddings), (kind, dtype)
            for line in text.splitlines():
                if "updates" in line and "->" in line:
                    first, last = (float(word) for word in (line.split()[3], line.split()[5]))
                    assert last <= first, (kind, dtype, line)


def check_every_method_on_clips(pack):
    """Two clips at once: each method keeps the five axes, comes back finite, and plays towards another prompt."""
    for method in list(pack.module("inversion").METHODS):
        model, latent = pack.tiny.model("wan"), pack.tiny.latent("wan", batch=2)
        linked = _walk(pack, "Invert", model, pack.tiny.conditioning("wan"), latent, method=method)
        assert linked.shape == tuple(latent["samples"].shape), method
        back = _back(pack, model, linked)
        edited = _back(pack, model, linked, positive=pack.tiny.conditioning("wan", 9))
        for each in (back, edited):
            assert each.shape == latent["samples"].shape and bool(each.isfinite().all()), method
        assert relative(edited, back) > 1e-3, method


def check_the_hosts_own_caches_are_refused(pack):
    """A MODEL behind the stock EasyCache or LazyCache node is refused by every node that asks it."""
    import comfy_extras.nodes_easycache as easycache

    kind = "sd15"
    model, latent = pack.tiny.model(kind), pack.tiny.latent(kind)
    source, target, negative = (pack.tiny.conditioning(kind, seed) for seed in (0, 9, 5))
    linked = _walk(pack, "Invert", model, source, latent, method="ddim", keep_path=True)
    for node in (easycache.EasyCacheNode, easycache.LazyCacheNode):
        cached = node.execute(
            model=model, reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False
        ).result[0]
        for call in (
            lambda m: _walk(pack, "Invert", m, source, latent, method="euler"),
            lambda m: _walk(pack, "EDICTCouple", m, source, latent),
            lambda m: _walk(pack, "FixedPointInvert", m, source, latent),
            lambda m: _back(pack, m, linked),
            lambda m: _fit(pack, m, linked, negative),
            lambda m: _inversion_free(pack, "InfEdit", m, source, target, latent),
            lambda m: _inversion_free(pack, "FlowEdit", m, source, target, latent),
        ):
            refuses(lambda c=call, m=cached: c(m), "got the cache patch", "connect the MODEL from before that node")


def check_stochastic_samplers_are_refused(pack):
    """InversionSampler takes no sampler that draws noise on the way; what it offers is a list that all start."""
    kind = "sd15"
    linked = _walk(
        pack, "Invert", pack.tiny.model(kind), pack.tiny.conditioning(kind), pack.tiny.latent(kind), method="euler"
    )
    for name in ("euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "ddpm", "lcm", "er_sde", "sa_solver", "seeds_2"):
        resume = {"inversion": linked, "sampler_name": name}
        refuses(lambda r=resume: pack.call("InversionSampler", **r), "sampler_name must be one of", repr(name))
