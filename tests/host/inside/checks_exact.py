"""The nodes of one method each: they are Invert with it, pairs come back exactly, the fixed point comes nearer."""

import torch
from helpers import Counter, cached, refuses, relative
from running import STEPS, invert, middle, play, trained

# Settings other than the defaults, so that a node that loses them is noticed.
SETTINGS = {
    "EDICTCouple": ("edict", {"p": 0.9}),
    "BDIAInvert": ("bdia", {"gamma": 0.9}),
    "BELMInvert": ("belm", {"reseed": False}),
    "FixedPointInvert": ("fixed_point", {"iterations": 3, "memory": 0, "window": 2, "warm_start": True}),
    "SPDInvert": ("spd", {"iterations": 2, "learning_rate": 5e-4, "stop": 1e-4}),
    "DirectInversion": ("direct", {"carry": 0.5}),
    "NoiseMapInvert": ("noise_map", {"seed": 4, "stepper": "dpmpp_2m_sde"}),
    "RFInversion": ("rf_inversion", {"gamma": 0.3, "eta": 0.7, "start": 0.25, "stop": 0.75, "seed": 5}),
}
PAIRS = ("EDICTCouple", "BDIAInvert", "BELMInvert")
SOLVED = ("FixedPointInvert", "SPDInvert")
# The network is float32 and so is the latent that comes back; the states are float64.
EXACT = 1e-6


def check_method_nodes_are_invert(pack):
    """Each gives bit for bit the inversion of Invert with that method and those settings, guided and with its path."""
    for node, (method, settings) in SETTINGS.items():
        for kind, strength in (("sdxl", 1.0), ("flux", 0.75)):
            more = {"strength": strength, "cfg": 2.0, "negative": pack.tiny.conditioning(kind, 5)}
            model, prefixed = pack.tiny.model(kind), {f"{method}_{name}": value for name, value in settings.items()}
            # The path is part of direct inversion, so nobody is asked for it.
            own = settings if node == "DirectInversion" else {"keep_path": True, **settings}
            *_, (ours, *mine) = invert(pack, kind, 2, node=node, model=model, **more, **own)
            given = {"method": method, "keep_path": True, **more, **prefixed}
            *_, (theirs, out, noise, sigmas) = invert(pack, kind, 2, model=model, **given)
            assert torch.equal(mine[0] if len(mine) == 1 else mine[2], sigmas), node
            if len(mine) > 1:
                assert torch.equal(mine[0]["samples"], out["samples"]), node
                assert torch.equal(mine[1].generate_noise(out), noise.generate_noise(out)), node
            assert ours.method == method and dict(ours.params) == dict(theirs.params), node
            assert settings.items() <= ours.params.items(), (node, ours.params)
            assert torch.equal(ours.x, theirs.x) and ours.sigmas == theirs.sigmas and ours.index == theirs.index
            assert (ours.mate is None) == (theirs.mate is None) == (node not in PAIRS), node
            assert ours.mate is None or torch.equal(ours.mate, theirs.mate), node
            assert len(ours.path) == ours.index + 1 and ours.fingerprints == theirs.fingerprints, node
            for name in ("path", "residuals"):
                pair = getattr(ours, name) or (), getattr(theirs, name) or ()
                assert len(pair[0]) == len(pair[1]) and all(torch.equal(a, b) for a, b in zip(*pair)), (node, name)


def check_pairs_come_back(pack):
    """On random networks at the nodes' number of steps, and on networks that denoise, where the noise stays noise."""
    std = pack.module("inversion").noise_std
    for kind, steps in (("sd15", 20), ("sd3", 20), ("wan", 20), ("eps", 20), ("eps", 50), ("flow", 20), ("flow", 50)):
        own = kind in pack.tiny.KINDS
        model, (source, _), latent = (None, (None, None), None) if own else trained(pack, kind)
        inputs = {} if own else {"model": model, "source": source, "latent": latent, "scheduler": "normal"}
        for node in PAIRS:
            model, _, latent, (inversion, sigmas) = invert(pack, kind, 2, node=node, steps=steps, **inputs)
            error = relative(play(pack, model, inversion), latent["samples"])
            assert error <= (EXACT if own else 1e-5), (kind, node, steps, error)
            assert len(sigmas) == inversion.index + 1 and sigmas[-1] == 0
            # Seen: 0.6 (BDIA, flow, 20 steps) to 2.0 (O-BELM, flow, 20); a pair that runs apart is far beyond.
            noise = std(inversion.x, inversion.x0, inversion.sigma, inversion.space)
            assert own or 0.4 < noise < 4.0, (kind, node, steps, noise)


def check_method_nodes_edit_inside_a_mask(pack):
    """What carries more than a state plays towards a target, and outside the mask it is the source bit for bit."""
    for kind in ("sd15", "flux", "wan"):
        negative, target = pack.tiny.conditioning(kind, seed=5), pack.tiny.conditioning(kind, seed=9)
        for node in (name for name in SETTINGS if name not in SOLVED):
            guided = {"cfg": 3.0, "negative": negative}
            model, _, latent, (inversion, *_) = invert(pack, kind, 2, node=node, **guided)
            mask, inside = middle(latent)
            edited = play(pack, model, inversion, positive=target, mask=mask, **guided)
            assert torch.equal(edited[~inside], latent["samples"][~inside]), (kind, node)
            assert not torch.equal(edited[inside], latent["samples"][inside]), (kind, node)


def check_method_nodes_show_their_settings(pack):
    """Settings have their plain names, are in sight, and stand last; a pair gives no LATENT and no NOISE."""
    shared = ["model", "source", "latent", "steps", "scheduler", "cfg", "strength", "negative", "sigmas", "keep_path"]
    single = ["INVERSION", "LATENT", "NOISE", "SIGMAS"]
    outputs = {"RFInversion": single, **{node: [*single, "FLOAT", "STRING"] for node in SOLVED}}
    for node, (method, settings) in SETTINGS.items():
        info = pack.node(node).GET_NODE_INFO_V1()
        assert info["output"] == outputs.get(node, ["INVERSION", "SIGMAS"]), node
        inputs = {**info["input"]["required"], **info["input"]["optional"]}
        assert list(inputs) == [*shared[: -1 if node == "DirectInversion" else None], *settings], (node, list(inputs))
        for setting in pack.module("inversion").METHODS[method].parameters():
            options = inputs[setting.name][1]
            assert options["default"] == setting.default and not options.get("advanced"), (node, setting.name)
    inputs = pack.node("Invert").GET_NODE_INFO_V1()["input"]
    shared.insert(5, "method")
    assert [*inputs["required"], *inputs["optional"]][: len(shared)] == shared


def check_method_nodes_refuse(pack):
    """What cannot work is said at the widgets where it can be seen there, else before the first model call."""
    counter = Counter(pack.tiny.model("sd15"))
    skips = cached(counter.model)
    for node, changes, part in (
        ("EDICTCouple", {"p": 0.2}, "p of method edict must be 0 or at least 0.5, got 0.2"),
        ("FixedPointInvert", {"window": 2}, "window of method fixed_point must be 1 with memory above 0"),
        ("FixedPointInvert", {"memory": 0, "window": 6}, "must not exceed the iterations 5, got 6"),
        ("RFInversion", {"start": 0.5, "stop": 0.2}, "start of method rf_inversion must not lie above stop"),
        ("BDIAInvert", {"gamma": 0.5, "steps": 20}, "gamma of method bdia must be at least 0.82 to climb 20 steps"),
        ("EDICTCouple", {"p": 0.5, "steps": 20}, "p of method edict must be 0 or at least 0.67 to climb 20 steps"),
        ("BELMInvert", {"strength": 0.25}, "index must lie between 2"),
        *((node, {"cfg": 2.0}, "cfg must be 1 without a negative") for node in SETTINGS),
        *((node, {"model": skips}, "got the cache patch 'easycache'") for node in SETTINGS),
    ):
        refuses(lambda n=node, c=changes: invert(pack, "sd15", node=n, **{"model": counter.model, **c}), part)
        if not {"steps", "strength", "cfg", "model"} & set(changes):
            assert part in pack.node(node).validate_inputs(**changes)
    # What stop over a link is compared with is not known yet.
    assert pack.node("RFInversion").validate_inputs(start=0.5, stop=None) is True
    assert counter.calls == 0


def check_fixed_point_node_reports(pack):
    """It costs its iterations, and says what each step was left with and where the map was no contraction."""
    for kind, iterations in (("sd15", 1), ("sd3", 6)):
        counter = Counter(pack.tiny.model(kind))
        model, _, _, (inversion, *_, residual, text) = invert(
            pack, kind, 2, node="FixedPointInvert", model=counter.model, iterations=iterations
        )
        assert counter.calls == iterations * STEPS, (kind, counter.calls)
        listed = [float(word) for word in str(inversion.meta["residuals"]).split()]
        assert len(listed) == STEPS and residual == inversion.meta["residual"] >= 0
        assert abs(max(listed) - residual) <= 0.01 * residual, (listed, residual)
        lines = text.splitlines()
        assert len(lines) == 2 and f"{residual:.2e}" in lines[0] and str(inversion.meta["residuals"]) in lines[1]
        report = pack.call("InversionReport", inversion=inversion, model=model)[0]
        assert all(line in report.splitlines() for line in lines)
    model, _, _, (plain, *_) = invert(pack, "sd15", method="euler")
    assert "fixed point" not in pack.call("InversionReport", inversion=plain, model=model)[0]
    far = {"cfg": 60.0, "negative": pack.tiny.conditioning("sd15", 5), "memory": 0}
    *_, (inversion, *_, text) = invert(pack, "sd15", 2, node="FixedPointInvert", **far)
    diverged = inversion.meta["diverged"]
    assert diverged > 0 and f"not shrinking in {diverged} of {STEPS} steps" in text, text


def check_fixed_point_node_comes_nearer(pack):
    """On networks that denoise, more iterations leave smaller residuals and a nearer round trip."""
    for kind in ("eps", "flow"):
        model, (source, _), latent = trained(pack, kind)
        errors, residuals = [], []
        for iterations in (1, 3, 6):
            given = {"model": model, "source": source, "latent": latent, "iterations": iterations, "steps": 12}
            inversion, *_, residual, _ = invert(pack, kind, node="FixedPointInvert", **given)[3]
            errors.append(relative(play(pack, model, inversion), latent["samples"]))
            residuals.append(residual)
        assert errors[2] < 0.7 * errors[1] and errors[1] < 0.5 * errors[0], (kind, errors)
        assert residuals[2] < residuals[1] < residuals[0], (kind, residuals)
