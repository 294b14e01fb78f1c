"""RFEdit: what the inversion leaves is what the edit reads, whatever it was kept in."""

import tiny_dits
import torch
from attending import inverted, latent_of, negative_of, resampled, resolver, target_of
from helpers import Counter, interrupted, refuses, refuses_each, relative, same_snapshot, snapshot

# In turns of both methods and both ways of keeping, guided and of two pictures too; the others once.
THOROUGH = ("sd15", "flux", "sd3", "wan", "hunyuan", "ltx")


def _rf_edit(pack, kind, model, batch=1, **changes):
    inputs = {"source": tiny_dits.conditioning(kind), "target": target_of(kind), "steps": 3, "inject": 2, **changes}
    if "inversion" not in inputs:
        inputs.setdefault("latent", latent_of(kind, batch))
    if inputs.get("cfg", 1.0) != 1.0:
        inputs.setdefault("negative", negative_of(kind))
    return pack.call("RFEdit", model=model, **{"memory": 1.0, "layers": "all", **inputs})


def _reference(pack, kind, model, inversion, method, aligned, batch, cfg, inject=2):
    """The same edit with the source in the same run, put where the climb was asked, and the method written out."""
    plans, library, session = (pack.module(name) for name in ("attention", "inversion", "nodes.host.session"))
    attended = pack.module("nodes.attending.attended")
    seen = {}

    def watch(denoiser):
        def answer(x, sigma):
            # What the first evaluation of a step sees is read at the upper end of the step, if not aligned.
            sigmas = inversion.sigmas
            at = next((i for i, s in enumerate(sigmas) if abs(s - sigma) < 1e-9), None)
            first = at is not None or sigma <= denoiser.sigma_floor
            if first and not aligned:
                at = 0 if at is None else at
                key = sigmas[at + 1] if at + 1 < len(sigmas) else None
            else:
                key = sigma
            if key is not None:
                seen[round(float(key), 6)] = (x.clone(), sigma)
            return denoiser(x, sigma)

        return library.Denoiser(answer, denoiser.space, denoiser.sigma_floor)

    def climb(run):
        again = library.invert(watch(run.denoiser()), inversion.x0, inversion.sigmas, inversion.index, method)
        assert torch.equal(again.x, inversion.x), "the climb that keeps attention must be the inversion"
        if aligned:
            seen[round(inversion.sigma, 6)] = (inversion.x, inversion.sigma)

    source = session.Branch(inversion.source)
    session.Guider(model, {"source": source}).run(inversion.samples, inversion.falling, climb)
    family = resolver(pack, model).family
    settings = plans.Settings(layers="all", start=0.0, end=inject / inversion.index)
    plan = plans.get_preset("rf_edit").build(settings, family)

    def seen_at(sigma):
        key = round(sigma, 6)
        if key not in seen:  # FireFlow's first evaluation of the way down
            key = round(0.5 * (inversion.falling[0] + inversion.falling[1]), 6)
        return seen[key]

    class OwnSigmas(attended.Attended):
        """Each branch at its own sigma, in a forward of its own."""

        together = False

        def forwards(self, guider, call, states, sigmas, options, answers):
            for forward in super().forwards(guider, call, states, sigmas, options, answers):
                if torch.equal(forward.x, states["source"]):
                    own = max(seen_at(float(sigmas[0]))[1], 1e-8)
                    forward.sigmas = torch.full_like(forward.sigmas, own)
                yield forward

    uncond = None if cfg == 1.0 else negative_of(kind)
    sides = {
        "source": session.Branch(inversion.source, at=lambda sigma, device: seen_at(sigma)[0]),
        "target": session.Branch(target_of(kind), uncond, cfg),
    }

    def descend(run):
        denoiser = run.denoiser()
        return library.replay(inversion, denoiser, denoiser)

    with torch.inference_mode():
        guider = session.Guider(model, sides, OwnSigmas(model, sides, plan))
        state = guider.run(inversion.samples, inversion.falling, descend)
    return pack.module("nodes.host.latents").out_of_model(model, state, torch.float32)


def check_cache_is_sharing(pack):
    """A cache gives what sharing within a forward gives, in both evaluations of a step, published and aligned."""
    get_method = pack.module("inversion").get_method
    for kind in tiny_dits.KINDS:
        model = tiny_dits.model(kind)
        before = snapshot(model)
        plain = _rf_edit(pack, kind, model, inject=0)[0]["samples"]
        for method, aligned, batch, cfg in (
            ("midpoint", False, 1, 1.0),
            ("midpoint", True, 2, 3.0),
            ("fireflow", False, 1, 1.0),
            ("fireflow", True, 1, 1.0),
        )[: 4 if kind in ("sd15", "flux") else 2 if kind in THOROUGH else 1]:
            edited, inversion, _ = _rf_edit(pack, kind, model, batch, method=method, aligned=aligned, cfg=cfg)
            wanted = _reference(pack, kind, model, inversion, get_method(method), aligned, batch, cfg)
            apart = relative(edited["samples"], wanted)
            assert apart < 1e-5, (kind, method, aligned, batch, cfg, apart)
            if batch == 1:
                assert relative(plain, wanted) > 100 * apart + 1e-4, (kind, method, relative(plain, wanted))
        same_snapshot(model, before)


def check_rf_edit_parts(pack):
    """Without injection it is Invert and Resample; what comes out beside the latent is the inversion itself."""
    for kind in ("sd15", "flux"):
        model, latent = tiny_dits.model(kind), latent_of(kind, 2)
        _, inversion = inverted(pack, kind, model=model, latent=latent, steps=3, method="midpoint")
        wanted = resampled(pack, model, inversion, kind, None, 3.0)

        def edited(kind=kind, model=model, latent=latent, **changes):
            given = {} if "inversion" in changes else {"latent": latent}
            out, inversion, text = _rf_edit(pack, kind, model, cfg=3.0, **given, **changes)
            return out["samples"], inversion, text

        plain, _, text = edited(inject=0)
        assert torch.equal(plain, wanted) and "nothing is read" in text, kind
        cached, own, text = edited()
        assert torch.equal(own.x, inversion.x), kind
        assert "GB for 4 evaluations" in text and "layers" in text, text
        assert torch.equal(cached, edited(inversion=inversion)[0]), kind
        beside, _, text = edited(inversion=inversion, features="beside")
        assert "4 evaluations more" in text, text
        apart = [relative(each, wanted) for each in (cached, edited(inversion=inversion, aligned=True)[0], beside)]
        assert min(apart) > 1e-4, (kind, apart)
        tried = ({"share": 0.5}, {"mode": "add"}, {"inject": 1}, {"tokens": "all"})
        for changes in tried if kind == "flux" else tried[-1:]:
            same = relative(edited(**changes)[0], cached) < 1e-7
            # On Flux all tokens are the default; the others have no text in their self-attention.
            assert same == ("tokens" in changes), (kind, changes)
        mask = torch.zeros(1, 32, 48)
        mask[:, :16, :16] = 1.0
        same = edited(mask=mask)[0] == latent["samples"]
        assert bool(same[..., 2:, :].all()) and not bool(same.all()), kind


def check_rf_edit_budget(pack):
    """The size is known after one evaluation, is kept, and does not depend on where the tensors lie."""
    climb_cache, module = pack.module("attention").ClimbCache, pack.module("nodes.editing.climb_and_keep")
    model, made = tiny_dits.model("flux"), []

    class Counted(climb_cache):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    module.ClimbCache = Counted
    try:
        _rf_edit(pack, "flux", model, 2)
        _rf_edit(pack, "flux", model, 2, aligned=True, inject=1)
        _rf_edit(pack, "flux", model, 2, method="fireflow", inject=1)
        _rf_edit(pack, "flux", model, 1, method="fireflow", inject=3)
    finally:
        module.ClimbCache = climb_cache
    sizes = [each.cache.size for each in made]
    # FireFlow asks at one clean end, and that counts where all steps read.
    assert sizes == [each.each * count for each, count in zip(made, (4, 2, 1, 4), strict=True)], sizes
    assert made[3].each * 2 == made[0].each
    need = sizes[0] / 2**30
    _rf_edit(pack, "flux", model, 2, memory=need * 1.001)
    counter, before = Counter(model), snapshot(model)
    refuses(lambda: _rf_edit(pack, "flux", counter.model, 2, memory=need * 0.9), "memory must be at least", "beside")
    assert counter.calls == 1, "a cache that does not fit must end the run after its first evaluation"
    same_snapshot(model, before)


def check_rf_edit_interrupt(pack):
    """A run that is interrupted leaves the model as it was, and the next gives the same bits."""
    model = tiny_dits.model("sd3")
    wanted = _rf_edit(pack, "sd3", model)[0]["samples"]
    for calls in (3, 8):
        interrupted(lambda m: _rf_edit(pack, "sd3", m), model, calls, (calls, calls + 1))
    assert torch.equal(_rf_edit(pack, "sd3", model)[0]["samples"], wanted)


def check_rf_edit_refusals(pack):
    """Misfits are refused in a sentence."""
    model, other = tiny_dits.model("flux"), tiny_dits.model("sd3")
    inputs = {"source": tiny_dits.conditioning("flux"), "latent": latent_of("flux"), "steps": 3}
    inversion, paired = _rf_edit(pack, "flux", model)[1], pack.call("EDICTCouple", model=model, **inputs)[0]
    refuses(lambda: _rf_edit(pack, "sd3", other, inversion=inversion), "model")
    refuses_each(
        lambda **changes: _rf_edit(pack, "flux", model, **changes),
        ({"latent": None}, "latent or inversion must be connected, got neither"),
        ({"cfg": 2.0, "negative": None}, "cfg must be 1 without a negative"),
        ({"layers": "single:20-37"}, "layers must match", "single:0-1"),
        ({"inversion": inversion, "latent": inputs["latent"]}, "got both"),
        ({"inversion": paired}, "method must keep one state", "edict"),
    )
