"""Gradients through whole walks under the host's inference mode: NoiseOptimize, SPDInvert, what they leave behind."""

import comfy.model_management
import torch
from helpers import Counter, cached, interrupted, refuses, refuses_each, relative, same_snapshot, snapshot
from running import WORDS, encode, fit, invert, play, reloaded, shapes

CFG = 3.0
FALLING = (0.9, 0.6, 0.3, 0.1)


def _optimize(pack, kind, batch=1, model=None, inversion=None, **changes):
    """Invert and optimise on a tiny model; returns (model, inversion before, outputs)."""
    if inversion is None:
        model, _, _, (inversion, *_) = invert(pack, kind, batch, model=model)
    inputs = {"cfg": CFG, "iterations": 3, "learning_rate": 0.02, **changes}
    usual = (("positive", "conditioning", 9), ("negative", "conditioning", 5), ("reference", "latent", 4))
    inputs |= {name: getattr(pack.tiny, of)(kind, seed=seed) for name, of, seed in usual if name not in inputs}
    return model, inversion, pack.call("NoiseOptimize", model=model, inversion=inversion, **inputs)


def _tensors(model):
    return [*model.model.parameters(), *model.model.buffers()]


def _differences(value, gradient, steps=(0.03, 0.1)):
    """How far the slope of a gradient is off central differences of a function of what is added."""
    unit = gradient / gradient.norm()
    slope = float((gradient.double() * unit.double()).sum())
    assert slope > 0.0
    return min(abs((value(h * unit) - value(-h * unit)) / (2.0 * h) / slope - 1.0) for h in steps)


def check_walk_gradient_is_that_of_finite_differences(pack):
    """At the noise of every kind and at the negative's embedding, on models built in inference mode, to 1e-3."""
    session, core = pack.module("nodes.host.session"), pack.module("inversion")
    for kind, method in (*((kind, "fireflow") for kind in pack.tiny.KINDS), ("sd15", "midpoint")):
        model, samples = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)["samples"]
        weights = torch.randn(samples.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        stepper = core.get_method(method).down
        start = torch.randn(1, 8 if kind == "wan" else 77, pack.tiny.CONTEXT, generator=torch.Generator())
        # Flux is told its guidance as a number; it has no negative to fit an embedding for.
        stages = () if kind == "flux" else (start,)

        def errors(run, stepper=stepper, stages=stages, weights=weights, x=samples):
            denoiser, x = run.denoiser(), x.double()

            def value(state, *embeddings):
                asked = denoiser.with_embedding(embeddings[0]) if embeddings else denoiser
                with torch.no_grad():
                    return float((weights * core.walk(asked, state, FALLING, stepper())).sum())

            loss = lambda end: (weights * end).sum()  # noqa: E731
            gradients = core.walk_gradient(denoiser, x, FALLING, stepper, loss, embeddings=stages)
            assert len(gradients.embeddings) == len(stages)
            return [
                _differences(lambda moved: value(x + moved, *stages), gradients.start),
                *(_differences(lambda moved: value(x, *(s + moved for s in stages)), g) for g in gradients.embeddings),
            ]

        with torch.inference_mode():
            tensors = _tensors(model)
            assert all(tensor.is_inference() for tensor in tensors)
            sides = (None, 1.0) if kind == "flux" else (pack.tiny.conditioning(kind, seed=5), CFG)
            source = session.Branch(pack.tiny.conditioning(kind), *sides)
            off = session.Guider(model, {"source": source}).run(samples, FALLING, errors, gradients=True)
            assert all(a is b for a, b in zip(tensors, _tensors(model), strict=True)), "weights were not put back"
        assert max(off) < 1e-3, (kind, method, off)


def check_noise_optimize_on_every_kind(pack):
    """The loss of what is kept never rises, the noise moves a little, and Resample gives the LATENT bit for bit."""
    for kind in pack.tiny.KINDS:
        prompts = {"positive": pack.tiny.conditioning(kind, seed=9), "cfg": 1.0, "negative": None}
        if kind != "flux":
            prompts |= {"cfg": CFG, "negative": pack.tiny.conditioning(kind, seed=5)}
        model, old, (moved, latent, plot, text) = _optimize(pack, kind, batch=2, **prompts)
        assert plot.shape[0] == 1 and plot.shape[-1] == 3 and "in 3 updates" in text, kind
        assert moved.meta["noise_optimize_loss"] <= moved.meta["noise_optimize_first_loss"], kind
        assert not torch.equal(moved.x, old.x) and relative(moved.x, old.x) < 0.2, kind
        assert torch.equal(moved.x0, old.x0) and moved.fingerprints == old.fingerprints, kind
        assert moved.x.is_inference() is False
        assert torch.equal(play(pack, model, moved, **prompts), latent["samples"]), kind
        reference, plain = pack.tiny.latent(kind, seed=4)["samples"], play(pack, model, old, **prompts)
        ours, theirs = (float((each - reference).square().mean()) for each in (latent["samples"], plain))
        assert ours < theirs, (kind, ours, theirs)
    # Without a positive it is the reconstruction that is optimised; in a mask only what is marked counts.
    for kind in ("sdxl", "wan"):
        mask = torch.zeros(1, 64, 96)
        mask[:, :, 48:] = 1.0
        model, _, _, (inversion, *_) = invert(pack, kind, 2)
        reference = pack.tiny.latent(kind, seed=4)["samples"]
        for norm in ("L1", "L2"):
            more = {"positive": None, "negative": None, "mask": mask, "norm": norm}
            _, _, (moved, out, _, _) = _optimize(pack, kind, model=model, inversion=inversion, **more)
            plain, again = (play(pack, model, each) for each in (inversion, moved))
            assert torch.equal(again, out["samples"]), kind
            inside = [float((each - reference)[..., 6:].abs().mean()) for each in (again, plain)]
            assert inside[0] < inside[1], (kind, norm, inside)


def check_gradients_leave_the_model_alone(pack):
    """Bits, options and the very tensors, after a run and after an interrupted one; conditioning too."""
    for kind in ("sd15", "sd3", "flux"):
        model, source, negative = pack.tiny.model(kind), pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, 5)
        before, tensors, texts = snapshot(model), _tensors(model), [each[0][0].clone() for each in (source, negative)]

        def run(changed, kind=kind, source=source, negative=negative):
            given = {"model": changed, "source": source, "keep_path": True, "spd_iterations": 2}
            *_, (inversion, *_) = invert(pack, kind, method="spd", **given)
            _optimize(pack, kind, model=changed, inversion=inversion, positive=source, cfg=1.0, negative=None)
            if kind != "flux":
                assert inversion.embeddings is None and fit(pack, changed, inversion, negative)[0].embeddings

        counter = Counter(model)
        run(counter.model)
        for after in (3, counter.calls // 2, counter.calls - 4):
            interrupted(run, model, after)
        same_snapshot(model, before)
        assert all(a is b for a, b in zip(tensors, _tensors(model), strict=True)), kind
        assert all(torch.equal(each[0][0], text) for each, text in zip((source, negative), texts)), kind
        assert not getattr(comfy.model_management, "in_training", False)
        assert not torch.is_inference_mode_enabled()


def check_interrupted_optimisation_keeps_the_best(pack):
    """What was reached lands in the output folder, plays back, and can be gone on from."""
    output = pack.workspace / "output" / "retrace"
    model, inversion, _ = _optimize(pack, "sd15")
    given = {"model": model, "inversion": inversion}

    def files():
        return set(output.glob("noise_optimize_unfinished*")) if output.exists() else set()

    def stop(**changes):
        # Four steps of two evaluations, each of two branches, and all of that twice for an update: in the third.
        run = lambda m: _optimize(pack, "sd15", **{**given, "model": m}, iterations=8, **changes)  # noqa: E731
        interrupted(run, model, 70)
        return files() - before

    before = files()
    (saved,) = stop()
    (loaded,) = pack.call("LoadInversion", file=f"retrace/{saved.name} [output]")
    # Two noises were judged by then: the inverted one, and that of the first update.
    _, _, (short, *_) = _optimize(pack, "sd15", **given, iterations=1)
    assert relative(loaded.x, short.x) < 1e-6
    _, _, (further, *_) = _optimize(pack, "sd15", model=model, inversion=loaded)
    assert further.meta["noise_optimize_loss"] < short.meta["noise_optimize_loss"]
    assert stop(save_unfinished=False) == {saved}


def check_gradient_refusals(pack):
    """Each in a sentence, before the network is asked."""
    model, _, _, (inversion, *_) = invert(pack, "sd15")
    *_, (pair, *_) = invert(pack, "sd15", model=model, method="belm")
    counter, loaded = Counter(model), reloaded(pack, inversion)
    refuses_each(
        lambda **changes: _optimize(pack, "sd15", **{"model": counter.model, "inversion": inversion, **changes}),
        ({"inversion": pair}, "a method that keeps one latent, got belm"),
        ({"reference": pack.tiny.latent("sd15", size=(8, 8))}, "reference must have the inversion's size"),
        ({"reference": pack.tiny.latent("sd15", batch=3)}, "reference must have the inversion's size"),
        ({"mask": torch.zeros(1, 64, 96)}, "mask must mark some of every picture"),
        ({"negative": None}, "cfg must be 1 without a negative"),
        ({"inversion": loaded, "positive": None, "negative": None}, "source must be connected to reconstruct"),
        ({"model": cached(counter.model)}, "got the cache patch 'easycache'"),
        ({"model": pack.tiny.model("sd15", seed=3)}, "must be the one that made the inversion"),
    )
    assert counter.calls == 0
    # Weights of eight bits: stored as a tensor of that type.
    quantised = pack.tiny.model("sd15")
    with torch.inference_mode():
        block = quantised.model.diffusion_model.out[2]
        block.weight = torch.nn.Parameter(block.weight.to(torch.float8_e4m3fn), requires_grad=False)
    sentence = "model must have weights of 16 bits or more to be differentiated, got float8_e4m3fn"
    refuses(lambda: _optimize(pack, "sd15", model=quantised, inversion=inversion), sentence)
    refuses(lambda: invert(pack, "sd15", model=quantised, method="spd"), sentence)


def check_rows_of_different_size_in_half_precision(pack):
    """Through a float16 network a row whose loss counts a billionth of its neighbour's has the same gradient."""
    session, core = pack.module("nodes.host.session"), pack.module("inversion")
    for kind in ("sd15", "sd3"):
        model, samples = pack.tiny.model(kind, dtype=torch.float16), pack.tiny.latent(kind, batch=2)["samples"]

        def slopes(run, x=samples):
            denoiser, stepper, x = run.denoiser(), core.get_method("euler").down, x.double()
            for weight in (1.0, 2.0**30):
                weights = torch.tensor([1.0, weight], dtype=torch.float64).reshape(2, 1, 1, 1)
                loss = lambda end, w=weights: (w * end.square()).sum()  # noqa: E731
                yield core.walk_gradient(denoiser, x, FALLING, stepper, loss).start / weights

        with torch.inference_mode():
            guider = session.Guider(model, {"source": session.Branch(pack.tiny.conditioning(kind))})
            alike, apart = guider.run(samples, FALLING, lambda run, of=slopes: list(of(run)), gradients=True)
        for row in range(2):
            assert bool(alike[row].any()) and relative(apart[row], alike[row]) < 0.01, (kind, row)


def check_spd_on_every_kind(pack):
    """No step ends worse than it starts, rows are inverted each for itself, and the report tells the losses."""
    for kind in pack.tiny.KINDS:
        inputs = {"node": "SPDInvert", "iterations": 3, "stop": 0.0}
        model, _, latent, (inversion, _, _, _, loss, text) = invert(pack, kind, 2, **inputs)
        steps = [[float(each) for each in step.split(">")] for step in inversion.meta["losses"].split()]
        assert len(steps) == 4 and all(after <= before for before, after in steps), (kind, steps)
        assert loss == inversion.meta["loss"] and "12 updates in 4 steps" in text, (kind, text)
        report = pack.call("InversionReport", inversion=inversion, model=model)
        assert any("gradient descent" in str(part) for part in report), kind
        row = {"samples": latent["samples"][1:]}
        alone = invert(pack, kind, model=model, latent=row, **inputs)[3][0]
        assert relative(alone.x, inversion.x[1:]) < 1e-3, (kind, relative(alone.x, inversion.x[1:]))


def check_descents_on_the_trained_model(pack):
    """SPD comes back nearer than the predictor that it starts from."""
    # An optimised edit shows the background of the source where it is asked to, and keeps to its noise.
    model, clip, vae = shapes(pack)
    picture, mask, caption = pack.call("ShapesPicture", **WORDS, seed=3)
    source, target, empty = (encode(clip, text) for text in (caption, caption.replace("red", "green"), ""))
    with torch.inference_mode():
        latent = {"samples": vae.encode(picture)}
    given = {"model": model, "source": source, "latent": latent, "scheduler": "normal"}
    errors = {}
    for method in ("ddim", "spd"):
        inversion = pack.call("Invert", method=method, steps=10, spd_iterations=10, **given)[0]
        errors[method] = relative(play(pack, model, inversion), latent["samples"])
    assert errors["spd"] < errors["ddim"] / 1.1, errors
    inversion = pack.call("Invert", method="ddim", steps=6, **given)[0]
    prompts = {"positive": target, "negative": empty}
    asked = {"reference": latent, "mask": 1.0 - mask, "iterations": 8, "learning_rate": 0.05, **prompts}
    _, _, (moved, out, _, text) = _optimize(pack, "eps", model=model, inversion=inversion, **asked)
    plain = play(pack, model, inversion, cfg=CFG, **prompts)
    assert moved.meta["noise_optimize_loss"] < 0.8 * moved.meta["noise_optimize_first_loss"], text
    assert relative(moved.x, inversion.x) < 0.5, text
    assert relative(out["samples"], latent["samples"]) < relative(plain, latent["samples"])
