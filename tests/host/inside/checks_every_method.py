"""Each method on what it may meet: every kind of model, ControlNets, rows with prompts of their own, guidance."""

from itertools import cycle

import torch
from helpers import never_worse, relative, same_snapshot, same_weights, snapshot, weights_of
from running import controlled, edit, fit, invert, play, trained

CFG = 7.5
# The network is float32 and so is the latent that comes back; the states are float64. Few steps are long ones, which
# enlarge the rounding of the network; seen on tiny SDXL: 2e-6.
EXACT = 1e-5
# Batched kernels round differently, and what is no contraction amplifies that: 2e-3 was seen of a fixed point.
CLOSE = 1e-2


def _by(pack, kind, method, **changes):
    """Invert's INVERSION by a method, of as many updates as show that it runs."""
    return invert(pack, kind, method=method, **{"spd_iterations": 2, **changes})[3][0]


def check_every_method_on_every_kind(pack):
    """Two pictures or clips at once, not square, at full strength and below: finite, kept in shape, back, edited."""
    methods, strengths = pack.module("inversion").METHODS, cycle((1.0, 0.5, 0.75))
    for kind in pack.tiny.KINDS:
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        before, samples = snapshot(model), latent["samples"]
        for (name, method), strength in zip(methods.items(), strengths):
            what = kind, name, strength
            inversion = _by(pack, kind, name, model=model, latent=latent, strength=strength)
            assert inversion.shape == tuple(samples.shape) and inversion.x.dtype == torch.float64, what
            assert inversion.space == ("flow" if kind in pack.tiny.FLOWS else "ve"), what
            back = play(pack, model, inversion)
            edited = play(pack, model, inversion, positive=pack.tiny.conditioning(kind, seed=9))
            for each in (inversion.x, back, edited):
                assert each.shape == samples.shape and bool(each.isfinite().all()), what
            assert back.dtype == edited.dtype == samples.dtype, what
            assert not method.reversible or relative(back, samples) <= EXACT, (what, relative(back, samples))
            assert relative(edited, back) > 1e-3, what
        same_snapshot(model, before)


def check_every_method_under_a_controlnet(pack):
    """It acts up and down, exact methods stay exact under guidance, fits pass it; its weights are left alone."""
    for kind in ("sd15", "sdxl"):
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        plain, bare, empty = (pack.tiny.conditioning(kind, seed) for seed in (0, 9, 5))
        (source, target, negative), control = controlled(pack, kind, (plain, bare, empty))
        (elsewhere,), _ = controlled(pack, kind, (plain,), seed=2)
        weights, tensors = weights_of(control.control_model), list(control.control_model.parameters())
        before = snapshot(model)
        given = {"model": model, "latent": latent}
        for name, method in pack.module("inversion").METHODS.items():
            inversion = _by(pack, kind, name, source=source, **given)
            ends = [play(pack, model, inversion, positive=prompt) for prompt in (target, bare)]
            assert relative(*ends) > 1e-4, (kind, name, "the ControlNet did not act on the way down")
            if method.reversible:
                guided = _by(pack, kind, name, source=source, cfg=3.0, negative=negative, **given)
                error = relative(play(pack, model, guided), latent["samples"])
                assert error <= EXACT, (kind, name, error)
        path, other, without = (
            _by(pack, kind, "ddim", source=s, keep_path=True, **given) for s in (source, elsewhere, plain)
        )
        assert relative(path.x, without.x) > 1e-3 and relative(path.x, other.x) > 1e-4, (kind, "not on the way up")
        npi = {"model": model, "inversion": path, "target": source, "cfg": CFG}
        (same,) = pack.call("NegativePromptInversion", **npi)
        assert torch.equal(same["samples"], play(pack, model, path)), kind
        asked = {"model": model, "inversion": path, "reference": pack.tiny.latent(kind, seed=4), "positive": target}
        meta = pack.call("NoiseOptimize", **asked, iterations=2, learning_rate=0.02)[0].meta
        assert meta["noise_optimize_loss"] < meta["noise_optimize_first_loss"], kind
        fitted, _, text = fit(pack, model, path, negative)
        never_worse(text)
        ends = play(pack, model, fitted), play(pack, model, path, cfg=3.0, positive=source, negative=negative)
        errors = [relative(each, latent["samples"]) for each in ends]
        assert errors[0] < errors[1], (kind, errors)
        for node in ("InfEdit", "FlowEdit"):
            guided = {"source_cfg": 3.0, "target_cfg": 3.0, "negative": negative}
            same = edit(pack, node, kind, **given, source=source, target=source, **guided)
            assert relative(same, latent["samples"]) < 1e-6, (kind, node)
            ends = [
                edit(pack, node, kind, **given, source=one, target=two)
                for one, two in ((source, target), (plain, bare))
            ]
            assert relative(*ends) > 1e-3, (kind, node, "the ControlNet did not act")
        same_snapshot(model, before)
        same_weights(control.control_model, weights)
        assert all(a is b for a, b in zip(tensors, control.control_model.parameters(), strict=True)), kind


def check_rows_have_prompts_of_their_own(pack):
    """One CONDITIONING with a row for each picture: text and pooled text of a row act on that row and no other."""
    for kind, methods in (("sdxl", list(pack.module("inversion").METHODS)), ("sd3", ("edict", "midpoint"))):
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        prompts = [pack.tiny.conditioning(kind, seed) for seed in (0, 9)]

        def both(first, second):
            (one, more), (two, others) = first[0], second[0]
            pooled = torch.cat([more["pooled_output"], others["pooled_output"]])
            return [[torch.cat([one, two]), {**more, "pooled_output": pooled}]]

        source, swapped = both(*prompts), both(*prompts[::-1])
        alone = [{"samples": latent["samples"][row : row + 1], "batch_index": [row]} for row in range(2)]
        for method in methods:
            inversion = _by(pack, kind, method, model=model, latent=latent, source=source)
            edited = play(pack, model, inversion, positive=swapped)
            for row in range(2):
                single = {"samples": alone[row]["samples"]}
                single = _by(pack, kind, method, model=model, latent=single, source=prompts[row])
                wanted = play(pack, model, single, positive=prompts[1 - row])
                error = relative(edited[row : row + 1], wanted)
                assert error < CLOSE, (kind, method, row, error)
                assert relative(edited[1 - row : 2 - row], wanted) > 0.1, (kind, method, row)
        for node in ("InfEdit", "FlowEdit"):
            edited = edit(pack, node, kind, model, latent, source=source, target=swapped)
            for row in range(2):
                sides = {"source": prompts[row], "target": prompts[1 - row]}
                single = edit(pack, node, kind, model, alone[row], **sides)
                assert relative(edited[row : row + 1], single) < CLOSE, (kind, node, row)


def check_source_exact_nodes_on_the_trained_models(pack):
    """On networks that denoise, at cfg 7.5, 20 and 50 steps: the latent again, bit for bit or but for rounding."""
    for kind in ("eps", "flow"):
        model, (source, negative), latent = trained(pack, kind)
        given, guided = {"model": model, "source": source, "latent": latent}, {"cfg": CFG, "negative": negative}
        for node in ("DirectInversion", "NoiseMapInvert"):
            for steps in (20, 50):
                inversion, _ = pack.call(node, steps=steps, scheduler="normal", **given, **guided)
                error = relative(play(pack, model, inversion), latent["samples"])
                assert error <= (0.0 if node == "DirectInversion" else 1e-7), (kind, node, steps, error)
        # Plain DDIM inversion, which these are for, does not come back so.
        lost = play(pack, model, _by(pack, kind, "ddim", steps=10, **given), positive=source, **guided)
        assert relative(lost, latent["samples"]) > 0.02, (kind, relative(lost, latent["samples"]))
