"""Attention control inside SAMPLERs: RFSolverSample and InversionSampler that read from the source of an inversion."""

import attending
import checks_words
import comfy.model_management
import comfy.samplers
import comfy_extras.nodes_custom_sampler
import tiny_dits
import torch
from attending import inverted, negative_of, plan, resampled, target_of
from helpers import Counter, advanced, no_interrupt, refuses, relative, same_snapshot, snapshot

KINDS = ("sd15", "sd3", "flux", "wan")
# Between two runs the state is a float32 latent.
FLOAT32 = 1e-4


def _rf(pack, linked, attention, **changes):
    inputs = {"solver": "midpoint", "attention": attention, "inversion": linked, **changes}
    return pack.call("RFSolverSample", **inputs)[0]


def _resume(pack, linked, attention, sampler_name="same as inversion", **changes):
    inputs = {"inversion": linked, "sampler_name": sampler_name, "attention": attention, **changes}
    return pack.call("InversionSampler", **inputs)[0]


def _by_midpoint(pack, kind, **changes):
    """Model, inversion, and the LATENT, NOISE and SIGMAS of it."""
    model = tiny_dits.model(kind)
    latent = tiny_dits.latent(kind, batch=2, size=(4, 6), frames=2)
    inputs = {"steps": 3, "scheduler": "simple", "method": "midpoint", "cfg": 1.0, "strength": 1.0, "keep_path": True}
    source = tiny_dits.conditioning(kind)
    found = pack.call("Invert", model=model, source=source, latent=latent, **{**inputs, **changes})
    return model, *found


def _sampled(model, kind, sampler, start, cfg=1.0, latent=None):
    """What SamplerCustomAdvanced gives towards the target, from an inversion's own noise."""
    given, noise, sigmas = start
    given = given if latent is None else latent
    negative = negative_of(kind) if cfg != 1.0 else None
    return advanced(model, target_of(kind), sampler, sigmas, given, noise, negative, cfg)


def check_samplers_follow_a_plan(pack):
    """RFSolverSample and InversionSampler give what Resample gives, guided and not; the MODEL stays as it was."""
    for kind in KINDS:
        model, linked, *start = _by_midpoint(pack, kind)
        before = snapshot(model)
        for cfg, rules in ((1.0, plan(pack)), (3.0, plan(pack)), (3.0, plan(pack, source_for="both"))):
            wanted = resampled(pack, model, linked, kind, rules, cfg)
            plain = _sampled(model, kind, pack.call("RFSolverSample", solver="midpoint")[0], start, cfg)
            assert relative(wanted, plain) > 1e-3, (kind, cfg, relative(wanted, plain))
            found = _sampled(model, kind, _rf(pack, linked, rules), start, cfg)
            assert relative(found, wanted) < FLOAT32, (kind, cfg, relative(found, wanted))
            stored = _sampled(model, kind, _resume(pack, linked, rules), start, cfg)
            assert relative(stored, wanted) < 1e-5, (kind, cfg, relative(stored, wanted))
        sampler = _rf(pack, linked, plan(pack))
        first, again = (_sampled(model, kind, sampler, start) for _ in range(2))
        assert torch.equal(first, again), "a sampler is used again by later runs"
        idle = _sampled(model, kind, _rf(pack, linked, plan(pack, strength=0.0)), start)
        plain = _sampled(model, kind, pack.call("RFSolverSample", solver="midpoint")[0], start)
        assert relative(idle, plain) < 1e-9, (kind, relative(idle, plain))
        fire = _sampled(model, kind, _rf(pack, linked, plan(pack), solver="fireflow"), start)
        assert torch.isfinite(fire).all() and relative(fire, first) > 1e-6, kind
        same_snapshot(model, before)


def check_samplers_with_stock_solvers_and_guiders(pack):
    """A stock sampler and BasicGuider; the source is the record's own, so that another record gives another edit."""
    kind = "sd15"
    model, linked, *start = _by_midpoint(pack, kind)
    stock = _sampled(model, kind, _resume(pack, linked, plan(pack), "heun"), start)
    plain = _sampled(model, kind, _resume(pack, linked, None, "heun"), start)
    assert torch.isfinite(stock).all() and relative(stock, plain) > 1e-3
    basic = comfy_extras.nodes_custom_sampler.Guider_Basic(model)
    basic.set_conds(target_of(kind))
    given, noise, sigmas = start
    arguments = (noise.generate_noise(given), given["samples"], _rf(pack, linked, plan(pack)), sigmas)
    with torch.inference_mode():
        one = basic.sample(*arguments, disable_pbar=True, seed=0)
    assert torch.equal(one, _sampled(model, kind, _rf(pack, linked, plan(pack)), start))
    other = pack.call(
        "Invert", model=model, source=tiny_dits.conditioning(kind), steps=3, scheduler="simple", method="midpoint",
        latent=tiny_dits.latent(kind, batch=2, seed=5, size=(4, 6)), cfg=1.0, strength=1.0, keep_path=True,
    )[0]  # fmt: skip
    assert relative(_sampled(model, kind, _rf(pack, other, plan(pack)), start), one) > 1e-3
    # Made under a negative of its own, which the uncond side of the source is read under.
    guided, held, *begin = _by_midpoint(pack, kind, cfg=2.0, negative=tiny_dits.conditioning(kind, seed=6))
    both = plan(pack, source_for="both")
    wanted = resampled(pack, guided, held, kind, both, 3.0)
    assert relative(_sampled(guided, kind, _rf(pack, held, both), begin, 3.0), wanted) < FLOAT32
    assert relative(_sampled(guided, kind, _rf(pack, held, plan(pack)), begin, 3.0), wanted) > FLOAT32


class _Fresh:
    """A NOISE that knows no inversion."""

    def generate_noise(self, latent):
        return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(8))


def check_samplers_blend_and_mask(pack):
    """A local blend and a noise mask keep the source outside, up to the rounding of the host's own samplers."""
    for kind in ("eps", "flow"):
        model = checks_words._shapes(pack, kind)[0]
        source, target, rules, _ = checks_words._prompts(pack, kind)
        linked, samples, _ = checks_words._inverted(pack, kind)
        outputs = pack.call(
            "Invert", model=model, source=source, latent={"samples": samples}, steps=checks_words.STEPS, cfg=1.0,
            scheduler="normal" if kind == "eps" else "simple", strength=1.0, method="euler", keep_path=True,
        )  # fmt: skip
        linked, given, noise, sigmas = outputs
        mask = torch.zeros(1, *samples.shape[-2:])
        mask[:, 2:9, 1:6] = 1.0
        kept = (mask == 0)[:, None].expand_as(samples)
        blended = checks_words._blended(pack, rules, mask=mask)
        for make in (_rf, _resume):
            found = advanced(model, target, make(pack, linked, blended), sigmas, given, noise)
            assert relative(found[kept], samples[kept]) < 1e-6, (kind, make, relative(found[kept], samples[kept]))
            assert relative(found[~kept], samples[~kept]) > 1e-2, (kind, make)
        words = checks_words._blended(pack, rules, words="circle", threshold=0.5)
        found = advanced(model, target, _rf(pack, linked, words), sigmas, given, noise)
        changed = ((found - samples).abs() > 1e-4).any(1)
        assert 0.02 < float(changed.float().mean()) < 0.75, (kind, float(changed.float().mean()))
        masked, fresh = {"samples": samples, "noise_mask": mask}, _Fresh()
        # Beyond the blend's, so that both keep what is outside.
        wide = torch.zeros_like(mask)
        wide[:, 1:12, 1:9] = 1.0
        for make in (_rf, _resume):
            found = advanced(model, target, make(pack, linked, rules), sigmas, masked, fresh)
            assert relative(found[kept], samples[kept]) < 1e-6, (kind, make, relative(found[kept], samples[kept]))
            free = advanced(model, target, make(pack, linked, rules), sigmas, {"samples": samples}, fresh)
            assert relative(free[kept], samples[kept]) > 1e-2, (kind, make)
            both = advanced(model, target, make(pack, linked, blended), sigmas, {**masked, "noise_mask": wide}, noise)
            assert relative(both[kept], samples[kept]) < 1e-6, (kind, make, relative(both[kept], samples[kept]))
        refuses(
            lambda b=linked, p=blended, arguments=(sigmas, given, noise), m=model, t=target: advanced(
                m, t, _resume(pack, b, p, "heun"), *arguments
            ),
            "sampler_name must be that of the inversion for a plan with a local blend, got heun",
        )


def check_nothing_is_left_of_an_attended_sampler(pack):
    """An interrupt in the middle leaves the model as it was and ends within a call; the next run is right."""
    for kind in KINDS:
        model, linked, *start = _by_midpoint(pack, kind)
        before = snapshot(model)
        wanted = _sampled(model, kind, _rf(pack, linked, plan(pack)), start)
        counter = Counter(model, interrupt_after=2)
        watched = snapshot(counter.model)
        sampler = _rf(pack, linked, plan(pack))
        with no_interrupt():
            try:
                _sampled(counter.model, kind, sampler, start)
            except comfy.model_management.InterruptProcessingException:
                pass
            else:
                raise AssertionError("the interrupt was swallowed")
        assert counter.calls == 2
        same_snapshot(model, before)
        same_snapshot(counter.model, watched)
        assert torch.equal(_sampled(model, kind, sampler, start), wanted), kind


def check_attended_samplers_refuse(pack):
    """What a SAMPLER cannot do with a plan, in one sentence each."""
    kind = "sd15"
    model, linked, *start = _by_midpoint(pack, kind)
    given, noise, sigmas = start
    rules = plan(pack)

    def runs(sampler, **changes):
        given_to = {"model": model, "positive": target_of(kind), "sigmas": sigmas, "latent": given, **changes}
        return lambda: advanced(sampler=sampler, noise=noise, **given_to)

    refuses(lambda: _rf(pack, None, rules), "inversion must be connected with attention")
    refuses(lambda: _rf(pack, linked, None), "inversion must come with attention")
    refuses(lambda: _rf(pack, None, None, source=target_of(kind)), "source must come with attention")
    refuses(lambda: _resume(pack, linked, None, source=target_of(kind)), "source must come with attention")
    refuses(lambda: _rf(pack, linked, plan(pack, source="free")), "must have its source pinned", "got free")
    refuses(runs(_rf(pack, linked, rules), sigmas=sigmas.flip(0)), "sigmas must fall for a sampler with attention")
    refuses(runs(_rf(pack, linked, rules), sigmas=2.0 * sigmas), "sigmas must start at or below the inversion's sigma")
    small = {"samples": given["samples"][..., :2]}
    # Without noise, which has the inversion's size itself.
    refuses(lambda: advanced(model, target_of(kind), _rf(pack, linked, rules), sigmas, small), "the inversion's size")
    refuses(runs(_rf(pack, linked, rules), model=tiny_dits.model(kind, seed=1)), "model must be the one")
    (name,) = pack.call("SaveInversion", inversion=linked, filename_prefix="retrace/sampler", half=False)
    (loaded,) = pack.call("LoadInversion", file=name)
    for make in (_rf, _resume):
        refuses(lambda m=make: m(pack, loaded, rules), "source must be connected to control attention")
        found = runs(make(pack, loaded, rules, source=linked.source))()
        assert torch.equal(found, runs(make(pack, linked, rules))()), make
    dual = comfy_extras.nodes_custom_sampler.Guider_DualCFG(model)
    dual.set_conds(target_of(kind), target_of(kind), negative_of(kind))
    dual.set_cfg(2.0, 2.0)
    (attended,) = pack.call(
        "AttentionGuider", model=model, source=linked.source, target=target_of(kind), attention=rules, cfg=1.0,
        both=False, inversion=linked,
    )  # fmt: skip
    for guider in (dual, attended):
        call = lambda g=guider: g.sample(  # noqa: E731
            noise.generate_noise(given), given["samples"], _rf(pack, linked, rules), sigmas, disable_pbar=True, seed=0
        )
        refuses(call, "guider must be CFGGuider or BasicGuider", type(guider).__name__)
    timed = [[linked.source[0][0], {**linked.source[0][1], "area": (2, 2, 0, 0), "strength": 1.0}]]
    refuses(runs(_rf(pack, loaded, rules, source=timed)), "source of the inversion must be a plain prompt", "area")
    parts = [[target_of(kind)[0][0], {"area": (2, 2, 0, 0), "strength": 1.0}], *target_of(kind)]
    refuses(runs(_rf(pack, linked, rules), positive=parts), "positive of the guider must be one prompt")
    (fitted, *_) = pack.call(
        "NullTextOptimize", model=model, inversion=inverted(pack, kind, model=model, batch=2)[1], cfg=3.0,
        negative=negative_of(kind), inner_steps=1, learning_rate=0.01, stop=1e-5, stop_growth=2e-5,
        save_unfinished=False,
    )  # fmt: skip
    refuses(lambda: _resume(pack, fitted, rules), "inversion must have no fitted embeddings")
    free = {"source": linked.source, "target": target_of(kind), "attention": plan(pack, source="free")}
    refuses(
        lambda: pack.call("AttentionGuider", model=model, cfg=1.0, both=False, inversion=linked, **free),
        "attention must have its source pinned with an inversion, got free",
    )
    blended = checks_words._blended(pack, rules, mask=torch.ones(1, 4, 6))
    refuses(
        lambda: pack.call("AttentionGuider", model=model, cfg=1.0, both=False, **{**free, "attention": blended}),
        "must hold no local blend",
        "RFSolverSample or InversionSampler",
    )


def check_controlnet_of_the_guider_acts_beside_a_source(pack):
    """A ControlNet on the target's prompt acts; one on the inversion's is refused."""
    kind = "sd15"
    model, linked, *start = _by_midpoint(pack, kind)
    given, noise, sigmas = start
    hint = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(3))
    control = pack.tiny.control_net(kind).set_cond_hint(hint, 1.0, (0.0, 1.0))
    prompts = (target_of(kind), negative_of(kind))
    led, away = ([[entry[0], {**entry[1], "control": control}] for entry in prompt] for prompt in prompts)
    sampler = _rf(pack, linked, plan(pack))
    found = advanced(model, led, sampler, sigmas, given, noise, away, 3.0)
    wanted = resampled(pack, model, linked, kind, plan(pack), 3.0, target=led, negative=away)
    assert relative(found, wanted) < FLOAT32, relative(found, wanted)
    assert relative(found, attending.resampled(pack, model, linked, kind, plan(pack), 3.0)) > 1e-3
    source = [[entry[0], {**entry[1], "control": control}] for entry in linked.source]
    refuses(
        lambda: advanced(model, target_of(kind), _rf(pack, linked, plan(pack), source=source), sigmas, given, noise),
        "source of the inversion must be a plain prompt",
        "control",
    )
