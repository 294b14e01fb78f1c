"""Patches that skip calls of the network are refused by whatever asks it, under the names that they are known by."""

from helpers import STEPS, Counter, refuses

# Names that patches of other packs give themselves, with those of the host.
CACHES = ("EasyCache", "LazyCache", "TeaCache", "ApplyFBCacheOnModel", "FirstBlockCache", "MagCache")


def _invert(pack, model, source, latent, method, **changes):
    """Invert's INVERSION by a method."""
    inputs = {"steps": STEPS, "scheduler": "simple", "cfg": 1.0, "strength": 1.0, **changes}
    return pack.call("Invert", model=model, source=source, latent=latent, method=method, **inputs)[0]


def _back(pack, model, linked, **changes):
    """Resample's samples."""
    return pack.call("Resample", model=model, inversion=linked, **{"cfg": 1.0, **changes})[0]["samples"]


def _inversion_free(pack, node_id, model, source, target, latent, **changes):
    """Samples of InfEdit or FlowEdit."""
    own = {"InfEdit": {"strength": 1.0, "eta": 1.0}, "FlowEdit": {"n_max": STEPS, "n_avg": 1, "n_min": 0}}[node_id]
    inputs = {"steps": STEPS, "scheduler": "simple", "source_cfg": 1.0, "target_cfg": 1.0, "seed": 3, **own, **changes}
    return pack.call(node_id, model=model, source=source, target=target, latent=latent, **inputs)[0]["samples"]


def _npi(pack, model, linked, target):
    """Samples of NegativePromptInversion."""
    inputs = {"cfg": 7.5, "prox": "none", "quantile": 0.75, "pull": 0.0}
    return pack.call("NegativePromptInversion", model=model, inversion=linked, target=target, **inputs)[0]["samples"]


def _fit(pack, model, linked, negative):
    """NullTextOptimize's INVERSION."""
    inputs = {"cfg": 3.0, "inner_steps": 2, "learning_rate": 0.01, "stop": 0.0, "stop_growth": 0.0}
    return pack.call("NullTextOptimize", model=model, inversion=linked, negative=negative, **inputs)[0]


def _optimize(pack, model, linked, reference, positive):
    """NoiseOptimize's INVERSION."""
    inputs = {"cfg": 1.0, "iterations": 2, "learning_rate": 0.02, "pull": 0.1, "norm": "L2"}
    found, *_ = pack.call(
        "NoiseOptimize", model=model, inversion=linked, reference=reference, positive=positive, **inputs
    )
    return found


def _cached(model, name):
    """The MODEL with a function of a pack around its network, which calls it as if nothing were."""

    def unet_wrapper_function(apply_model, args):
        return apply_model(args["input"], args["timestep"], **args["c"])

    unet_wrapper_function.__qualname__ = f"{name}.apply.<locals>.unet_wrapper_function"
    patched = model.clone()
    patched.set_model_unet_function_wrapper(unet_wrapper_function)
    return patched


def check_every_node_refuses_caches(pack):
    """Whatever asks the network refuses patches that skip calls of it, under the names that they are known by."""
    kind = "sd15"
    counter = Counter(pack.tiny.model(kind))
    latent = pack.tiny.latent(kind)
    source, target, negative = (pack.tiny.conditioning(kind, seed) for seed in (0, 9, 5))
    model = pack.tiny.model(kind)
    linked = _invert(pack, model, source, latent, "ddim", keep_path=True)
    shared = {"steps": STEPS, "scheduler": "simple", "cfg": 1.0, "strength": 1.0}
    runs = [
        lambda m, n=node_id: pack.call(n, model=m, source=source, latent=latent, **shared)
        for node_id in (
            "EDICTCouple", "BDIAInvert", "BELMInvert", "FixedPointInvert", "SPDInvert", "DirectInversion",
            "NoiseMapInvert", "RFInversion",
        )
    ]  # fmt: skip
    runs += [
        lambda m: _invert(pack, m, source, latent, "euler"),
        lambda m: _back(pack, m, linked),
        lambda m: _npi(pack, m, linked, target),
        lambda m: _fit(pack, m, linked, negative),
        lambda m: _optimize(pack, m, linked, latent, target),
        lambda m: _inversion_free(pack, "InfEdit", m, source, target, latent),
        lambda m: _inversion_free(pack, "FlowEdit", m, source, target, latent),
        lambda m: pack.call("InversionReport", model=m, inversion=linked),
    ]
    for name in CACHES:
        patched = _cached(counter.model, name)
        for run in runs if name == CACHES[0] else runs[:1]:
            refuses(lambda r=run, m=patched: r(m), "got the cache patch", name)
    assert counter.calls == 0
    # A wrapper that is none of them is let through.
    _back(pack, _cached(model, "Timing"), linked)
