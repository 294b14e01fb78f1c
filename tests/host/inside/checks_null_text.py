"""NullTextOptimize: gradients under the host's inference mode, and what it leaves behind."""

import logging

import comfy.model_management
import comfy.samplers
import torch
from helpers import Counter, advanced, invert, no_interrupt, refuses, relative, same_snapshot, snapshot, trained

# Flux is told its guidance as a number: it is refused.
KINDS = ("sd15", "sd15_v", "sdxl", "sd3", "wan")
CFG = 7.5
TIGHT = {"stop": 0.0, "stop_growth": 0.0}


def _fit(pack, kind, batch=1, model=None, inversion=None, **changes):
    """Invert and fit a tiny model; returns (model, latent, inversion before, outputs)."""
    latent = None
    if inversion is None:
        model, _, latent, (inversion, *_) = invert(pack, kind, batch, model=model, keep_path=True, method="ddim")
    inputs = {
        "model": model,
        "inversion": inversion,
        "negative": pack.tiny.conditioning(kind, seed=5),
        "cfg": CFG,
        "inner_steps": 3,
        "learning_rate": 0.01,
        **TIGHT,
        **changes,
    }
    return model, latent, inversion, pack.call("NullTextOptimize", **inputs)


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
                    found = [
                        (float(value(start + h * direction)) - float(value(start - h * direction))) / (2.0 * h)
                        for h in (0.03, 0.1, 0.3)
                    ]
                self.errors[value.__name__] = min(abs(each / slope - 1.0) for each in found)
            assert guider.conds["negative"] is own, "the guider's own negative was not put back"
            guider.conds = conds
        after = list(guider.inner_model.parameters())
        assert all(a is b for a, b in zip(before, after, strict=True)), "weights were not put back"


def check_gradient_is_that_of_finite_differences(pack):
    """On models built in inference mode, tiny and trained, for two pictures at once, to 1e-3."""
    for kind in (*KINDS, "eps", "flow"):
        if kind in KINDS:
            model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)["samples"]
            prompts = [pack.tiny.conditioning(kind, seed) for seed in (0, 5)]
        else:
            model, prompts, latent = trained(pack, kind, 3)
            latent = latent["samples"].repeat(2, 1, 1, 1)
        with torch.inference_mode():
            session = pack.module("nodes.host.session")
            script = _Gradient(pack, latent.double(), 0.6)
            session.Guider(model, {"source": session.Branch(*prompts, CFG)}).run(latent, (0.6, 0.0), script)
        assert set(script.errors) == {"answer", "loss"}
        assert max(script.errors.values()) < 1e-3, (kind, script.errors)


def check_null_text_on_every_kind(pack):
    """No step ends worse, all is finite, the reconstruction is nearer, and the record plays back as it was fitted."""
    for kind in KINDS:
        model, latent, before, (linked, plot, text) = _fit(pack, kind, batch=2)
        record = linked
        assert len(record.embeddings) == record.index and record.embeddings[0].shape[0] == 2, kind
        assert record.meta["cfg"] == CFG and record.meta["climb_cfg"] == 1.0, kind
        assert plot.shape[0] == 1 and plot.shape[-1] == 3 and "mean loss" in text, kind
        for line in text.splitlines():
            if "updates" in line and "->" in line:
                first, last = (float(word) for word in (line.split()[3], line.split()[5]))
                assert last <= first, (kind, line)
        (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
        negative = pack.tiny.conditioning(kind, seed=5)
        source = pack.tiny.conditioning(kind)
        (plain,) = pack.call("Resample", model=model, inversion=before, cfg=CFG, positive=source, negative=negative)
        (edit,) = pack.call("Resample", model=model, inversion=linked, cfg=CFG, positive=source)
        assert relative(edit["samples"], back["samples"]) < 1e-6, kind
        ours, theirs = (relative(each["samples"], latent["samples"]) for each in (back, plain))
        assert ours < theirs, (kind, ours, theirs)
        target = pack.tiny.conditioning(kind, seed=9)
        (other,) = pack.call("Resample", model=model, inversion=linked, cfg=CFG, positive=target)
        assert relative(other["samples"], back["samples"]) > 1e-3, kind
        # At cfg 1 the embeddings act on nothing, so nothing is asked for.
        (bare,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0, positive=source)
        (wanted,) = pack.call("Resample", model=model, inversion=before, cfg=1.0)
        assert torch.equal(bare["samples"], wanted["samples"]), kind


def check_null_text_leaves_the_model_alone(pack):
    """Bits, options and the very tensors, after a fit and after an interrupted one; conditioning too."""
    for kind in ("sd15", "sd3"):
        model, _, _, (inversion, *_) = invert(pack, kind, keep_path=True, method="ddim")
        before, tensors = snapshot(model), list(model.model.parameters()) + list(model.model.buffers())
        negative = pack.tiny.conditioning(kind, seed=5)
        kept = negative[0][0].clone()
        _fit(pack, kind, model=model, inversion=inversion, negative=negative)
        with no_interrupt():
            counter = Counter(model, interrupt_after=5)
            _interrupted(lambda k=kind, m=counter.model, i=inversion: _fit(pack, k, model=m, inversion=i))
        same_snapshot(model, before)
        now = list(model.model.parameters()) + list(model.model.buffers())
        assert all(a is b for a, b in zip(tensors, now, strict=True)), kind
        assert torch.equal(negative[0][0], kept) and inversion.embeddings is None, kind
        assert not getattr(comfy.model_management, "in_training", False)
        assert not torch.is_inference_mode_enabled()


def _interrupted(call):
    try:
        call()
    except comfy.model_management.InterruptProcessingException:
        return
    raise AssertionError("the run was not interrupted")


def check_interrupted_fit_is_kept(pack):
    """What is finished lands in the output folder, and going on from there ends where an unbroken fit does."""
    output = pack.workspace / "output" / "retrace"
    model, _, inversion, (whole, *_) = _fit(pack, "sd15")

    def files():
        return set(output.glob("null_text_unfinished*")) if output.exists() else set()

    before = files()
    with no_interrupt():
        # A step takes one call for the source and four for the negative, so that the ninth lies in the second step.
        counter = Counter(model, interrupt_after=9)
        _interrupted(lambda: _fit(pack, "sd15", model=counter.model, inversion=inversion))
        assert counter.calls == 9
    (kept,) = files() - before
    (loaded,) = pack.call("LoadInversion", file=f"retrace/{kept.name} [output]")
    assert len(loaded.embeddings) == 1
    source = pack.tiny.conditioning("sd15")
    refuses(lambda: _fit(pack, "sd15", model=model, inversion=loaded), "source must be connected")
    _, _, _, (resumed, _, text) = _fit(pack, "sd15", model=model, inversion=loaded, source=source)
    assert "(found before)" in text
    pairs = zip(resumed.embeddings, whole.embeddings, strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    with no_interrupt():
        counter = Counter(model, interrupt_after=9)
        _interrupted(lambda: _fit(pack, "sd15", model=counter.model, inversion=inversion, save_unfinished=False))
    assert files() - before == {kept}


def check_fitted_records_travel(pack):
    """Through a file, and through a stock guider by InversionSampler."""
    for kind in ("sdxl", "sd3"):
        model, _, _, (linked, *_) = _fit(pack, kind)
        source, negative = pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, seed=5)
        (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
        (name,) = pack.call("SaveInversion", inversion=linked, filename_prefix="retrace/fitted", half=False)
        (loaded,) = pack.call("LoadInversion", file=name)
        (again,) = pack.call("Resample", model=model, inversion=loaded, cfg=1.0, source=source, negative=negative)
        assert torch.equal(again["samples"], back["samples"]), kind
        (edit,) = pack.call("Resample", model=model, inversion=loaded, cfg=CFG, positive=source, negative=negative)
        assert relative(edit["samples"], back["samples"]) < 1e-6, kind
        falling = torch.tensor(linked.falling)
        latent = {"samples": torch.zeros_like(back["samples"])}
        (same,) = pack.call("InversionSampler", inversion=linked, sampler_name="same as inversion")
        resumed = advanced(model, source, same, falling, latent, negative=negative, cfg=CFG)
        assert relative(resumed, back["samples"]) < 1e-5, (kind, relative(resumed, back["samples"]))
        (stock,) = pack.call("InversionSampler", inversion=linked, sampler_name="euler")
        refuses(lambda a=(model, source, stock, falling, latent): advanced(*a), "for one with fitted embeddings")
        refuses(
            lambda m=model, b=linked: pack.call("Resample", model=m, inversion=b, cfg=1.0, method="midpoint"),
            "with fitted embeddings must be replayed by its own method",
        )
        assert pack.call("InversionReport", inversion=linked, model=model)[2] > 0.0


def check_null_text_refusals(pack):
    """Each in a sentence, before the network is asked."""
    flux, _, _, (inversion, *_) = invert(pack, "flux", keep_path=True)
    refuses(lambda: _fit(pack, "flux", model=flux, inversion=inversion), "guidance-distilled Flux", "told its guidance")
    model, _, _, (bare, *_) = invert(pack, "sd15")
    refuses(lambda: _fit(pack, "sd15", model=model, inversion=bare), "set keep_path of Invert")
    _, _, _, (inversion, *_) = invert(pack, "sd15", model=model, keep_path=True)
    refuses(lambda: _fit(pack, "sd15", model=model, inversion=inversion, cfg=1.0), "cfg must not be 1")
    assert "cfg must not be 1" in pack.node("NullTextOptimize").validate_inputs(cfg=1.0)
    patched = model.clone()
    patched.set_model_sampler_cfg_function(lambda args: args["cond"])
    refuses(lambda: _fit(pack, "sd15", model=patched, inversion=inversion), "plain cfg", "sampler_cfg_function")
    two = pack.tiny.conditioning("sd15", seed=5) * 2
    refuses(lambda: _fit(pack, "sd15", model=model, inversion=inversion, negative=two), "one prompt for the whole")
    _, _, _, (pair, *_) = invert(pack, "sd15", model=model, keep_path=True, method="edict")
    refuses(lambda: _fit(pack, "sd15", model=model, inversion=pair), "a method that keeps one latent, got edict")
    counter = Counter(model)
    _, _, _, (fitted, *_) = _fit(pack, "sd15", model=counter.model, inversion=inversion)
    refuses(lambda: _fit(pack, "sd15", model=model, inversion=fitted, cfg=3.0), "cfg must be that of the embeddings")
    calls = counter.calls
    _fit(pack, "sd15", model=counter.model, inversion=fitted)
    assert counter.calls - calls == 2 * fitted.index


class _Log(logging.Handler):
    """Keeps what is said in the log."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def check_null_text_warns_of_a_guided_climb(pack):
    """The path of a climb under guidance can be fitted too, but the log says that it is not what is meant."""
    negative = pack.tiny.conditioning("sd15", seed=5)
    for cfg in (1.0, 3.0):
        model, _, _, (inversion, *_) = invert(pack, "sd15", keep_path=True, method="ddim", cfg=cfg, negative=negative)
        log = _Log()
        logging.getLogger().addHandler(log)
        try:
            _fit(pack, "sd15", model=model, inversion=inversion, inner_steps=1)
        finally:
            logging.getLogger().removeHandler(log)
        assert any("this inversion was made at cfg 3; null-text fits" in line for line in log.lines) == (cfg != 1.0)


def check_null_text_on_the_trained_models(pack):
    """On the trained eps and flow model, at cfg 7.5, the source comes back at least 2.5 times nearer than without."""
    # At the paper's rate ten updates bring the flow model only a part of the way.
    for kind, steps, rate in (("eps", 10, 0.01), ("flow", 20, 0.1)):
        model, (source, empty), latent = trained(pack, kind, 3)
        with torch.inference_mode():
            inversion, *_ = pack.call(
                "Invert", model=model, source=source, latent=latent, steps=steps, scheduler="normal", method="ddim",
                cfg=1.0, strength=1.0, keep_path=True,
            )  # fmt: skip
            *_, (linked, plot, text) = _fit(
                pack, kind, model=model, inversion=inversion, negative=empty, inner_steps=10, learning_rate=rate
            )
            (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
            (plain,) = pack.call("Resample", model=model, inversion=inversion, cfg=CFG, positive=source, negative=empty)
        ours, theirs = (relative(each["samples"], latent["samples"]) for each in (back, plain))
        assert ours * 2.5 < theirs, (kind, ours, theirs, text)
        assert plot.ndim == 4 and 0.0 <= float(plot.min()) < float(plot.max()) <= 1.0, kind
