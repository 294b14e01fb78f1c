"""Ways down that hold on to the source: direct inversion, noise maps, RF-Inversion, negative prompts."""

import comfy.samplers
import torch
from helpers import Counter, interrupted, logged, refuses, refuses_each, relative, same_snapshot, snapshot
from running import STEPS, advanced, fit, invert, middle, play, reloaded, resuming

CFG = 7.5
# The network is float32 and so is the latent that comes back; the states are float64.
EXACT = 1e-6
SOURCE_EXACT = (
    ("DirectInversion", {}),
    ("DirectInversion", {"carry": 0.0}),
    ("NoiseMapInvert", {}),
    ("NoiseMapInvert", {"stepper": "dpmpp_2m_sde"}),
)


def npi(pack, model, inversion, target, **changes):
    """Samples of NegativePromptInversion."""
    inputs = {"model": model, "inversion": inversion, "target": target, "cfg": CFG, **changes}
    return pack.call("NegativePromptInversion", **inputs)[0]["samples"]


def check_source_exact_nodes_come_back_guided(pack):
    """At cfg 7.5 on every kind: reconstructed, from a file, resumed, and with the source as the target of an edit."""
    runs = pack.module("nodes.inverting.runs")
    for kind in pack.tiny.KINDS:
        negative = pack.tiny.conditioning(kind, seed=5)
        guided = {"cfg": CFG, "negative": negative}
        for node, settings in SOURCE_EXACT:
            given, what = {"model": pack.tiny.model(kind, tame=True), **guided, **settings}, (kind, node, settings)
            model, source, latent, (inversion, sigmas) = invert(pack, kind, 2, node=node, **given)
            assert len(sigmas) == inversion.index + 1 and sigmas[-1] == 0
            ends = []
            with torch.inference_mode():
                runs.run_replay(model, inversion, tap=lambda report, ends=ends: ends.append(report.x.cpu()))
            # Before the format of the latent rounds it to float32.
            error = relative(ends[-1], inversion.x0)
            assert error <= (0.0 if node == "DirectInversion" else 1e-12), (what, error)
            loaded = {"inversion": reloaded(pack, inversion), "source": source, "negative": negative}
            for back in (play(pack, model, inversion), play(pack, model, **loaded)):
                assert relative(back, latent["samples"]) <= EXACT, what
            if settings.get("carry") == 0.0:
                continue
            edited = play(pack, model, inversion, positive=source, **guided)
            assert relative(edited, latent["samples"]) <= EXACT, what
            resumed = advanced(model, source, resuming(pack, inversion), sigmas, latent, **guided)
            # The stock guider puts both conditionings into one forward, whose last bits are others.
            assert relative(resumed, latent["samples"]) <= 1e-4, (what, relative(resumed, latent["samples"]))


def check_direct_climbs_unguided(pack):
    """Its path is that of DDIM inversion at cfg 1 bit for bit, at any cfg, for one forward a step more."""
    for kind in ("sd15", "sd3", "wan"):
        negative = pack.tiny.conditioning(kind, seed=5)
        model, _, latent, (plain, *_) = invert(pack, kind, batch=2, method="ddim", keep_path=True)
        for cfg, forwards in ((1.0, 2), (CFG, 3)):
            counter, guided = Counter(model), {"cfg": cfg, "negative": negative}
            given = {"node": "DirectInversion", "model": counter.model, "latent": latent, **guided}
            *_, (inversion, _) = invert(pack, kind, **given)
            assert all(torch.equal(a, b) for a, b in zip(inversion.path, plain.path)), (kind, cfg)
            assert counter.calls == forwards * STEPS and inversion.meta["evaluations"] == 2 * STEPS
            counter.calls = 0
            *_, (bare, _) = invert(pack, kind, **given, carry=0.0)
            assert counter.calls == STEPS and bare.residuals is None


def check_direct_warns_of_another_guidance(pack):
    """An edit at another cfg than the correction's is said in the log; a reconstruction and one without is not."""
    negative, target = pack.tiny.conditioning("sd15", seed=5), pack.tiny.conditioning("sd15", seed=9)
    for node, settings, cfg, warned in (
        ("DirectInversion", {}, 2.0, True),
        ("DirectInversion", {}, CFG, False),
        ("DirectInversion", {"carry": 0.0}, 2.0, False),
        ("NoiseMapInvert", {}, 2.0, False),
    ):
        model, _, _, (inversion, _) = invert(pack, "sd15", node=node, cfg=CFG, negative=negative, **settings)
        for positive in (target, None):
            with logged() as records:
                play(pack, model, inversion, cfg=cfg, positive=positive, negative=negative)
            said = any("correction of this inversion was recorded at 7.5" in each.getMessage() for each in records)
            assert said == (warned and positive is not None), (node, settings, cfg)


def check_direct_stops_within_one_call(pack):
    """An interrupt in the unguided climb and in the guided residual ends it before the next call."""
    guided = {"cfg": CFG, "negative": pack.tiny.conditioning("sd15", seed=5)}
    for after in (4, 5, 6):
        # Both conditionings of one guided answer belong to one call of the model.
        run = lambda model: invert(pack, "sd15", node="DirectInversion", model=model, **guided)  # noqa: E731
        interrupted(run, pack.tiny.model("sd15"), after, (after, after + 1))


def check_rf_inversion_limits(pack):
    """gamma 1 is noise, eta 1 to the end is the source, and neither is Euler bit for bit."""
    for kind in pack.tiny.KINDS:
        target, node = pack.tiny.conditioning(kind, seed=9), "RFInversion"
        model, _, latent, (pulled, *_) = invert(pack, kind, 2, node=node, gamma=1.0, seed=6, eta=1.0, stop=1.0)
        shape = latent["samples"].shape
        drawn = torch.randn(shape[1:], generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        noise = drawn.expand(shape) if pulled.space == "flow" else pulled.x0 + pulled.sigma * drawn
        assert relative(pulled.x, noise) <= 1e-12, kind
        assert relative(play(pack, model, pulled, positive=target), latent["samples"]) <= EXACT, kind
        *_, (bare, out, noise, sigmas) = invert(pack, kind, 2, node=node, model=model, gamma=0.0, eta=0.0)
        *_, (euler, *_) = invert(pack, kind, 2, model=model, method="euler")
        assert torch.equal(bare.x, euler.x), kind
        ways = [play(pack, model, each, positive=target) for each in (bare, euler)]
        assert torch.equal(*ways), kind
        # Its state reaches stock samplers; without a pull that is the same way down.
        drawn = advanced(model, target, comfy.samplers.sampler_object("euler"), sigmas, out, noise)
        assert relative(drawn, ways[0]) < 1e-5, (kind, relative(drawn, ways[0]))


def check_negative_prompt_of_the_source_is_the_walk_without_guidance(pack):
    """With the source as target, any cfg and any prox is bit for bit what Resample reconstructs at cfg 1."""
    for kind in pack.tiny.KINDS:
        for method in ("midpoint", "edict"):
            model, source, _, (inversion, *_) = invert(pack, kind, batch=2, method=method)
            plain = play(pack, model, inversion)
            for prox in ("none", "l0", "l1"):
                assert torch.equal(npi(pack, model, inversion, source, prox=prox), plain), (kind, method, prox)


def check_negative_prompt_is_guidance_away_from_the_source(pack):
    """Plain, it is Resample with the source as negative; at interp 0 with the negative itself; two forwards a step."""
    for kind in ("sd15", "sdxl", "sd3", "wan"):
        negative, target = pack.tiny.conditioning(kind, seed=5), pack.tiny.conditioning(kind, seed=9)
        model, source, _, (inversion, *_) = invert(pack, kind, batch=2, method="euler")
        before, counter = snapshot(model), Counter(model)
        for interp, against in ((1.0, source), (0.0, negative)):
            counter.calls = 0
            ours = npi(pack, counter.model, inversion, target, cfg=3.0, interp=interp, negative=negative)
            assert counter.calls == 2 * STEPS
            theirs = play(pack, model, inversion, cfg=3.0, positive=target, negative=against)
            # Mixed in float64 here, in float32 by the host.
            assert relative(ours, theirs) < 1e-4, (kind, interp, relative(ours, theirs))
        assert relative(npi(pack, model, inversion, target, cfg=3.0, interp=0.5, negative=negative), ours) > 1e-3
        same_snapshot(model, before)
    # Of a mixture, the pooled text is mixed too; everything else is the source's.
    host, core = pack.module("nodes.inverting.negative_prompt_run"), pack.module("inversion")
    source, negative = pack.tiny.conditioning("flux", seed=1), pack.tiny.conditioning("flux", seed=2)
    [[text, extras]] = host.between(negative, source, 0.25)
    for mixed, one, other in (
        (text, negative[0][0], source[0][0]),
        (extras["pooled_output"], negative[0][1]["pooled_output"], source[0][1]["pooled_output"]),
    ):
        assert torch.equal(mixed, core.slerp(one, other, 0.25)) and not torch.equal(mixed, other)
    assert extras["guidance"] == source[0][1]["guidance"] and host.between(negative, source, 1.0) is source


def check_negative_prompt_holds_back(pack):
    """More held back is nearer to the source; all held back is the source; the pull brings it home; a mask holds."""
    for kind in ("sd15", "flux"):
        target = pack.tiny.conditioning(kind, seed=9)
        model, _, latent, (inversion, *_) = invert(pack, kind, method="edict")
        held = (npi(pack, model, inversion, target, prox="l1", quantile=q) for q in (0.0, 0.75, 1.0))
        far = [relative(each, latent["samples"]) for each in held]
        assert far[0] > far[1] > far[2] and far[2] <= EXACT, (kind, far)
        _, _, _, (euler, *_) = invert(pack, kind, model=model, method="euler")
        pulled = npi(pack, model, euler, target, prox="l0", quantile=1.0, pull=1.0, pull_steps=0.25)
        assert relative(pulled, latent["samples"]) <= EXACT, kind
        mask, inside = middle(latent)
        changed = npi(pack, model, euler, target, mask=mask) != latent["samples"]
        assert not changed[~inside].any() and changed[inside].any(), kind


def check_negative_prompt_takes_loaded_inversions(pack):
    """One from a file needs its source, and is then played as the fresh one; extras of the LATENT stay."""
    target = pack.tiny.conditioning("sd3", seed=9)
    latent = {**pack.tiny.latent("sd3", batch=2), "batch_index": [4, 7]}
    model, source, _, (inversion, *_) = invert(pack, "sd3", latent=latent)
    given = {"model": model, "target": target, "cfg": CFG, "quantile": 0.0}
    (out,) = pack.call("NegativePromptInversion", inversion=inversion, **given)
    for each in (out, pack.call("Resample", model=model, inversion=inversion)[0]):
        assert each["batch_index"] == [4, 7]
    loaded = reloaded(pack, inversion)
    refuses(lambda: npi(pack, model, loaded, target), "source must be connected to play back")
    assert torch.equal(npi(pack, model, loaded, target, source=source, quantile=0.0), out["samples"])


def check_negative_prompt_refuses(pack):
    """Each in one sentence, before the first model call."""
    counter = Counter(pack.tiny.model("sd15"))
    target, negative = pack.tiny.conditioning("sd15", seed=9), pack.tiny.conditioning("sd15", seed=5)
    model, _, _, (inversion, *_) = invert(pack, "sd15", model=counter.model, keep_path=True, method="ddim")
    fitted = fit(pack, pack.tiny.model("sd15"), inversion, negative, inner_steps=1)[0]
    patched = counter.model.clone()
    patched.set_model_sampler_cfg_function(lambda args: args["cond"])
    counter.calls = 0
    refuses_each(
        lambda **changes: npi(pack, **{"model": model, "inversion": inversion, "target": target, **changes}),
        ({"pull": 0.5}, "pull must be 0 with prox none, got 0.5"),
        ({"interp": 0.5}, "interp must be 1 without a negative, got 0.5"),
        ({"interp": 0.5, "negative": negative * 2}, "must be one prompt each to be mixed, got 1 and 2"),
        ({"interp": 0.5, "negative": [[negative[0][0][:, :5], {}]]}, "embeddings must have one shape to be mixed"),
        ({"mask": torch.full((8, 12), torch.nan)}, "mask must be finite"),
        ({"inversion": fitted}, "inversion must have no fitted embeddings, got 4"),
        ({"model": pack.tiny.model("sd15", seed=1)}, "The model must be the one that made the inversion"),
        ({"model": patched}, "must be guided by plain cfg, got a patch of sampler_cfg_func"),
    )
    assert counter.calls == 0
    node = pack.node("NegativePromptInversion")
    assert node.validate_inputs(prox="l1", pull=1.0) is True
    assert "pull must be 0 with prox none" in node.validate_inputs(prox="none", pull=1.0)
