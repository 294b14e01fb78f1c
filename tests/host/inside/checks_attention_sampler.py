"""Attention control inside SAMPLERs: RFSolverSample and InversionSampler that read from the source of an inversion."""

import attending
import comfy_extras.nodes_custom_sampler
import tiny_dits
import torch
from attending import injected, inverted, latent_of, negative_of, plan, resampled, target_of
from helpers import interrupted, refuses, refuses_each, relative, same_snapshot, snapshot
from running import Fresh, advanced, controlled, fit, reloaded, resuming, sampled, shapes

KINDS = ("sd15", "sd3", "flux", "wan")
# Between two runs the state is a float32 latent.
FLOAT32 = 1e-4


def _rf(pack, inversion, attention, **changes):
    return pack.call("RFSolverSample", attention=attention, inversion=inversion, **changes)[0]


def _resume(pack, inversion, attention, sampler_name="same as inversion", **changes):
    return resuming(pack, inversion, sampler_name, attention=attention, **changes)


def _by_midpoint(pack, kind, **changes):
    """Model, inversion, and the LATENT, NOISE and SIGMAS of it."""
    inputs = {"source": tiny_dits.conditioning(kind), "latent": latent_of(kind, batch=2), "steps": 3, **changes}
    model = tiny_dits.model(kind)
    return model, *pack.call("Invert", model=model, keep_path=True, **inputs)


def _sampled(model, kind, sampler, start, cfg=1.0):
    """What SamplerCustomAdvanced gives towards the target, from an inversion's own noise."""
    given, noise, sigmas = start
    negative = negative_of(kind) if cfg != 1.0 else None
    return advanced(model, target_of(kind), sampler, sigmas, given, noise, negative, cfg)


def check_samplers_follow_a_plan(pack):
    """RFSolverSample and InversionSampler give what Resample gives, guided and not; the MODEL stays as it was."""
    (bare,) = pack.call("RFSolverSample")
    for kind in KINDS:
        model, inversion, *start = _by_midpoint(pack, kind)
        before = snapshot(model)
        for cfg, rules in ((1.0, plan(pack)), (3.0, plan(pack)), (3.0, plan(pack, source_for="both"))):
            wanted = resampled(pack, model, inversion, kind, rules, cfg)
            for sampler, least, most in (
                (bare, 1e-3, float("inf")),
                (_rf(pack, inversion, rules), 0.0, FLOAT32),
                (_resume(pack, inversion, rules), 0.0, 1e-5),
            ):
                error = relative(_sampled(model, kind, sampler, start, cfg), wanted)
                assert least <= error < most, (kind, cfg, error)
        sampler = _rf(pack, inversion, plan(pack))
        first, again, idle, plain, fire = (
            _sampled(model, kind, each, start)
            for each in (
                sampler,
                sampler,
                _rf(pack, inversion, plan(pack, strength=0.0)),
                bare,
                _rf(pack, inversion, plan(pack), solver="fireflow"),
            )
        )
        assert torch.equal(first, again), "a sampler is used again by later runs"
        assert relative(idle, plain) < 1e-9, (kind, relative(idle, plain))
        assert torch.isfinite(fire).all() and relative(fire, first) > 1e-6, kind
        # An interrupt ends it within a call, and the next run is right.
        interrupted(lambda m, k=kind, s=sampler, at=start: _sampled(m, k, s, at), model, 2)
        assert torch.equal(_sampled(model, kind, sampler, start), first), kind
        same_snapshot(model, before)


def check_samplers_with_stock_solvers_and_guiders(pack):
    """A stock sampler and BasicGuider; the source is the inversion's own, so that another one gives another edit."""
    kind = "sd15"
    model, inversion, *start = _by_midpoint(pack, kind)
    heun = (_resume(pack, inversion, rules, "heun") for rules in (plan(pack), None))
    stock, plain = (_sampled(model, kind, sampler, start) for sampler in heun)
    assert torch.isfinite(stock).all() and relative(stock, plain) > 1e-3
    basic = comfy_extras.nodes_custom_sampler.Guider_Basic(model)
    basic.set_conds(target_of(kind))
    given, noise, sigmas = start
    one = sampled(basic, _rf(pack, inversion, plan(pack)), sigmas, given, noise)
    assert torch.equal(one, _sampled(model, kind, _rf(pack, inversion, plan(pack)), start))
    other = _by_midpoint(pack, kind, latent=latent_of(kind, batch=2, seed=5))[1]
    assert relative(_sampled(model, kind, _rf(pack, other, plan(pack)), start), one) > 1e-3
    # Made under a negative of its own, which the uncond side of the source is read under.
    guided, held, *begin = _by_midpoint(pack, kind, cfg=2.0, negative=tiny_dits.conditioning(kind, seed=6))
    both = plan(pack, source_for="both")
    wanted = resampled(pack, guided, held, kind, both, 3.0)
    assert relative(_sampled(guided, kind, _rf(pack, held, both), begin, 3.0), wanted) < FLOAT32
    assert relative(_sampled(guided, kind, _rf(pack, held, plan(pack)), begin, 3.0), wanted) > FLOAT32


def check_samplers_blend_and_mask(pack):
    """A local blend and a noise mask keep the source outside, up to the rounding of the host's own samplers."""
    for kind in ("eps", "flow"):
        model = shapes(pack, kind)[0]
        _, target, rules, _ = attending.prompts(pack, kind)
        (inversion, given, noise, sigmas), samples, _ = attending.pictured(pack, kind, method="euler")
        # The second lies beyond the blend's, so that both keep what is outside.
        mask, wide = torch.zeros(2, 1, *samples.shape[-2:])
        mask[:, 2:9, 1:6] = wide[:, 1:12, 1:9] = 1.0
        outside = (mask == 0)[:, None].expand_as(samples)
        blend = attending.blended(pack, rules, mask=mask)
        plain = {"samples": samples}
        masked, widely = ({**plain, "noise_mask": each} for each in (mask, wide))
        for make in (_rf, _resume):
            for attention, latent, start, keeps in (
                (blend, given, noise, True),
                (rules, masked, Fresh(), True),
                (rules, plain, Fresh(), False),
                (blend, widely, noise, True),
            ):
                edited = advanced(model, target, make(pack, inversion, attention), sigmas, latent, start)
                apart = relative(edited[outside], samples[outside])
                assert apart < 1e-6 if keeps else apart > 1e-2, (kind, make, apart)
                assert relative(edited[~outside], samples[~outside]) > 1e-2, (kind, make)
        words = attending.blended(pack, rules, words="circle", threshold=0.5)
        edited = advanced(model, target, _rf(pack, inversion, words), sigmas, given, noise)
        changed = ((edited - samples).abs() > 1e-4).any(1)
        assert 0.02 < float(changed.float().mean()) < 0.75, (kind, float(changed.float().mean()))
        stock = _resume(pack, inversion, blend, "heun")
        refuses(
            lambda m=model, t=target, s=stock, rest=(sigmas, given, noise): advanced(m, t, s, *rest),
            "sampler_name must be that of the inversion for a plan with a local blend, got heun",
        )


def check_attended_samplers_refuse(pack):
    """What a SAMPLER cannot do with a plan, in one sentence each."""
    kind = "sd15"
    model, inversion, *start = _by_midpoint(pack, kind)
    (given, noise, sigmas), target, source, rules = start, target_of(kind), inversion.source, plan(pack)
    loaded, sampler = reloaded(pack, inversion), _rf(pack, inversion, rules)
    small = {"samples": given["samples"][..., :2]}
    part = {"area": (2, 2, 0, 0), "strength": 1.0}
    timed, parts = [[source[0][0], {**source[0][1], **part}]], [[target[0][0], part], *target]
    fitted = fit(pack, model, inverted(pack, kind, model=model, batch=2)[1], negative_of(kind), inner_steps=1)[0]

    def run(sampler=sampler, **changes):
        inputs = {"model": model, "positive": target, "sigmas": sigmas, "latent": given, "noise": noise, **changes}
        return advanced(sampler=sampler, **inputs)

    made = lambda make, of, attention, **changes: make(pack, of, attention, **changes)  # noqa: E731
    refuses_each(
        made,
        ({"make": _rf, "of": None, "attention": rules}, "inversion must be connected with attention"),
        ({"make": _rf, "of": inversion, "attention": None}, "inversion must come with attention"),
        ({"make": _rf, "of": None, "attention": None, "source": target}, "source must come with attention"),
        ({"make": _resume, "of": inversion, "attention": None, "source": target}, "source must come with attention"),
        ({"make": _rf, "of": inversion, "attention": plan(pack, source="free")}, "must have its source pinned", "free"),
        ({"make": _rf, "of": loaded, "attention": rules}, "source must be connected to control attention"),
        ({"make": _resume, "of": loaded, "attention": rules}, "source must be connected to control attention"),
        ({"make": _resume, "of": fitted, "attention": rules}, "inversion must have no fitted embeddings"),
    )
    refuses_each(
        run,
        ({"sigmas": sigmas.flip(0)}, "sigmas must fall for a sampler with attention"),
        ({"sigmas": 2.0 * sigmas}, "sigmas must start at or below the inversion's sigma"),
        # Without noise, which has the inversion's size itself.
        ({"latent": small, "noise": None}, "the inversion's size"),
        ({"model": tiny_dits.model(kind, seed=1)}, "model must be the one"),
        ({"sampler": _rf(pack, loaded, rules, source=timed)}, "source of the inversion must be a plain prompt", "area"),
        ({"positive": parts}, "positive of the guider must be one prompt"),
    )
    for make in (_rf, _resume):
        ours, theirs = make(pack, loaded, rules, source=source), make(pack, inversion, rules)
        assert torch.equal(run(ours), run(theirs)), make
    dual = comfy_extras.nodes_custom_sampler.Guider_DualCFG(model)
    dual.set_conds(target, target, negative_of(kind))
    dual.set_cfg(2.0, 2.0)

    def guider(**changes):
        inputs = {"model": model, "source": source, "target": target, "attention": rules, **changes}
        return pack.call("AttentionGuider", **inputs)[0]

    for each in (dual, guider(inversion=inversion)):
        call = lambda g=each: sampled(g, sampler, sigmas, given, noise)  # noqa: E731
        refuses(call, "guider must be CFGGuider or BasicGuider", type(each).__name__)
    blend = attending.blended(pack, rules, mask=torch.ones(1, 4, 6))
    free = {"inversion": inversion, "attention": plan(pack, source="free")}
    refuses(lambda: guider(**free), "attention must have its source pinned with an inversion, got free")
    refuses(lambda: guider(attention=blend), "must hold no local blend", "RFSolverSample or InversionSampler")


def check_controlnet_of_the_guider_acts_beside_a_source(pack):
    """A ControlNet on the target's prompt acts; one on the inversion's is refused."""
    kind = "sd15"
    model, inversion, *start = _by_midpoint(pack, kind)
    given, noise, sigmas = start
    (led, away, source), _ = controlled(pack, kind, (target_of(kind), negative_of(kind), inversion.source), seed=3)
    by_sampler = advanced(model, led, _rf(pack, inversion, plan(pack)), sigmas, given, noise, away, 3.0)
    wanted = resampled(pack, model, inversion, kind, plan(pack), 3.0, target=led, negative=away)
    assert relative(by_sampler, wanted) < FLOAT32, relative(by_sampler, wanted)
    assert relative(by_sampler, resampled(pack, model, inversion, kind, plan(pack), 3.0)) > 1e-3
    sampler = _rf(pack, inversion, plan(pack), source=source)
    call = lambda: advanced(model, target_of(kind), sampler, sigmas, given, noise)  # noqa: E731
    refuses(call, "source of the inversion must be a plain prompt", "control")


def check_attention_reads_the_source_and_not_its_moved_noise(pack):
    """Without a path nothing tells where the source of an optimised noise was: refused; with one it plays."""
    model = tiny_dits.model("sd15")
    prompts = {"positive": target_of("sd15"), "negative": negative_of("sd15")}
    for keep_path in (False, True):
        _, inversion = inverted(pack, "sd15", model=model, keep_path=keep_path)
        asked = {"model": model, "inversion": inversion, "reference": latent_of("sd15", seed=4), **prompts, "cfg": 3.0}
        moved, *_ = pack.call("NoiseOptimize", **asked, iterations=3, learning_rate=0.1)
        for source in ("pinned", "free"):
            rules, _ = injected(pack, model, source=source)
            call = lambda m=moved, r=rules: resampled(pack, model, m, "sd15", r)  # noqa: E731
            if not keep_path:
                refuses(call, "inversion must hold its path to tell where its source was")
                continue
            edited, plain = call(), resampled(pack, model, inversion, "sd15", rules)
            assert bool(edited.isfinite().all()) and relative(edited, plain) > 1e-4, source
