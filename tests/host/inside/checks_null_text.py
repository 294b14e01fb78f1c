"""NullTextOptimize: gradients under the host's inference mode, and what it leaves behind."""

import torch
from helpers import Counter, interrupted, logged, never_worse, refuses, refuses_each, relative
from running import advanced, fit, invert, play, reloaded, resuming, trained

# Flux is told its guidance as a number: it is refused.
KINDS = ("sd15", "sd15_v", "sdxl", "sd3", "wan")
CFG = 7.5


def _fit(pack, kind, batch=1, model=None, inversion=None, **changes):
    """Invert and fit a tiny model; returns (model, latent, inversion before, outputs)."""
    latent = None
    if inversion is None:
        model, _, latent, (inversion, *_) = invert(pack, kind, batch, model=model, keep_path=True, method="ddim")
    inputs = {"negative": pack.tiny.conditioning(kind, seed=5), "cfg": CFG, **changes}
    return model, latent, inversion, fit(pack, model, inversion, **inputs)


class _Gradient:
    """A script that compares gradients of one answer, and of the loss of a step, with central differences."""

    def __init__(self, pack, x, sigma):
        self.pack, self.x, self.sigma = pack, x, sigma

    def __call__(self, run):
        guider, gradients = run.guider, self.pack.module("nodes.host.gradients")
        negative, core = self.pack.module("nodes.host.negative"), self.pack.module("inversion.null_text")
        before, conds = list(guider.inner_model.parameters()), guider.conds
        assert all(weight.is_inference() for weight in before)
        with gradients.differentiable(guider.inner_model):
            guider.conds = {name: gradients.deinference(cond) for name, cond in conds.items()}
            source, unconditional = (run.denoiser("source", chunk=chunk) for chunk in ("cond", "uncond"))
            x, generator = self.x.clone(), torch.Generator().manual_seed(1)
            start = negative.unconditional_embedding(guider).float().expand(len(x), -1, -1).clone()
            own = guider.conds["negative"]
            weights, off = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(2))
            problem = core._GuidedStep(source, unconditional, x, x + 0.1 * off, self.sigma, 0.7 * self.sigma, CFG)

            def answer(embedding):
                return (unconditional.with_embedding(embedding)(x, self.sigma) * weights).sum()

            def loss(embedding):
                return problem.attempt(embedding, 0, False).score.sum()

            leaf = start.clone().requires_grad_(True)
            (of_answer,) = torch.autograd.grad(answer(leaf), leaf)
            of_loss = problem.attempt(leaf, 0, True).gradient
            assert all(weight.grad is None for weight in guider.inner_model.parameters())
            self.errors = {}
            for value, gradient in ((answer, of_answer), (loss, of_loss)):
                direction = gradient / gradient.norm()
                slope = float((gradient.double() * direction).sum())
                assert slope > 0.0
                with torch.no_grad():
                    differences = [
                        (float(value(start + h * direction)) - float(value(start - h * direction))) / (2.0 * h)
                        for h in (0.03, 0.1, 0.3)
                    ]
                self.errors[value.__name__] = min(abs(each / slope - 1.0) for each in differences)
            assert guider.conds["negative"] is own, "the guider's own negative was not put back"
            guider.conds = conds
        after = list(guider.inner_model.parameters())
        assert all(a is b for a, b in zip(before, after, strict=True)), "weights were not put back"


def check_gradient_is_that_of_finite_differences(pack):
    """On models built in inference mode, tiny and trained, for two pictures at once, to 1e-3."""
    session = pack.module("nodes.host.session")
    for kind in (*KINDS, "eps", "flow"):
        if kind in KINDS:
            model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)["samples"]
            prompts = [pack.tiny.conditioning(kind, seed) for seed in (0, 5)]
        else:
            model, prompts, latent = trained(pack, kind, 3)
            latent = latent["samples"].repeat(2, 1, 1, 1)
        with torch.inference_mode():
            script = _Gradient(pack, latent.double(), 0.6)
            session.Guider(model, {"source": session.Branch(*prompts, CFG)}).run(latent, (0.6, 0.0), script)
        assert set(script.errors) == {"answer", "loss"}
        assert max(script.errors.values()) < 1e-3, (kind, script.errors)


def check_null_text_on_every_kind(pack):
    """No step ends worse, the reconstruction is nearer, and it plays back as it was fitted, from a file too."""
    for kind in KINDS:
        model, latent, before, (fitted, plot, text) = _fit(pack, kind, batch=2)
        source, negative = pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, seed=5)
        assert len(fitted.embeddings) == fitted.index and fitted.embeddings[0].shape[0] == 2, kind
        assert fitted.meta["cfg"] == CFG and fitted.meta["climb_cfg"] == 1.0, kind
        assert plot.shape[0] == 1 and plot.shape[-1] == 3 and "mean loss" in text, kind
        never_worse(text)
        loaded, guided = reloaded(pack, fitted), {"cfg": CFG, "positive": source}
        back = play(pack, model, fitted)
        assert torch.equal(play(pack, model, loaded, source=source, negative=negative), back), kind
        for each, more in ((fitted, {}), (loaded, {"negative": negative})):
            assert relative(play(pack, model, each, **guided, **more), back) < 1e-6, kind
        plain = play(pack, model, before, negative=negative, **guided)
        ours, theirs = (relative(each, latent["samples"]) for each in (back, plain))
        assert ours < theirs, (kind, ours, theirs)
        other = play(pack, model, fitted, cfg=CFG, positive=pack.tiny.conditioning(kind, seed=9))
        assert relative(other, back) > 1e-3, kind
        # At cfg 1 the embeddings act on nothing, so nothing is asked for.
        assert torch.equal(play(pack, model, fitted, positive=source), play(pack, model, before)), kind
        # Through a stock guider by InversionSampler.
        end = torch.tensor(fitted.falling), {"samples": torch.zeros_like(back)}
        resumed = advanced(model, source, resuming(pack, fitted), *end, negative=negative, cfg=CFG)
        assert relative(resumed, back) < 1e-5, (kind, relative(resumed, back))
        stock = resuming(pack, fitted, "euler")
        refuses(lambda a=(model, source, stock, *end): advanced(*a), "for one with fitted embeddings")
        call = lambda m=model, i=fitted: play(pack, m, i, method="midpoint")  # noqa: E731
        refuses(call, "with fitted embeddings must be replayed by its own method")
        assert pack.call("InversionReport", inversion=fitted, model=model)[2] > 0.0


def check_interrupted_fit_is_kept(pack):
    """What is finished lands in the output folder, and going on from there ends where an unbroken fit does."""
    output = pack.workspace / "output" / "retrace"
    model, _, inversion, (whole, *_) = _fit(pack, "sd15")

    def files():
        return set(output.glob("null_text_unfinished*")) if output.exists() else set()

    def stop(**changes):
        # A step takes one call for the source and four for the negative, so that the ninth lies in the second step.
        interrupted(lambda m: _fit(pack, "sd15", model=m, inversion=inversion, **changes), model, 9)
        return files() - before

    before = files()
    (saved,) = stop()
    (loaded,) = pack.call("LoadInversion", file=f"retrace/{saved.name} [output]")
    assert len(loaded.embeddings) == 1
    refuses(lambda: _fit(pack, "sd15", model=model, inversion=loaded), "source must be connected")
    source = pack.tiny.conditioning("sd15")
    _, _, _, (resumed, _, text) = _fit(pack, "sd15", model=model, inversion=loaded, source=source)
    assert "(found before)" in text
    assert all(torch.equal(a, b) for a, b in zip(resumed.embeddings, whole.embeddings, strict=True))
    assert stop(save_unfinished=False) == {saved}


def check_null_text_refusals(pack):
    """Each in a sentence, before the network is asked."""
    flux, _, _, (told, *_) = invert(pack, "flux", keep_path=True)
    refuses(lambda: _fit(pack, "flux", model=flux, inversion=told), "guidance-distilled Flux", "told its guidance")
    model, _, _, (inversion, *_) = invert(pack, "sd15", keep_path=True)
    patched, counter = model.clone(), Counter(model)
    patched.set_model_sampler_cfg_function(lambda args: args["cond"])
    bare, pair = (
        invert(pack, "sd15", model=model, **how)[3][0] for how in ({}, {"keep_path": True, "method": "edict"})
    )
    _, _, _, (fitted, *_) = _fit(pack, "sd15", model=model, inversion=inversion)
    refuses_each(
        lambda **changes: _fit(pack, "sd15", **{"model": counter.model, "inversion": inversion, **changes}),
        ({"inversion": bare}, "set keep_path of Invert"),
        ({"cfg": 1.0}, "cfg must not be 1"),
        ({"model": patched}, "plain cfg", "sampler_cfg_function"),
        ({"negative": pack.tiny.conditioning("sd15", seed=5) * 2}, "one prompt for the whole"),
        ({"inversion": pair}, "a method that keeps one latent, got edict"),
        ({"inversion": fitted, "cfg": 3.0}, "cfg must be that of the embeddings"),
    )
    assert counter.calls == 0 and "cfg must not be 1" in pack.node("NullTextOptimize").validate_inputs(cfg=1.0)
    # What is fitted already is only walked.
    _fit(pack, "sd15", model=counter.model, inversion=fitted)
    assert counter.calls == 2 * fitted.index


def check_null_text_warns_of_a_guided_climb(pack):
    """The path of a climb under guidance can be fitted too, but the log says that it is not what is meant."""
    guided = {"keep_path": True, "method": "ddim", "negative": pack.tiny.conditioning("sd15", seed=5)}
    for cfg in (1.0, 3.0):
        model, _, _, (inversion, *_) = invert(pack, "sd15", cfg=cfg, **guided)
        with logged() as records:
            _fit(pack, "sd15", model=model, inversion=inversion, inner_steps=1)
        said = any("this inversion was made at cfg 3; null-text fits" in each.getMessage() for each in records)
        assert said == (cfg != 1.0)


def check_null_text_on_the_trained_models(pack):
    """On the trained eps and flow model, at cfg 7.5, the source comes back at least 2.5 times nearer than without."""
    # At the paper's rate ten updates bring the flow model only a part of the way.
    for kind, steps, rate in (("eps", 10, 0.01), ("flow", 20, 0.1)):
        model, (source, empty), latent = trained(pack, kind, 3)
        given = {"model": model, "source": source, "latent": latent, "steps": steps, "scheduler": "normal"}
        inversion, *_ = pack.call("Invert", method="ddim", keep_path=True, **given)
        fitted, plot, text = fit(pack, model, inversion, empty, cfg=CFG, inner_steps=10, learning_rate=rate)
        back = play(pack, model, fitted), play(pack, model, inversion, cfg=CFG, positive=source, negative=empty)
        ours, theirs = (relative(each, latent["samples"]) for each in back)
        assert ours * 2.5 < theirs, (kind, ours, theirs, text)
        assert plot.ndim == 4 and 0.0 <= float(plot.min()) < float(plot.max()) <= 1.0, kind
