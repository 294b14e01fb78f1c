"""What the checks of attention control share: plans, inversions and edits on tiny models of every architecture."""

import contextlib

import tiny_dits
import torch


def plan(pack, names="kv", layers="all", window=(0.0, 1.0), kinds=("self", "joint"), group="image", **changes):
    """Take some operands from the source."""
    attention = pack.module("attention")
    of_rule = ("strength", "mask", "chunks", "name")
    rule = attention.Rule(
        changes.pop("name", "test"),
        (attention.Term(**{name: attention.Take() for name in names}),),
        layers=attention.Layers.parse(layers),
        kinds=kinds,
        window=attention.Window(*window),
        group=group,
        **{key: changes.pop(key) for key in of_rule if key in changes},
    )
    return attention.AttentionPlan(rules=(rule,), **changes)


def inverted(pack, kind, batch=1, model=None, latent=None, **changes):
    """Invert on a tiny model; returns (model, linked)."""
    model = tiny_dits.model(kind) if model is None else model
    inputs = {
        "model": model,
        "source": tiny_dits.conditioning(kind),
        "latent": tiny_dits.latent(kind, batch=batch, size=(4, 6), frames=2) if latent is None else latent,
        "steps": 2,
        "scheduler": "simple",
        "method": "euler",
        "cfg": 1.0,
        "strength": 1.0,
        "keep_path": True,
        **changes,
    }
    return model, pack.call("Invert", **inputs)[0]


def target_of(kind, seed=9, tokens=None):
    """A target that differs from the source in its text alone."""
    made = tiny_dits.conditioning(kind, seed=seed, tokens=tokens)
    source = tiny_dits.conditioning(kind)
    extras = dict(source[0][1])
    if "attention_mask" in extras:
        extras["attention_mask"] = made[0][1]["attention_mask"]
    return [[made[0][0], extras]]


def negative_of(kind):
    """A negative."""
    return tiny_dits.conditioning(kind, seed=3)


def resampled(pack, model, linked, kind, attention, cfg=1.0, target=None, **changes):
    """Samples of Resample with a plan."""
    inputs = {
        "model": model,
        "inversion": linked,
        "cfg": cfg,
        "positive": target_of(kind) if target is None else target,
        **changes,
    }
    if cfg != 1.0:
        inputs.setdefault("negative", negative_of(kind))
    return pack.call("Resample", attention=attention, **inputs)[0]["samples"]


@contextlib.contextmanager
def forwards(pack, together):
    """Branches share forwards where they fit (None), or never do (False)."""
    kind = pack.module("nodes.attending.attended").Attended
    kind.together = together
    try:
        yield
    finally:
        kind.together = None


def edited(pack, model, linked, kind, attention, together, cfg=1.0, target=None):
    """The clean states of an edit whose branches share forwards, or never do."""
    runs, session = pack.module("nodes.inverting.runs"), pack.module("nodes.host.session")
    negative = None if cfg == 1.0 else negative_of(kind)
    wanted = session.Branch(target_of(kind) if target is None else target, negative, cfg)
    states = []
    with torch.inference_mode(), forwards(pack, together):
        runs.run_replay(model, linked, wanted, tap=lambda report: states.append(report.x), attention=attention)
    return states[-1]


def reconstructed_state(pack, model, linked):
    """The clean state of a reconstruction in full precision."""
    states = []
    with torch.inference_mode():
        pack.module("nodes.inverting.runs").run_replay(model, linked, tap=lambda report: states.append(report.x))
    return states[-1]
