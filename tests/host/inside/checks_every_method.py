"""Each method on what it may meet: every kind of model, ControlNets, rows with prompts of their own, guidance."""

from itertools import cycle

import nodes
import torch
from helpers import STEPS, relative, same_snapshot, snapshot, trained

CFG = 7.5
# The network is float32 and so is the latent that comes back; the states are float64. Few steps are long ones, which
# enlarge the rounding of the network; seen on tiny SDXL: 2e-6.
EXACT = 1e-5
# Batched kernels round differently, and what is no contraction amplifies that: 2e-3 was seen of a fixed point.
CLOSE = 1e-2
# As many updates as show that it runs.
SHORT = {"spd": {"spd_iterations": 2}}


def _methods(pack):
    return list(pack.module("inversion").METHODS)


def _invert(pack, model, source, latent, method, **changes):
    """Invert's INVERSION by a method."""
    inputs = {"steps": STEPS, "scheduler": "simple", "cfg": 1.0, "strength": 1.0, **SHORT.get(method, {}), **changes}
    return pack.call("Invert", model=model, source=source, latent=latent, method=method, **inputs)[0]


def _back(pack, model, linked, **changes):
    """Resample's samples."""
    return pack.call("Resample", model=model, inversion=linked, **{"cfg": 1.0, **changes})[0]["samples"]


def _inversion_free(pack, node_id, model, source, target, latent, **changes):
    """Samples of InfEdit or FlowEdit."""
    own = {"InfEdit": {"strength": 1.0, "eta": 1.0}, "FlowEdit": {"n_max": STEPS, "n_avg": 1, "n_min": 0}}[node_id]
    inputs = {"steps": STEPS, "scheduler": "simple", "source_cfg": 1.0, "target_cfg": 1.0, "seed": 3, **own, **changes}
    return pack.call(node_id, model=model, source=source, target=target, latent=latent, **inputs)[0]["samples"]


def _npi(pack, model, linked, target):
    """Samples of NegativePromptInversion."""
    inputs = {"cfg": CFG, "prox": "none", "quantile": 0.75, "pull": 0.0}
    return pack.call("NegativePromptInversion", model=model, inversion=linked, target=target, **inputs)[0]["samples"]


def _optimize(pack, model, linked, reference, positive):
    """NoiseOptimize's INVERSION."""
    inputs = {"cfg": 1.0, "iterations": 2, "learning_rate": 0.02, "pull": 0.1, "norm": "L2"}
    found, *_ = pack.call(
        "NoiseOptimize", model=model, inversion=linked, reference=reference, positive=positive, **inputs
    )
    return found


def check_every_method_on_every_kind(pack):
    """Two pictures or clips at once, not square, at full strength and below: finite, kept in shape, back, edited."""
    core, strengths = pack.module("inversion"), cycle((1.0, 0.5, 0.75))
    for kind in pack.tiny.KINDS:
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        source, target = pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, seed=9)
        before = snapshot(model)
        for method, strength in zip(_methods(pack), strengths):
            linked, what = _invert(pack, model, source, latent, method, strength=strength), (kind, method, strength)
            record = linked
            assert record.shape == tuple(latent["samples"].shape) and record.x.dtype == torch.float64, what
            back = _back(pack, model, linked)
            edited = _back(pack, model, linked, positive=target)
            for each in (record.x, back, edited):
                assert each.shape == latent["samples"].shape and bool(each.isfinite().all()), what
            assert back.dtype == edited.dtype == latent["samples"].dtype, what
            if core.METHODS[method].reversible:
                assert relative(back, latent["samples"]) <= EXACT, (what, relative(back, latent["samples"]))
            assert relative(edited, back) > 1e-4, what
        same_snapshot(model, before)


def check_every_method_under_a_controlnet(pack):
    """It acts on every way down, exact methods stay exact under guidance, fits pass it; its weights are left alone."""
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
            linked = _invert(pack, model, source, latent, method)
            ends = [_back(pack, model, linked, positive=prompt) for prompt in (target, bare)]
            assert relative(*ends) > 1e-4, (kind, method, "the ControlNet did not act on the way down")
            if core.METHODS[method].reversible:
                guided = _invert(pack, model, source, latent, method, cfg=3.0, negative=negative)
                error = relative(_back(pack, model, guided), latent["samples"])
                assert error <= EXACT, (kind, method, error)
        linked = _invert(pack, model, source, latent, "euler")
        assert torch.equal(_npi(pack, model, linked, source), _back(pack, model, linked)), kind
        meta = _optimize(pack, model, linked, pack.tiny.latent(kind, seed=4), target).meta
        assert meta["noise_optimize_loss"] < meta["noise_optimize_first_loss"], kind
        same_snapshot(model, before)
        now = control.control_model.state_dict()
        assert all(torch.equal(now[name], value) for name, value in weights.items()), kind


def check_rows_have_prompts_of_their_own(pack):
    """One CONDITIONING with a row for each picture: text and pooled text of a row act on that row and no other."""
    for kind, methods in (("sdxl", _methods(pack)), ("sd3", ("edict", "midpoint"))):
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        prompts = [pack.tiny.conditioning(kind, seed) for seed in (0, 9)]

        def both(first, second):
            (one, more), (two, others) = first[0], second[0]
            pooled = torch.cat([more["pooled_output"], others["pooled_output"]])
            return [[torch.cat([one, two]), {**more, "pooled_output": pooled}]]

        source, swapped = both(*prompts), both(*prompts[::-1])
        for method in methods:
            edited = _back(pack, model, _invert(pack, model, source, latent, method), positive=swapped)
            for row in range(2):
                alone = {"samples": latent["samples"][row : row + 1]}
                single = _invert(pack, model, prompts[row], alone, method)
                wanted = _back(pack, model, single, positive=prompts[1 - row])
                error = relative(edited[row : row + 1], wanted)
                assert error < CLOSE, (kind, method, row, error)
                assert relative(edited[1 - row : 2 - row], wanted) > 0.1, (kind, method, row)
        for node_id in ("InfEdit", "FlowEdit"):
            edited = _inversion_free(pack, node_id, model, source, swapped, latent)
            for row in range(2):
                alone = {"samples": latent["samples"][row : row + 1], "batch_index": [row]}
                single = _inversion_free(pack, node_id, model, prompts[row], prompts[1 - row], alone)
                assert relative(edited[row : row + 1], single) < CLOSE, (kind, node_id, row)


def check_source_exact_nodes_on_the_trained_models(pack):
    """On networks that denoise, at cfg 7.5, 20 and 50 steps: the latent again, bit for bit or but for rounding."""
    for kind in ("eps", "flow"):
        model, (source, negative), latent = trained(pack, kind)
        for node_id in ("DirectInversion", "NoiseMapInvert"):
            for steps in (20, 50):
                inputs = {"steps": steps, "scheduler": "normal", "cfg": CFG, "negative": negative, "strength": 1.0}
                linked, _ = pack.call(node_id, model=model, source=source, latent=latent, **inputs)
                error = relative(_back(pack, model, linked), latent["samples"])
                assert error <= (0.0 if node_id == "DirectInversion" else 1e-7), (kind, node_id, steps, error)
        # Plain DDIM inversion, which these are for, does not come back so.
        plain = _invert(pack, model, source, latent, "ddim", steps=10)
        lost = _back(pack, model, plain, cfg=CFG, positive=source, negative=negative)
        assert relative(lost, latent["samples"]) > 0.02, (kind, relative(lost, latent["samples"]))
