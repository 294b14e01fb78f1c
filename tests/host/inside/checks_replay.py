"""The nodes whose way down holds on to the source: direct inversion, noise maps, RF-Inversion, negative prompts."""

import logging

import comfy.model_management
import comfy.samplers
import torch
from helpers import STEPS, Counter, advanced, invert, no_interrupt, refuses, relative, same_snapshot, snapshot

CFG = 7.5
# The network is float32 and so is the latent that comes back; the states are float64.
EXACT = 1e-6
# Settings other than the defaults, so that a node that loses them is noticed.
SETTINGS = {
    "DirectInversion": ("direct", {"carry": 0.5}),
    "NoiseMapInvert": ("noise_map", {"seed": 4, "stepper": "dpmpp_2m_sde"}),
    "RFInversion": ("rf_inversion", {"gamma": 0.3, "eta": 0.7, "start": 0.25, "stop": 0.75, "seed": 5}),
}
SOURCE_EXACT = (
    ("DirectInversion", {}),
    ("DirectInversion", {"carry": 0.0}),
    ("NoiseMapInvert", {}),
    ("NoiseMapInvert", {"stepper": "dpmpp_2m_sde"}),
)


def run(pack, node_id, kind, model=None, latent=None, batch=2, **changes):
    """Run one of the nodes that invert on a tiny model; returns (model, source, latent, outputs)."""
    model = pack.tiny.model(kind) if model is None else model
    source = pack.tiny.conditioning(kind)
    latent = pack.tiny.latent(kind, batch=batch) if latent is None else latent
    inputs = {
        "model": model,
        "source": source,
        "latent": latent,
        "steps": STEPS,
        "scheduler": "simple",
        "cfg": 1.0,
        "strength": 1.0,
        **changes,
    }
    return model, source, latent, pack.call(node_id, **inputs)


def npi(pack, model, linked, target, **changes):
    """Run NegativePromptInversion; returns its samples."""
    inputs = {"cfg": CFG, "prox": "none", "quantile": 0.75, "pull": 0.0, **changes}
    (out,) = pack.call("NegativePromptInversion", model=model, inversion=linked, target=target, **inputs)
    return out["samples"]


def middle(latent):
    """A mask in pixels, and the cells that it covers."""
    mask = torch.zeros(1, 64, 96)
    mask[:, 16:48, 16:48] = 1.0
    inside = torch.zeros_like(latent["samples"], dtype=torch.bool)
    inside[..., 2:6, 2:6] = True
    return mask, inside


def check_source_exact_nodes_come_back_guided(pack):
    """At cfg 7.5 on every kind: reconstructed, from a file, resumed, and with the source as the target of an edit."""
    runs = pack.module("nodes.inverting.runs")
    for kind in pack.tiny.KINDS:
        negative = pack.tiny.conditioning(kind, seed=5)
        for node_id, settings in SOURCE_EXACT:
            inputs = {"model": pack.tiny.model(kind, tame=True), "cfg": CFG, "negative": negative, **settings}
            model, source, latent, (linked, sigmas) = run(pack, node_id, kind, **inputs)
            record, what = linked, (kind, node_id, settings)
            assert len(sigmas) == record.index + 1 and sigmas[-1] == 0
            ends = []
            with torch.inference_mode():
                runs.run_replay(model, linked, tap=lambda report, ends=ends: ends.append(report.x.cpu()))
            # Before the format of the latent rounds it to float32.
            error = relative(ends[-1], record.x0)
            assert error <= (0.0 if node_id == "DirectInversion" else 1e-12), (what, error)
            (name,) = pack.call("SaveInversion", inversion=linked, filename_prefix="guided", half=False)
            (loaded,) = pack.call("LoadInversion", file=name)
            for each, given in ((linked, {}), (loaded, {"source": source, "negative": negative})):
                (back,) = pack.call("Resample", model=model, inversion=each, cfg=1.0, **given)
                assert relative(back["samples"], latent["samples"]) <= EXACT, what
            if settings.get("carry") == 0.0:
                continue
            (edit,) = pack.call("Resample", model=model, inversion=linked, cfg=CFG, positive=source, negative=negative)
            assert relative(edit["samples"], latent["samples"]) <= EXACT, what
            (resume,) = pack.call("InversionSampler", inversion=linked, sampler_name="same as inversion")
            resumed = advanced(model, source, resume, sigmas, latent, negative=negative, cfg=CFG)
            # The stock guider puts both conditionings into one forward, whose last bits are others.
            assert relative(resumed, latent["samples"]) <= 1e-4, (what, relative(resumed, latent["samples"]))


def check_plain_ddim_does_not_come_back_guided(pack):
    """What the methods above are for: without them the same walk is far off."""
    negative = pack.tiny.conditioning("sd15", seed=5)
    model, source, latent, (linked, *_) = invert(pack, "sd15", batch=2, method="ddim")
    (edit,) = pack.call("Resample", model=model, inversion=linked, cfg=CFG, positive=source, negative=negative)
    assert relative(edit["samples"], latent["samples"]) > 0.05


def check_direct_climbs_unguided(pack):
    """Its path is that of DDIM inversion at cfg 1 bit for bit, at any cfg, for one forward a step more."""
    for kind in ("sd15", "sd3", "wan"):
        negative = pack.tiny.conditioning(kind, seed=5)
        model, _, latent, (plain, *_) = invert(pack, kind, batch=2, method="ddim", keep_path=True)
        for cfg, forwards in ((1.0, 2), (CFG, 3)):
            counter = Counter(model)
            *_, (linked, _) = run(pack, "DirectInversion", kind, counter.model, latent, cfg=cfg, negative=negative)
            assert all(torch.equal(a, b) for a, b in zip(linked.path, plain.path)), (kind, cfg)
            assert counter.calls == forwards * STEPS and linked.meta["evaluations"] == 2 * STEPS
            counter.calls = 0
            *_, (bare, _) = run(
                pack, "DirectInversion", kind, counter.model, latent, cfg=cfg, negative=negative, carry=0.0
            )
            assert counter.calls == STEPS and bare.residuals is None


class _Log(logging.Handler):
    """Keeps what is said in the log."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def check_direct_warns_of_another_guidance(pack):
    """An edit at another cfg than the correction's is said in the log; a reconstruction and one without is not."""
    negative, target = pack.tiny.conditioning("sd15", seed=5), pack.tiny.conditioning("sd15", seed=9)
    for node_id, carry, cfg, warned in (
        ("DirectInversion", 1.0, 2.0, True),
        ("DirectInversion", 1.0, CFG, False),
        ("DirectInversion", 0.0, 2.0, False),
        ("NoiseMapInvert", None, 2.0, False),
    ):
        own = {} if carry is None else {"carry": carry}
        model, _, _, (linked, _) = run(pack, node_id, "sd15", cfg=CFG, negative=negative, **own)
        for positive in (target, None):
            log = _Log()
            logging.getLogger().addHandler(log)
            try:
                pack.call("Resample", model=model, inversion=linked, cfg=cfg, positive=positive, negative=negative)
            finally:
                logging.getLogger().removeHandler(log)
            said = any("the correction of this inversion was recorded at 7.5" in line for line in log.lines)
            assert said == (warned and positive is not None), (node_id, carry, cfg, log.lines)


def check_replay_nodes_are_invert(pack):
    """Each gives bit for bit the record of Invert with that method and those settings, guided too."""
    for node_id, (method, settings) in SETTINGS.items():
        for kind, strength in (("sdxl", 1.0), ("flux", 0.75)):
            model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
            more = {"strength": strength, "cfg": 2.0, "negative": pack.tiny.conditioning(kind, 5)}
            *_, outputs = run(pack, node_id, kind, model, latent, **more, **settings)
            prefixed = {f"{method}_{name}": value for name, value in settings.items()}
            *_, wanted = invert(pack, kind, model=model, latent=latent, method=method, **more, **prefixed)
            ours, theirs = outputs[0], wanted[0]
            assert ours.method == method and dict(ours.params) == dict(theirs.params) == settings, node_id
            assert torch.equal(ours.x, theirs.x) and ours.fingerprints == theirs.fingerprints, node_id
            for name in ("path", "residuals"):
                pair = getattr(ours, name) or (), getattr(theirs, name) or ()
                assert len(pair[0]) == len(pair[1]) and all(torch.equal(a, b) for a, b in zip(*pair)), (node_id, name)


def check_replay_nodes_show_their_settings(pack):
    """Settings have their plain names, are in sight, and stand last."""
    shared = ["model", "source", "latent", "steps", "scheduler", "cfg", "strength", "negative", "sigmas"]
    for node_id, (method, settings) in SETTINGS.items():
        info = pack.node(node_id).GET_NODE_INFO_V1()
        single = ["INVERSION", "LATENT", "NOISE", "SIGMAS"]
        assert info["output"] == (single if node_id == "RFInversion" else ["INVERSION", "SIGMAS"]), node_id
        inputs = {**info["input"]["required"], **info["input"]["optional"]}
        # The path is part of direct inversion, so nobody is asked for it.
        path = [] if node_id == "DirectInversion" else ["keep_path"]
        assert list(inputs) == [*shared, *path, *settings], (node_id, list(inputs))
        for setting in pack.module("inversion").METHODS[method].parameters():
            assert inputs[setting.name][1]["default"] == setting.default, (node_id, setting.name)


def check_replay_nodes_refuse(pack):
    """What cannot work is said at the widgets where it can be seen there, else before the first model call."""
    for node_id, changes, part in (
        ("RFInversion", {"start": 0.5, "stop": 0.2}, "start of method rf_inversion must not lie above stop"),
    ):
        text = pack.node(node_id).validate_inputs(**changes)
        assert isinstance(text, str) and part in text, (node_id, text)
        refuses(lambda n=node_id, c=changes: run(pack, n, "sd15", **c), part)
    cached = pack.tiny.model("sd15").clone()
    cached.add_wrapper_with_key(
        "outer_sample", "easycache", lambda executor, *args, **kwargs: executor(*args, **kwargs)
    )
    for node_id in SETTINGS:
        if node_id == "RFInversion":  # stop over a link: what it is compared with is not known yet
            assert pack.node(node_id).validate_inputs(start=0.5, stop=None) is True
        refuses(lambda n=node_id: run(pack, n, "sd15", cfg=2.0), "cfg must be 1 without a negative")
        refuses(lambda n=node_id: run(pack, n, "sd15", model=cached), "got the cache patch 'easycache'")


def check_source_exact_nodes_edit_inside_a_mask(pack):
    """Towards a target, and outside the mask the source bit for bit."""
    for kind in ("sd15", "flux", "wan"):
        negative, target = pack.tiny.conditioning(kind, seed=5), pack.tiny.conditioning(kind, seed=9)
        for node_id in SETTINGS:
            model, _, latent, (linked, *_) = run(pack, node_id, kind, cfg=3.0, negative=negative)
            mask, inside = middle(latent)
            (edited,) = pack.call(
                "Resample", model=model, inversion=linked, cfg=3.0, positive=target, negative=negative, mask=mask
            )
            assert torch.equal(edited["samples"][~inside], latent["samples"][~inside]), (kind, node_id)
            assert not torch.equal(edited["samples"][inside], latent["samples"][inside]), (kind, node_id)


def check_direct_stops_within_one_call(pack):
    """An interrupt in the unguided climb and in the guided residual ends it before the next call."""
    negative = pack.tiny.conditioning("sd15", seed=5)
    for after in (4, 5, 6):
        counter = Counter(pack.tiny.model("sd15"), interrupt_after=after)
        before = snapshot(counter.model)
        with no_interrupt():
            try:
                run(pack, "DirectInversion", "sd15", counter.model, cfg=CFG, negative=negative)
            except comfy.model_management.InterruptProcessingException:
                pass
            else:
                raise AssertionError("the interrupt was swallowed")
        # Both conditionings of one guided answer belong to one call of the model.
        assert counter.calls in (after, after + 1), (after, counter.calls)
        same_snapshot(counter.model, before)


def check_rf_inversion_limits(pack):
    """gamma 1 is noise, eta 1 to the end is the source, and neither is Euler bit for bit."""
    for kind in pack.tiny.KINDS:
        target = pack.tiny.conditioning(kind, seed=9)
        model, _, latent, (linked, *_) = run(pack, "RFInversion", kind, gamma=1.0, seed=6, eta=1.0, stop=1.0)
        record, shape = linked, latent["samples"].shape
        drawn = torch.randn(shape[1:], generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        noise = drawn.expand(shape) if record.space == "flow" else record.x0 + record.sigma * drawn
        assert relative(record.x, noise) <= 1e-12, kind
        (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0, positive=target)
        assert relative(back["samples"], latent["samples"]) <= EXACT, kind
        *_, (bare, out, noise, sigmas) = run(pack, "RFInversion", kind, model, latent, gamma=0.0, eta=0.0)
        *_, (euler, *_) = invert(pack, kind, model=model, latent=latent, method="euler")
        assert torch.equal(bare.x, euler.x), kind
        ways = [
            pack.call("Resample", model=model, inversion=each, cfg=1.0, positive=target)[0]["samples"]
            for each in (bare, euler)
        ]
        assert torch.equal(*ways), kind
        # Its state reaches stock samplers; without a pull that is the same way down.
        drawn = advanced(model, target, comfy.samplers.sampler_object("euler"), sigmas, out, noise)
        assert relative(drawn, ways[0]) < 1e-5, (kind, relative(drawn, ways[0]))


def check_negative_prompt_of_the_source_is_the_walk_without_guidance(pack):
    """With the source as target, any cfg and any prox is bit for bit what Resample reconstructs at cfg 1."""
    for kind in pack.tiny.KINDS:
        for method in ("euler", "midpoint", "edict"):
            model, source, _, (linked, *_) = invert(pack, kind, batch=2, method=method)
            (plain,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
            for prox in ("none", "l0", "l1"):
                assert torch.equal(npi(pack, model, linked, source, prox=prox), plain["samples"]), (kind, method, prox)


def check_negative_prompt_is_guidance_away_from_the_source(pack):
    """Plain, it is Resample with the source as negative; at interp 0 with the negative itself; two forwards a step."""
    for kind in ("sd15", "sdxl", "sd3", "wan"):
        negative, target = pack.tiny.conditioning(kind, seed=5), pack.tiny.conditioning(kind, seed=9)
        model, source, _, (linked, *_) = invert(pack, kind, batch=2, method="euler")
        before, counter = snapshot(model), Counter(model)
        for interp, against in ((1.0, source), (0.0, negative)):
            counter.calls = 0
            ours = npi(pack, counter.model, linked, target, cfg=3.0, interp=interp, negative=negative)
            assert counter.calls == 2 * STEPS
            (theirs,) = pack.call("Resample", model=model, inversion=linked, cfg=3.0, positive=target, negative=against)
            # Mixed in float64 here, in float32 by the host.
            assert relative(ours, theirs["samples"]) < 1e-4, (kind, interp, relative(ours, theirs["samples"]))
        half = npi(pack, model, linked, target, cfg=3.0, interp=0.5, negative=negative)
        assert relative(half, ours) > 1e-3
        same_snapshot(model, before)


def check_negative_prompt_mixes_pooled_text(pack):
    """Of a mixture, the pooled text is mixed too; everything else is the source's."""
    host, core = pack.module("nodes.inverting.negative_prompt_run"), pack.module("inversion")
    source, negative = pack.tiny.conditioning("flux", seed=1), pack.tiny.conditioning("flux", seed=2)
    [[text, extras]] = host.between(negative, source, 0.25)
    for found, one, other in (
        (text, negative[0][0], source[0][0]),
        (extras["pooled_output"], negative[0][1]["pooled_output"], source[0][1]["pooled_output"]),
    ):
        assert torch.equal(found, core.slerp(one, other, 0.25)) and not torch.equal(found, other)
    assert extras["guidance"] == source[0][1]["guidance"] and host.between(negative, source, 1.0) is source


def check_negative_prompt_holds_back(pack):
    """More held back is nearer to the source; all held back is the source; the pull brings it home."""
    for kind in ("sd15", "flux"):
        target = pack.tiny.conditioning(kind, seed=9)
        model, _, latent, (linked, *_) = invert(pack, kind, method="edict")
        far = [
            relative(npi(pack, model, linked, target, prox="l1", quantile=q), latent["samples"])
            for q in (0.0, 0.75, 1.0)
        ]
        assert far[0] > far[1] > far[2] and far[2] <= EXACT, (kind, far)
        _, _, _, (euler, *_) = invert(pack, kind, model=model, latent=latent, method="euler")
        pulled = npi(pack, model, euler, target, prox="l0", quantile=1.0, pull=1.0, pull_steps=0.25)
        assert relative(pulled, latent["samples"]) <= EXACT, kind
        mask, inside = middle(latent)
        edited = npi(pack, model, euler, target, mask=mask)
        assert torch.equal(edited[~inside], latent["samples"][~inside]) and not torch.equal(
            edited[inside], latent["samples"][inside]
        )


def check_negative_prompt_takes_loaded_records(pack):
    """A record from a file needs its source, and is then played as the fresh one; extras of the LATENT stay."""
    target = pack.tiny.conditioning("sd3", seed=9)
    latent = {**pack.tiny.latent("sd3", batch=2), "batch_index": [4, 7]}
    model, source, _, (linked, *_) = invert(pack, "sd3", latent=latent)
    fresh = npi(pack, model, linked, target)
    inputs = {"cfg": CFG, "prox": "none", "quantile": 0.0, "pull": 0.0}
    (out,) = pack.call("NegativePromptInversion", model=model, inversion=linked, target=target, **inputs)
    assert out["batch_index"] == [4, 7]
    (name,) = pack.call("SaveInversion", inversion=linked, filename_prefix="npi", half=False)
    (loaded,) = pack.call("LoadInversion", file=name)
    refuses(lambda: npi(pack, model, loaded, target), "source must be connected to play back")
    assert torch.equal(npi(pack, model, loaded, target, source=source), fresh)


def check_negative_prompt_refuses(pack):
    """Each in one sentence, before the first model call."""
    counter = Counter(pack.tiny.model("sd15"))
    target, negative = pack.tiny.conditioning("sd15", seed=9), pack.tiny.conditioning("sd15", seed=5)
    model, _, _, (linked, *_) = invert(pack, "sd15", model=counter.model, keep_path=True, method="ddim")
    (fitted, *_) = pack.call(
        "NullTextOptimize", model=pack.tiny.model("sd15"), inversion=linked, negative=negative, cfg=CFG, inner_steps=1,
        learning_rate=0.01, stop=0.0, stop_growth=0.0,
    )  # fmt: skip
    counter.calls = 0
    two = [*negative, *negative]
    short = [[negative[0][0][:, :5], {}]]
    for changes, part in (
        ({"prox": "l2"}, "prox must be one of none, l0, l1"),
        ({"pull": 0.5}, "pull must be 0 with prox none, got 0.5"),
        ({"interp": 0.5}, "interp must be 1 without a negative, got 0.5"),
        ({"interp": 0.5, "negative": two}, "must be one prompt each to be mixed, got 1 and 2"),
        ({"interp": 0.5, "negative": short}, "embeddings must have one shape to be mixed"),
        ({"mask": torch.full((8, 12), torch.nan)}, "mask must be finite"),
    ):
        refuses(lambda c=changes: npi(pack, model, linked, target, **c), part)
    refuses(lambda: npi(pack, model, fitted, target), "inversion must have no fitted embeddings, got 4")
    other = pack.tiny.model("sd15", seed=1)
    refuses(lambda: npi(pack, other, linked, target), "The model must be the one that made the inversion")
    patched = counter.model.clone()
    patched.set_model_sampler_cfg_function(lambda args: args["cond"])
    refuses(lambda: npi(pack, patched, linked, target), "must be guided by plain cfg, got a patch of sampler_cfg_func")
    assert counter.calls == 0
    node = pack.node("NegativePromptInversion")
    assert node.validate_inputs(prox="l1", pull=1.0) is True
    assert "pull must be 0 with prox none" in node.validate_inputs(prox="none", pull=1.0)
