"""What the checks of attention control share: plans, inversions and edits on tiny models of every architecture."""

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
    """Invert on a tiny model; returns (model, bundle)."""
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


def resampled(pack, model, bundle, kind, attention, cfg=1.0, target=None, **changes):
    """Samples of Resample with a plan."""
    inputs = {
        "model": model,
        "inversion": bundle,
        "cfg": cfg,
        "positive": target_of(kind) if target is None else target,
        **changes,
    }
    if cfg != 1.0:
        inputs.setdefault("negative", negative_of(kind))
    return pack.call("Resample", attention=attention, **inputs)[0]["samples"]


def edited(pack, model, bundle, kind, attention, together, cfg=1.0, target=None):
    """The clean states of an edit whose branches share forwards, or never do; source too where it is free."""
    replays, runs = pack.module("nodes.attending.replay"), pack.module("nodes.inverting.runs")
    seen = []

    class Kept(replays.AttendedReplay):
        def sample(self, guider, *args, **kwargs):
            predict = guider.predict_noise

            def watch(x, *more, **named):
                seen.append(x.shape[0])
                return predict(x, *more, **named)

            guider.predict_noise = watch
            try:
                return super().sample(guider, *args, **kwargs)
            finally:
                del guider.predict_noise

    negative = None if cfg == 1.0 else negative_of(kind)
    wanted = target_of(kind) if target is None else target
    guider = replays.replay_guider(model, bundle, wanted, negative, cfg, attention, together)
    sampler = Kept(bundle.record, attention)
    with torch.inference_mode():
        runs.drive(guider, sampler, bundle.samples, bundle.record.falling)
    return sampler.result


def bundle_state(pack, model, bundle):
    """The clean state of a reconstruction in full precision."""
    runs, inversion = pack.module("nodes.inverting.runs"), pack.module("inversion")
    samplers, guiders = pack.module("nodes.inverting.sampling"), pack.module("nodes.host.guider")

    def descend(denoiser, device, on_step):
        return inversion.replay(bundle.record, denoiser, on_step=on_step, device=device)

    sampler = samplers.ScriptedSampler(descend)
    with torch.inference_mode():
        guider = guiders.SteadyGuider(model, bundle.source, None, 1.0)
        runs.drive(guider, sampler, bundle.samples, bundle.record.falling)
    return sampler.result
