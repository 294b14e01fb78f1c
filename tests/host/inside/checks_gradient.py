"""Gradients through whole walks under the host's inference mode: NoiseOptimize, SPDInvert, what they leave behind."""

import comfy.model_management
import nodes
import torch
from helpers import Counter, invert, no_interrupt, refuses, relative, same_snapshot, snapshot

# Flux is told its guidance as a number; it has no negative to fit an embedding for.
GUIDED = ("sd15", "sd15_v", "sdxl", "sd3", "wan")
CFG = 3.0
FALLING = (0.9, 0.6, 0.3, 0.1)


def _optimize(pack, kind, batch=1, model=None, inversion=None, **changes):
    """Invert and optimise on a tiny model; returns (model, inversion before, outputs)."""
    if inversion is None:
        model, _, _, (inversion, *_) = invert(pack, kind, batch, model=model)
    inputs = {
        "model": model,
        "inversion": inversion,
        "reference": pack.tiny.latent(kind, seed=4),
        "cfg": CFG,
        "iterations": 3,
        "learning_rate": 0.02,
        "pull": 0.1,
        "norm": "L2",
        "positive": pack.tiny.conditioning(kind, seed=9),
        "negative": pack.tiny.conditioning(kind, seed=5),
        **changes,
    }
    return model, inversion, pack.call("NoiseOptimize", **inputs)


def _interrupted(call):
    try:
        call()
    except comfy.model_management.InterruptProcessingException:
        return
    raise AssertionError("the run was not interrupted")


def check_walk_gradient_is_that_of_finite_differences(pack):
    """At the noise of every kind and at the negative's embedding, on models built in inference mode, to 1e-3."""
    session, inversion = pack.module("nodes.host.session"), pack.module("inversion")
    for kind in pack.tiny.KINDS:
        for method in ("fireflow",) if kind != "sd15" else ("fireflow", "midpoint"):
            model = pack.tiny.model(kind)
            samples = pack.tiny.latent(kind, batch=2)["samples"]
            weights = torch.randn(samples.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            stepper = inversion.get_method(method).down
            start = torch.randn(1, 8 if kind == "wan" else 77, pack.tiny.CONTEXT, generator=torch.Generator())

            def slopes(run, kind=kind, stepper=stepper, start=start, weights=weights, x=samples):
                denoiser, x = run.denoiser(), x.double()
                stages = () if kind == "flux" else (start,)

                def value(state, embeddings):
                    asked = denoiser if not embeddings else denoiser.with_embedding(embeddings[0])
                    with torch.no_grad():
                        return float((weights * inversion.walk(asked, state, FALLING, stepper())).sum())

                found = inversion.walk_gradient(
                    denoiser, x, FALLING, stepper, lambda end: (weights * end).sum(), embeddings=stages
                )
                pairs = []
                for part, gradient in (("noise", found.start), *(("embedding", g) for g in found.embeddings)):
                    unit = gradient / gradient.norm()
                    slope = float((gradient.double() * unit.double()).sum())
                    assert slope > 0.0
                    differences = []
                    for h in (0.03, 0.1):
                        ends = [
                            value(x + side * h * unit, stages)
                            if part == "noise"
                            else value(x, (start + side * h * unit,))
                            for side in (1.0, -1.0)
                        ]
                        differences.append((ends[0] - ends[1]) / (2.0 * h))
                    pairs.append((part, slope, differences))
                return pairs

            with torch.inference_mode():
                tensors = list(model.model.parameters()) + list(model.model.buffers())
                assert all(tensor.is_inference() for tensor in tensors)
                negative = None if kind == "flux" else pack.tiny.conditioning(kind, seed=5)
                cfg = 1.0 if kind == "flux" else CFG
                source = session.Branch(pack.tiny.conditioning(kind), negative, cfg)
                found = session.Guider(model, {"source": source}).run(samples, FALLING, slopes, gradients=True)
                now = list(model.model.parameters()) + list(model.model.buffers())
                assert all(a is b for a, b in zip(tensors, now, strict=True)), "weights were not put back"
            assert [part for part, *_ in found] == (["noise"] if kind == "flux" else ["noise", "embedding"])
            for part, slope, differences in found:
                errors = [abs(each / slope - 1.0) for each in differences]
                assert min(errors) < 1e-3, (kind, method, part, errors)


def check_noise_optimize_on_every_kind(pack):
    """The kept loss never rises, the noise moves a little, and Resample gives the LATENT bit for bit."""
    for kind in pack.tiny.KINDS:
        flux = kind == "flux"
        more = {"cfg": 1.0, "negative": None} if flux else {}
        model, before, (linked, latent, plot, text) = _optimize(pack, kind, batch=2, **more)
        record, old = linked, before
        assert plot.shape[0] == 1 and plot.shape[-1] == 3 and "in 3 updates" in text, kind
        assert record.meta["noise_optimize_loss"] <= record.meta["noise_optimize_first_loss"], kind
        assert not torch.equal(record.x, old.x) and relative(record.x, old.x) < 0.2, kind
        assert (
            torch.equal(record.x0, old.x0)
            and record.fingerprints == old.fingerprints
            and record.x.is_inference() is False
        )
        target, negative = pack.tiny.conditioning(kind, seed=9), None if flux else pack.tiny.conditioning(kind, seed=5)
        (again,) = pack.call(
            "Resample", model=model, inversion=linked, cfg=1.0 if flux else CFG, positive=target, negative=negative
        )
        assert torch.equal(again["samples"], latent["samples"]), kind
        reference = pack.tiny.latent(kind, seed=4)["samples"]
        (plain,) = pack.call(
            "Resample", model=model, inversion=before, cfg=1.0 if flux else CFG, positive=target, negative=negative
        )
        ours, theirs = (float((each["samples"] - reference).square().mean()) for each in (latent, plain))
        assert ours < theirs, (kind, ours, theirs)


def check_noise_optimize_under_the_own_prompt_and_in_a_mask(pack):
    """Without a positive it is the reconstruction that is optimised; in a mask only what is marked counts."""
    for kind in ("sdxl", "wan"):
        mask = torch.zeros(1, 64, 96)
        mask[:, :, 48:] = 1.0
        model, _, _, (inversion, *_) = invert(pack, kind, 2)
        for norm in ("L1", "L2"):
            more = {"positive": None, "negative": None, "mask": mask, "norm": norm}
            _, _, (linked, out, _, _) = _optimize(pack, kind, model=model, inversion=inversion, **more)
            (again,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
            assert torch.equal(again["samples"], out["samples"]), kind
            reference = pack.tiny.latent(kind, seed=4)["samples"]
            (plain,) = pack.call("Resample", model=model, inversion=inversion, cfg=1.0)
            inside = [float((each["samples"] - reference)[..., 6:].abs().mean()) for each in (out, plain)]
            assert inside[0] < inside[1], (kind, norm, inside)


def check_gradients_leave_the_model_alone(pack):
    """Bits, options and the very tensors, after a run and after an interrupted one; conditioning too."""
    for kind in ("sd15", "sd3", "flux"):
        model = pack.tiny.model(kind)
        latent, source = pack.tiny.latent(kind), pack.tiny.conditioning(kind)
        before, tensors = snapshot(model), list(model.model.parameters()) + list(model.model.buffers())
        kept = source[0][0].clone()
        more = {"cfg": 1.0, "negative": None}

        def run(changed, kind=kind, latent=latent, source=source, more=more):
            *_, (inversion, *_) = invert(pack, kind, model=changed, latent=latent, method="spd", spd_iterations=2)
            _optimize(pack, kind, model=changed, inversion=inversion, positive=source, **more)

        run(model)
        counter = Counter(model)
        run(counter.model)
        total = counter.calls
        for stop in (3, total - 4):
            with no_interrupt():
                counter = Counter(model, interrupt_after=stop)
                _interrupted(lambda c=counter, r=run: r(c.model))
                # At most the call that was under way.
                assert counter.calls == stop, (kind, counter.calls, stop)
        same_snapshot(model, before)
        now = list(model.model.parameters()) + list(model.model.buffers())
        assert all(a is b for a, b in zip(tensors, now, strict=True)), kind
        assert torch.equal(source[0][0], kept)
        assert not getattr(comfy.model_management, "in_training", False)
        assert not torch.is_inference_mode_enabled()


def check_interrupted_optimisation_keeps_the_best(pack):
    """What was found lands in the output folder, plays back, and can be gone on from."""
    output = pack.workspace / "output" / "retrace"
    model, inversion, _ = _optimize(pack, "sd15")

    def files():
        return set(output.glob("noise_optimize_unfinished*")) if output.exists() else set()

    before = files()
    # Four steps of two evaluations, each of two branches, and all of that twice for an update: the third is under way.
    with no_interrupt():
        counter = Counter(model, interrupt_after=70)
        _interrupted(lambda: _optimize(pack, "sd15", model=counter.model, inversion=inversion, iterations=8))
    (kept,) = files() - before
    (loaded,) = pack.call("LoadInversion", file=f"retrace/{kept.name} [output]")
    # Two noises were judged by then: the inverted one, and that of the first update.
    _, _, (short, *_) = _optimize(pack, "sd15", model=model, inversion=inversion, iterations=1)
    assert relative(loaded.x, short.x) < 1e-6
    _, _, (further, *_) = _optimize(pack, "sd15", model=model, inversion=loaded)
    assert further.meta["noise_optimize_loss"] < short.meta["noise_optimize_loss"]
    with no_interrupt():
        counter = Counter(model, interrupt_after=70)
        _interrupted(
            lambda: _optimize(
                pack, "sd15", model=counter.model, inversion=inversion, iterations=8, save_unfinished=False
            )
        )
    assert files() - before == {kept}


def check_gradient_refusals(pack):
    """Each in a sentence, before the network is asked."""
    model, _, _, (inversion, *_) = invert(pack, "sd15")
    counter = Counter(model)

    def refused(*parts, **changes):
        given = {"model": counter.model, "inversion": inversion, **changes}
        refuses(lambda: _optimize(pack, "sd15", **given), *parts)

    *_, (pair, *_) = invert(pack, "sd15", model=model, method="belm")
    refused("a method that keeps one latent, got belm", inversion=pair)
    refused("reference must have the inversion's size", reference=pack.tiny.latent("sd15", size=(8, 8)))
    refused("reference must have the inversion's size", reference=pack.tiny.latent("sd15", batch=3))
    refused("mask must mark some of every picture", mask=torch.zeros(1, 64, 96))
    refused("cfg must be 1 without a negative", negative=None)
    (name,) = pack.call("SaveInversion", inversion=inversion, filename_prefix="retrace/bare", half=False)
    (loaded,) = pack.call("LoadInversion", file=name)
    refused("source must be connected to reconstruct", inversion=loaded, positive=None, negative=None)
    cached = counter.model.clone()
    cached.add_wrapper_with_key("outer_sample", "easycache", lambda executor, *a, **k: executor(*a, **k))
    refused("got the cache patch 'easycache'", model=cached)
    other = pack.tiny.model("sd15", seed=3)
    refused("must be the one that made the inversion", model=other)
    assert counter.calls == 0
    # Weights of eight bits: stored as a tensor of that type.
    quantised = pack.tiny.model("sd15")
    with torch.inference_mode():
        block = quantised.model.diffusion_model.out[2]
        block.weight = torch.nn.Parameter(block.weight.to(torch.float8_e4m3fn), requires_grad=False)
    *_, (own, *_) = invert(pack, "sd15")
    sentence = "model must have weights of 16 bits or more to be differentiated, got float8_e4m3fn"
    refused(sentence, model=quantised, inversion=own)
    refuses(lambda: invert(pack, "sd15", model=quantised, method="spd"), sentence)


def check_attention_reads_the_source_and_not_its_moved_noise(pack):
    """Without a path nothing tells where the source was, and the edit is refused; with one it plays."""
    model = pack.tiny.model("sd15")
    for source in ("pinned", "free"):
        (plan, _) = pack.call(
            "AttentionInject", model=model, preset="masactrl", variant="preset's own", layers="all", start=0.0, end=1.0,
            strength=1.0, source=source, source_for="preset's own", tokens="preset's own",
        )  # fmt: skip
        target = {"cfg": 1.0, "positive": pack.tiny.conditioning("sd15", seed=9), "attention": plan}
        for keep_path in (False, True):
            *_, (inversion, *_) = invert(pack, "sd15", model=model, keep_path=keep_path)
            _, _, (moved, *_) = _optimize(pack, "sd15", model=model, inversion=inversion, learning_rate=0.1)
            (plain,) = pack.call("Resample", model=model, inversion=inversion, **target)
            if not keep_path:
                sentence = "inversion must hold its path to tell where its source was"
                refuses(lambda m=moved, t=target: pack.call("Resample", model=model, inversion=m, **t), sentence)
                continue
            (edited,) = pack.call("Resample", model=model, inversion=moved, **target)
            assert bool(edited["samples"].isfinite().all()), source
            assert relative(edited["samples"], plain["samples"]) > 1e-4, source


def check_rows_of_different_size_in_half_precision(pack):
    """Through a float16 network a row whose loss counts a billionth of its neighbour's has the same gradient."""
    session, inversion = pack.module("nodes.host.session"), pack.module("inversion")
    stepper = inversion.get_method("euler").down
    for kind in ("sd15", "sd3"):
        model, samples = pack.tiny.model(kind, dtype=torch.float16), pack.tiny.latent(kind, batch=2)["samples"]

        def slopes(run, x=samples):
            denoiser, found = run.denoiser(), []
            for weight in (1.0, 2.0**30):
                weights = torch.tensor([1.0, weight], dtype=torch.float64).reshape(2, 1, 1, 1)
                loss = inversion.walk_gradient(
                    denoiser, x.double(), FALLING, stepper, lambda end, w=weights: (w * end.square()).sum()
                )
                found.append(loss.start / weights)
            return found

        with torch.inference_mode():
            guider = session.Guider(model, {"source": session.Branch(pack.tiny.conditioning(kind))})
            alike, apart = guider.run(samples, FALLING, slopes, gradients=True)
        for row in range(2):
            assert bool(alike[row].any()) and relative(apart[row], alike[row]) < 0.01, (kind, row)


def check_spd_on_every_kind(pack):
    """No step ends worse than it starts, rows are inverted each for itself, and the report tells the losses."""
    for kind in pack.tiny.KINDS:
        inputs = {
            "model": pack.tiny.model(kind),
            "source": pack.tiny.conditioning(kind),
            "latent": pack.tiny.latent(kind, batch=2),
            "steps": 4,
            "scheduler": "simple",
            "cfg": 1.0,
            "strength": 1.0,
            "iterations": 3,
            "stop": 0.0,
        }
        linked, _, _, _, loss, text = pack.call("SPDInvert", **inputs)
        steps = [[float(each) for each in step.split(">")] for step in linked.meta["losses"].split()]
        assert len(steps) == 4 and all(after <= before for before, after in steps), (kind, steps)
        assert loss == linked.meta["loss"] and "12 updates in 4 steps" in text, (kind, text)
        report = pack.call("InversionReport", inversion=linked, model=inputs["model"])
        assert any("gradient descent" in str(part) for part in report), kind
        row = {"samples": inputs["latent"]["samples"][1:]}
        alone, *_ = pack.call("SPDInvert", **{**inputs, "latent": row})
        assert relative(alone.x, linked.x[1:]) < 1e-3, (kind, relative(alone.x, linked.x[1:]))


def _shapes(pack, caption_of, **words):
    """The trained eps model, a picture of its world as a latent, and prompts."""
    model, clip, vae, *_ = pack.call("LoadShapesModel", kind="eps")
    picture, mask, caption, *_ = pack.call("ShapesPicture", size="big", batch_size=1, **words)
    prompts = [nodes.CLIPTextEncode().encode(clip, text)[0] for text in (caption, caption_of, "")]
    return model, {"samples": vae.encode(picture)}, mask, prompts


def check_spd_on_the_trained_model(pack):
    """It comes back nearer than the predictor that it starts from."""
    with torch.inference_mode():
        model, latent, _, (source, *_) = _shapes(
            pack, "", colour="red", shape="circle", position="left", background="blue", seed=3
        )
        errors = {}
        for method in ("ddim", "spd"):
            linked, *_ = pack.call(
                "Invert", model=model, source=source, latent=latent, steps=10, scheduler="normal", method=method,
                cfg=1.0, strength=1.0, spd_iterations=10,
            )  # fmt: skip
            (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
            errors[method] = relative(back["samples"], latent["samples"])
    assert errors["spd"] < errors["ddim"] / 1.1, errors


def check_noise_optimize_on_the_trained_model(pack):
    """The edit comes to show the background of the source where it is asked to, and keeps to its noise."""
    with torch.inference_mode():
        model, latent, mask, (source, target, empty) = _shapes(
            pack, "a big green circle on the left of a blue background",
            colour="red", shape="circle", position="left", background="blue", seed=3,
        )  # fmt: skip
        linked, *_ = pack.call(
            "Invert", model=model, source=source, latent=latent, steps=6, scheduler="normal", method="ddim",
            cfg=1.0, strength=1.0,
        )  # fmt: skip
        _, _, (found, out, _, text) = _optimize(
            pack, "eps", model=model, inversion=linked, reference=latent, positive=target, negative=empty,
            mask=1.0 - mask, iterations=8, learning_rate=0.05,
        )  # fmt: skip
        (plain,) = pack.call(
            "Resample", model=model, inversion=linked, cfg=CFG, positive=target, negative=empty
        )  # fmt: skip
        assert found.meta["noise_optimize_loss"] < 0.8 * found.meta["noise_optimize_first_loss"], text
        assert relative(found.x, linked.x) < 0.5, text
        assert relative(out["samples"], latent["samples"]) < relative(plain["samples"], latent["samples"])
