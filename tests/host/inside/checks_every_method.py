"""Each method on what it may meet: every kind of model, ControlNets, rows with prompts of their own, cache patches."""

import nodes
import torch
from helpers import STEPS, Counter, refuses, relative, same_snapshot, snapshot, trained

CFG = 7.5
# The network is float32 and so is the latent that comes back; the states are float64.
EXACT = 1e-6
# Batched kernels round differently, and a way up amplifies that.
CLOSE_UP = 1e-3
# As many updates as show that it runs.
SHORT = {"spd": {"spd_iterations": 2}}
# Names that patches of other packs give themselves, with those of the host.
CACHES = ("EasyCache", "LazyCache", "TeaCache", "ApplyFBCacheOnModel", "FirstBlockCache", "MagCache")


def _methods(pack):
    return pack.module("nodes.host.method_inputs").method_names()


def _invert(pack, model, source, latent, method, **changes):
    """Invert's INVERSION by a method."""
    inputs = {"steps": STEPS, "scheduler": "simple", "cfg": 1.0, "strength": 1.0, **SHORT.get(method, {}), **changes}
    return pack.call("Invert", model=model, source=source, latent=latent, method=method, **inputs)[0]


def _back(pack, model, bundle, **changes):
    """Resample's samples."""
    return pack.call("Resample", model=model, inversion=bundle, **{"cfg": 1.0, **changes})[0]["samples"]


def _paired(pack, node_id, model, source, target, latent, **changes):
    """Samples of InfEdit or FlowEdit."""
    own = {"InfEdit": {"strength": 1.0, "eta": 1.0}, "FlowEdit": {"n_max": STEPS, "n_avg": 1, "n_min": 0}}[node_id]
    inputs = {"steps": STEPS, "scheduler": "simple", "source_cfg": 1.0, "target_cfg": 1.0, "seed": 3, **own, **changes}
    return pack.call(node_id, model=model, source=source, target=target, latent=latent, **inputs)[0]["samples"]


def _npi(pack, model, bundle, target):
    """Samples of NegativePromptInversion."""
    inputs = {"cfg": CFG, "prox": "none", "quantile": 0.75, "pull": 0.0}
    return pack.call("NegativePromptInversion", model=model, inversion=bundle, target=target, **inputs)[0]["samples"]


def _fit(pack, model, bundle, negative):
    """NullTextOptimize's INVERSION."""
    inputs = {"cfg": 3.0, "inner_steps": 2, "learning_rate": 0.01, "stop": 0.0, "stop_growth": 0.0}
    return pack.call("NullTextOptimize", model=model, inversion=bundle, negative=negative, **inputs)[0]


def _optimize(pack, model, bundle, reference, positive):
    """NoiseOptimize's INVERSION."""
    inputs = {"cfg": 1.0, "iterations": 2, "learning_rate": 0.02, "pull": 0.1, "norm": "L2"}
    found, *_ = pack.call(
        "NoiseOptimize", model=model, inversion=bundle, reference=reference, positive=positive, **inputs
    )
    return found


def check_every_method_on_every_kind(pack):
    """Two pictures or clips at once, not square, at full strength and below: finite, kept in shape, back, edited."""
    core = pack.module("inversion")
    for kind in pack.tiny.KINDS:
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        source, target = pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, seed=9)
        before = snapshot(model)
        for method in _methods(pack):
            for strength in (1.0, 0.5):
                bundle, what = _invert(pack, model, source, latent, method, strength=strength), (kind, method, strength)
                record = bundle.record
                assert record.shape == tuple(latent["samples"].shape) and record.x.dtype == torch.float64, what
                back = _back(pack, model, bundle)
                edited = _back(pack, model, bundle, positive=target)
                for each in (record.x, back, edited):
                    assert each.shape == latent["samples"].shape and bool(each.isfinite().all()), what
                assert back.dtype == edited.dtype == latent["samples"].dtype, what
                if core.METHODS[method].reversible:
                    assert relative(back, latent["samples"]) <= EXACT, (what, relative(back, latent["samples"]))
                assert relative(edited, back) > 1e-4, what
        same_snapshot(model, before)


def check_every_method_under_a_controlnet(pack):
    """It acts on every way up, exact methods stay exact under guidance, fits pass it; its weights are left alone."""
    core = pack.module("inversion")
    for kind in ("sd15", "sdxl"):
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        control = pack.tiny.control_net(kind)
        image = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(1))
        plain, bare, empty = (pack.tiny.conditioning(kind, seed) for seed in (0, 9, 5))
        apply = nodes.ControlNetApplyAdvanced().apply_controlnet
        source, negative = apply(plain, empty, control, image, 0.5, 0.0, 1.0)
        target, _ = apply(bare, empty, control, image, 0.5, 0.0, 1.0)
        weights = {name: value.clone() for name, value in control.control_model.state_dict().items()}
        before = snapshot(model)
        for method in _methods(pack):
            one, other = (_invert(pack, model, prompt, latent, method) for prompt in (source, plain))
            # What comes down is another thing where only the way down is the model's.
            ends = [_back(pack, model, each, positive=target) for each in (one, other)]
            assert relative(one.record.x, other.record.x) > 1e-4 or relative(*ends) > 1e-4, (kind, method)
            ends = [_back(pack, model, one, positive=prompt) for prompt in (target, bare)]
            assert relative(*ends) > 1e-4, (kind, method, "the ControlNet did not act on the way down")
            if core.METHODS[method].reversible:
                guided = _invert(pack, model, source, latent, method, cfg=CFG, negative=negative)
                assert relative(_back(pack, model, guided), latent["samples"]) <= EXACT, (kind, method)
        bundle = _invert(pack, model, source, latent, "euler")
        assert torch.equal(_npi(pack, model, bundle, source), _back(pack, model, bundle)), kind
        meta = _optimize(pack, model, bundle, pack.tiny.latent(kind, seed=4), target).record.meta
        assert meta["noise_optimize_loss"] < meta["noise_optimize_first_loss"], kind
        same_snapshot(model, before)
        now = control.control_model.state_dict()
        assert all(torch.equal(now[name], value) for name, value in weights.items()), kind


def check_rows_have_prompts_of_their_own(pack):
    """One CONDITIONING with a row for each picture: text and pooled text of a row act on that row and no other."""
    for kind in ("sdxl", "sd3"):
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        prompts = [pack.tiny.conditioning(kind, seed) for seed in (0, 9)]

        def both(first, second):
            (one, more), (two, others) = first[0], second[0]
            pooled = torch.cat([more["pooled_output"], others["pooled_output"]])
            return [[torch.cat([one, two]), {**more, "pooled_output": pooled}]]

        source, swapped = both(*prompts), both(*prompts[::-1])
        for method in _methods(pack):
            # The published noises are the same for all rows, so that a row alone has those of the batch.
            bundle = _invert(pack, model, source, latent, method)
            back, edited = _back(pack, model, bundle), _back(pack, model, bundle, positive=swapped)
            for row in range(2):
                alone = {"samples": latent["samples"][row : row + 1]}
                single = _invert(pack, model, prompts[row], alone, method)
                pairs = [
                    (bundle.record.x[row : row + 1], single.record.x),
                    (back[row : row + 1], _back(pack, model, single)),
                    (edited[row : row + 1], _back(pack, model, single, positive=prompts[1 - row])),
                ]
                errors = [relative(*pair) for pair in pairs]
                assert max(errors) < CLOSE_UP, (kind, method, row, errors)
        for node_id in ("InfEdit", "FlowEdit"):
            edited = _paired(pack, node_id, model, source, swapped, latent)
            for row in range(2):
                alone = {"samples": latent["samples"][row : row + 1], "batch_index": [row]}
                single = _paired(pack, node_id, model, prompts[row], prompts[1 - row], alone)
                assert relative(edited[row : row + 1], single) < CLOSE_UP, (kind, node_id, row)


def check_source_exact_nodes_on_the_trained_models(pack):
    """On networks that denoise, at cfg 7.5, 20 and 50 steps: the latent again, bit for bit or but for rounding."""
    for kind in ("eps", "flow"):
        model, (source, negative), latent = trained(pack, kind)
        for node_id in ("DirectInversion", "NoiseMapInvert"):
            for steps in (20, 50):
                inputs = {"steps": steps, "scheduler": "normal", "cfg": CFG, "negative": negative, "strength": 1.0}
                bundle, _ = pack.call(node_id, model=model, source=source, latent=latent, **inputs)
                error = relative(_back(pack, model, bundle), latent["samples"])
                assert error <= (0.0 if node_id == "DirectInversion" else 1e-7), (kind, node_id, steps, error)
                edit = _back(pack, model, bundle, cfg=CFG, positive=source, negative=negative)
                assert relative(edit, latent["samples"]) <= EXACT, (kind, node_id, steps)
            # Plain DDIM inversion, which these are for, does not come back so.
            plain = _invert(pack, model, source, latent, "ddim", steps=20)
            lost = _back(pack, model, plain, cfg=CFG, positive=source, negative=negative)
            assert relative(lost, latent["samples"]) > 0.02, (kind, relative(lost, latent["samples"]))


def _cached(model, name):
    """The MODEL with a function of a pack around its network, which calls it as if nothing were."""

    def unet_wrapper_function(apply_model, args):
        return apply_model(args["input"], args["timestep"], **args["c"])

    unet_wrapper_function.__qualname__ = f"{name}.apply.<locals>.unet_wrapper_function"
    patched = model.clone()
    patched.set_model_unet_function_wrapper(unet_wrapper_function)
    return patched


def check_every_node_refuses_caches(pack):
    """Whatever asks the network refuses patches that skip calls of it, under the names that they are known by."""
    kind = "sd15"
    counter = Counter(pack.tiny.model(kind))
    latent = pack.tiny.latent(kind)
    source, target, negative = (pack.tiny.conditioning(kind, seed) for seed in (0, 9, 5))
    model = pack.tiny.model(kind)
    bundle = _invert(pack, model, source, latent, "ddim", keep_path=True)
    shared = {"steps": STEPS, "scheduler": "simple", "cfg": 1.0, "strength": 1.0}
    runs = [
        lambda m, n=node_id: pack.call(n, model=m, source=source, latent=latent, **shared)
        for node_id in (
            "EDICTCouple", "BDIAInvert", "BELMInvert", "FixedPointInvert", "SPDInvert", "DirectInversion",
            "NoiseMapInvert", "RFInversion",
        )
    ]  # fmt: skip
    runs += [
        lambda m: _invert(pack, m, source, latent, "euler"),
        lambda m: _back(pack, m, bundle),
        lambda m: _npi(pack, m, bundle, target),
        lambda m: _fit(pack, m, bundle, negative),
        lambda m: _optimize(pack, m, bundle, latent, target),
        lambda m: _paired(pack, "InfEdit", m, source, target, latent),
        lambda m: _paired(pack, "FlowEdit", m, source, target, latent),
        lambda m: pack.call("InversionReport", model=m, inversion=bundle),
    ]
    for name in CACHES:
        patched = _cached(counter.model, name)
        for run in runs if name == CACHES[0] else runs[:1]:
            refuses(lambda r=run, m=patched: r(m), "got the cache patch", name)
    assert counter.calls == 0
    # A wrapper that is none of them is let through.
    _back(pack, _cached(model, "Timing"), bundle)
