"""The nodes that are one method each: pairs that come back exactly, and the fixed-point inversion."""

import torch
from helpers import STEPS, Counter, advanced, invert, refuses, relative, trained

# Settings other than the defaults, so that a node that loses them is noticed.
SETTINGS = {
    "EDICTCouple": ("edict", {"p": 0.9}),
    "BDIAInvert": ("bdia", {"gamma": 0.9}),
    "BELMInvert": ("belm", {"reseed": False}),
    "FixedPointInvert": ("fixed_point", {"iterations": 3, "memory": 0, "window": 2, "warm_start": True}),
    "SPDInvert": ("spd", {"iterations": 2, "learning_rate": 5e-4, "stop": 1e-4}),
}
PAIRS = ("EDICTCouple", "BDIAInvert", "BELMInvert")
# The network is float32 and so is the latent that comes back; the states are float64.
EXACT = 1e-6


def run(pack, node_id, kind, model=None, source=None, latent=None, **changes):
    """Run one of the nodes on a tiny model; returns (model, source, latent, outputs)."""
    model = pack.tiny.model(kind) if model is None else model
    source = pack.tiny.conditioning(kind) if source is None else source
    latent = pack.tiny.latent(kind, batch=2) if latent is None else latent
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


def check_method_nodes_are_invert(pack):
    """Each gives bit for bit the record of Invert with that method and those settings, guided and with a path too."""
    for node_id, (method, settings) in SETTINGS.items():
        for kind, strength in (("sd15", 1.0), ("flux", 0.75), ("wan", 1.0)):
            model = pack.tiny.model(kind)
            latent = pack.tiny.latent(kind, batch=2)
            more = {"strength": strength, "keep_path": True, "cfg": 2.0, "negative": pack.tiny.conditioning(kind, 5)}
            *_, outputs = run(pack, node_id, kind, model=model, latent=latent, **more, **settings)
            prefixed = {f"{method}_{name}": value for name, value in settings.items()}
            *_, wanted = invert(pack, kind, model=model, latent=latent, method=method, **more, **prefixed)
            ours, theirs = outputs[0], wanted[0]
            assert ours.method == method and dict(ours.params) == dict(theirs.params), node_id
            assert settings.items() <= ours.params.items(), (node_id, ours.params)
            assert torch.equal(ours.x, theirs.x) and ours.sigmas == theirs.sigmas and ours.index == theirs.index
            assert (ours.mate is None) == (theirs.mate is None) == (node_id not in PAIRS)
            assert ours.mate is None or torch.equal(ours.mate, theirs.mate), node_id
            assert len(ours.path) == ours.index + 1 and ours.fingerprints == theirs.fingerprints


def check_pair_nodes_come_back(pack):
    """At few steps on every kind and at the default number on three, with the defaults of the nodes."""
    for kind in pack.tiny.KINDS:
        for node_id in PAIRS:
            for steps in (3, 20) if kind in ("sd15", "sd3", "wan") else (3,):
                model, _, latent, (linked, sigmas) = run(pack, node_id, kind, steps=steps)
                (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
                error = relative(back["samples"], latent["samples"])
                assert error <= EXACT, (kind, node_id, steps, error)
                assert len(sigmas) == linked.index + 1 and sigmas[-1] == 0


def check_pair_nodes_on_the_trained_models(pack):
    """On networks that denoise, at 20 and 50 steps: back to the latent within 1e-5, the noise not run away."""
    for kind in ("eps", "flow"):
        model, (source, _), latent = trained(pack, kind)
        for node_id in PAIRS:
            for steps in (20, 50):
                *_, (linked, _) = run(pack, node_id, kind, model, source, latent, steps=steps, scheduler="normal")
                (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
                error = relative(back["samples"], latent["samples"])
                assert error <= 1e-5, (kind, node_id, steps, error)
                record = linked
                std = pack.module("inversion").noise_std(record.x, record.x0, record.sigma, record.space)
                # Seen: 0.6 (BDIA, flow, 20 steps) to 2.0 (O-BELM, flow, 20); a pair that runs apart is far beyond.
                assert 0.4 < std < 4.0, (kind, node_id, steps, std)


def check_pair_nodes_edit_inside_a_mask(pack):
    """A pair plays towards a target, and outside the mask it is the source bit for bit."""
    for kind in ("sd15", "flux"):
        for node_id in PAIRS:
            model, _, latent, (linked, _) = run(pack, node_id, kind)
            mask = torch.zeros(1, 64, 96)
            mask[:, 16:48, 16:48] = 1.0
            target = pack.tiny.conditioning(kind, seed=9)
            (edited,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0, positive=target, mask=mask)
            inside = torch.zeros_like(latent["samples"], dtype=torch.bool)
            inside[..., 2:6, 2:6] = True
            assert torch.equal(edited["samples"][~inside], latent["samples"][~inside]), (kind, node_id)
            assert not torch.equal(edited["samples"][inside], latent["samples"][inside]), (kind, node_id)


def check_method_nodes_show_their_settings(pack):
    """Settings have their plain names, are in sight, and stand last; a pair gives no LATENT and no NOISE."""
    shared = ["model", "source", "latent", "steps", "scheduler", "cfg", "strength", "negative", "sigmas", "keep_path"]
    solved = ["INVERSION", "LATENT", "NOISE", "SIGMAS", "FLOAT", "STRING"]
    outputs = {"FixedPointInvert": solved, "SPDInvert": solved}
    for node_id, (method, settings) in SETTINGS.items():
        info = pack.node(node_id).GET_NODE_INFO_V1()
        assert info["output"] == outputs.get(node_id, ["INVERSION", "SIGMAS"]), node_id
        inputs = {**info["input"]["required"], **info["input"]["optional"]}
        assert list(inputs) == [*shared, *settings], (node_id, list(inputs))
        for setting in pack.module("inversion").METHODS[method].parameters():
            options = inputs[setting.name][1]
            assert options["default"] == setting.default and not options.get("advanced"), (node_id, setting.name)
    inputs = pack.node("Invert").GET_NODE_INFO_V1()["input"]
    shared.insert(5, "method")
    assert [*inputs["required"], *inputs["optional"]][: len(shared)] == shared


def check_method_nodes_refuse(pack):
    """What cannot work is said at the widgets where it can be seen there, else before the first model call."""
    for node_id, changes, part in (
        ("EDICTCouple", {"p": 0.2}, "p of method edict must be 0 or at least 0.5, got 0.2"),
        ("FixedPointInvert", {"window": 2}, "window of method fixed_point must be 1 with memory above 0"),
        ("FixedPointInvert", {"memory": 0, "window": 6}, "must not exceed the iterations 5, got 6"),
    ):
        text = pack.node(node_id).validate_inputs(**changes)
        assert isinstance(text, str) and part in text, (node_id, text)
        refuses(lambda n=node_id, c=changes: run(pack, n, "sd15", **c), part)
    for node_id in SETTINGS:
        refuses(lambda n=node_id: run(pack, n, "sd15", cfg=2.0), "cfg must be 1 without a negative")
    counter = Counter(pack.tiny.model("sd15"))
    for node_id, changes, part in (
        ("BDIAInvert", {"gamma": 0.5, "steps": 20}, "gamma of method bdia must be at least 0.82 to climb 20 steps"),
        ("EDICTCouple", {"p": 0.5, "steps": 20}, "p of method edict must be 0 or at least 0.67 to climb 20 steps"),
        ("BELMInvert", {"strength": 0.25}, "index must lie between 2"),
    ):
        refuses(lambda n=node_id, c=changes: run(pack, n, "sd15", model=counter.model, **c), part)
    assert counter.calls == 0


def check_fixed_point_node_reports(pack):
    """It costs its iterations, and says what each step was left with."""
    for kind in ("sd15", "sd3"):
        for iterations in (1, 6):
            counter = Counter(pack.tiny.model(kind))
            model, _, _, (linked, *_, residual, text) = run(
                pack, "FixedPointInvert", kind, model=counter.model, iterations=iterations
            )
            assert counter.calls == iterations * STEPS, (kind, counter.calls)
            meta = linked.meta
            listed = [float(word) for word in str(meta["residuals"]).split()]
            assert len(listed) == STEPS and residual == meta["residual"] >= 0
            assert abs(max(listed) - residual) <= 0.01 * residual, (listed, residual)
            lines = text.splitlines()
            assert len(lines) == 2 and f"{residual:.2e}" in lines[0] and str(meta["residuals"]) in lines[1]
            report = pack.call("InversionReport", inversion=linked, model=model)[0]
            assert all(line in report.splitlines() for line in lines)
    model, _, _, (plain, *_) = invert(pack, "sd15", method="euler")
    assert "fixed point" not in pack.call("InversionReport", inversion=plain, model=model)[0]


def check_fixed_point_node_comes_nearer(pack):
    """On networks that denoise, more iterations leave smaller residuals and a nearer round trip."""
    for kind in ("eps", "flow"):
        model, (source, _), latent = trained(pack, kind)
        found = []
        for iterations in (1, 3, 6):
            outputs = run(pack, "FixedPointInvert", kind, model, source, latent, iterations=iterations, steps=12)[3]
            (back,) = pack.call("Resample", model=model, inversion=outputs[0], cfg=1.0)
            found.append((relative(back["samples"], latent["samples"]), outputs[4]))
        errors, residuals = zip(*found)
        assert errors[2] < 0.7 * errors[1] and errors[1] < 0.5 * errors[0], (kind, errors)
        assert residuals[2] < residuals[1] < residuals[0], (kind, residuals)


def check_fixed_point_node_says_when_it_diverges(pack):
    """With a guidance at which the map is no contraction the report counts the steps."""
    negative = pack.tiny.conditioning("sd15", 5)
    *_, (linked, *_, text) = run(pack, "FixedPointInvert", "sd15", cfg=60.0, negative=negative, memory=0)
    diverged = linked.meta["diverged"]
    assert diverged > 0 and f"not shrinking in {diverged} of {STEPS} steps" in text, text


def check_fixed_point_state_reaches_stock_samplers(pack):
    """Its LATENT, NOISE and SIGMAS start the host's Euler where Resample starts: one state fits them all."""
    import comfy.samplers

    for kind in ("sd15", "flux"):
        model, source, _, (linked, out, noise, sigmas, *_) = run(pack, "FixedPointInvert", kind)
        (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
        drawn = advanced(model, source, comfy.samplers.sampler_object("euler"), sigmas, out, noise)
        assert relative(drawn, back["samples"]) < 1e-5, (kind, relative(drawn, back["samples"]))
