"""Rules inside the host's models: what they do to the rows that they are for, and to nothing else."""

import tiny_dits
import torch
from helpers import invert, refuses, relative, same_snapshot, snapshot


def _plan(pack, names="kv", layers="all", window=(0.0, 1.0), kinds=("self", "joint"), group="image", **changes):
    """Take some operands from the source."""
    attention = pack.module("attention")
    operands = {name: attention.Take() for name in names}
    rule = attention.Rule(
        "test",
        (attention.Term(**operands),),
        layers=attention.Layers.parse(layers),
        kinds=kinds,
        window=attention.Window(*window),
        group=group,
        **{key: changes.pop(key) for key in ("strength", "mask", "chunks") if key in changes},
    )
    return attention.AttentionPlan(rules=(rule,), **changes)


def _inverted(pack, kind, batch=1, **changes):
    model = tiny_dits.model(kind)
    latent = changes.pop("latent", None) or tiny_dits.latent(kind, batch=batch)
    return invert_with(pack, kind, model, latent, **changes)


def invert_with(pack, kind, model, latent, **changes):
    inputs = {
        "model": model,
        "source": tiny_dits.conditioning(kind),
        "latent": latent,
        "steps": 4,
        "scheduler": "simple",
        "method": "euler",
        "cfg": 1.0,
        "strength": 1.0,
        "keep_path": True,
        **changes,
    }
    (bundle, *_) = pack.call("Invert", **inputs)
    return model, bundle


def _resampled(pack, model, bundle, plan, cfg=1.0, seed=9, tokens=None, kind=None, **changes):
    inputs = {
        "model": model,
        "inversion": bundle,
        "cfg": cfg,
        "positive": tiny_dits.conditioning(kind, seed=seed, tokens=tokens),
        **changes,
    }
    if cfg != 1.0:
        inputs["negative"] = tiny_dits.conditioning(kind, seed=3)
    (out,) = pack.call("Resample", attention=plan, **inputs)
    return out["samples"]


def check_rules_act_on_every_architecture(pack):
    """Keys and values of the source change the edit, and an edit with the source's own prompt stays the source."""
    for kind in tiny_dits.KINDS:
        model, bundle = _inverted(pack, kind, batch=2)
        before = snapshot(model)
        plain = _resampled(pack, model, bundle, None, kind=kind)
        edited = _resampled(pack, model, bundle, _plan(pack), kind=kind)
        assert torch.isfinite(edited).all() and relative(edited, plain) > 1e-4, (kind, relative(edited, plain))
        same_snapshot(model, before)
