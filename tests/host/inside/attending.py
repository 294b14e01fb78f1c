"""What the checks of attention control share: plans, prompts, inversions and edits of every architecture."""

import contextlib
import functools
import types

import comfy.sd1_clip
import comfy.text_encoders.flux
import tiny_dits
import torch
from running import encode, play, rendered, shapes

# Rows of one forward and forwards of one row differ by the order of float32 sums.
ROUNDING = 2e-5
SOURCE = "a big red circle on the left of a blue background"
TARGET = "a big green circle on the left of a blue background"
STEPS = 6


def plan(pack, names="kv", layers="all", window=(0.0, 1.0), kinds=("self", "joint"), group="image", **changes):
    """Take some operands from the source."""
    attention = pack.module("attention")
    about = {key: changes.pop(key) for key in ("strength", "mask", "chunks") if key in changes}
    about |= {"layers": attention.Layers.parse(layers), "window": attention.Window(*window)}
    term = attention.Term(**{name: attention.Take() for name in names})
    rule = attention.Rule(changes.pop("name", "test"), (term,), kinds=kinds, group=group, **about)
    return attention.AttentionPlan(rules=(rule,), **changes)


def injected(pack, model, preset="masactrl", **changes):
    """AttentionInject's plan, at all steps and layers where nothing else is said, and its summary."""
    return pack.call("AttentionInject", model=model, preset=preset, **{"layers": "all", "end": 1.0, **changes})


def resolver(pack, model):
    """What knows the attention of a MODEL."""
    return pack.module("nodes.attending.resolvers").resolver_for(model.model.diffusion_model)


def latent_of(kind, batch=1, seed=0, **changes):
    """A small LATENT that is not square; clips have two frames."""
    return tiny_dits.latent(kind, batch, seed, **{"size": (4, 6), "frames": 2, **changes})


def inverted(pack, kind, batch=1, model=None, latent=None, **changes):
    """Invert on a tiny model; returns (model, inversion)."""
    model = tiny_dits.model(kind) if model is None else model
    latent = latent_of(kind, batch) if latent is None else latent
    inputs = {"source": tiny_dits.conditioning(kind), "steps": 2, "method": "euler", "keep_path": True, **changes}
    return model, pack.call("Invert", model=model, latent=latent, **inputs)[0]


def target_of(kind, seed=9, tokens=None):
    """A target that differs from the source in its text alone."""
    made = tiny_dits.conditioning(kind, seed=seed, tokens=tokens)
    extras = dict(tiny_dits.conditioning(kind)[0][1])
    if "attention_mask" in extras:
        extras["attention_mask"] = made[0][1]["attention_mask"]
    return [[made[0][0], extras]]


def negative_of(kind):
    """A negative."""
    return tiny_dits.conditioning(kind, seed=3)


def resampled(pack, model, inversion, kind, attention, cfg=1.0, target=None, **changes):
    """Samples of Resample with a plan."""
    inputs = {"cfg": cfg, "positive": target_of(kind) if target is None else target, **changes}
    if cfg != 1.0:
        inputs.setdefault("negative", negative_of(kind))
    return play(pack, model, inversion, attention=attention, **inputs)


@contextlib.contextmanager
def forwards(pack, together):
    """Branches share forwards where they fit (None), or never do (False)."""
    kind = pack.module("nodes.attending.attended").Attended
    kind.together = together
    try:
        yield
    finally:
        kind.together = None


def edited(pack, model, inversion, kind, attention, together, cfg=1.0, target=None):
    """The clean states of an edit whose branches share forwards, or never do."""
    negative = None if cfg == 1.0 else negative_of(kind)
    wanted = pack.module("nodes.host.session").Branch(target_of(kind) if target is None else target, negative, cfg)
    with forwards(pack, together):
        return states(pack, model, inversion, wanted, attention=attention)[-1]


def states(pack, model, inversion, *target, **changes):
    """The states of a way down in full precision, of a reconstruction without a target."""
    seen = []
    with torch.inference_mode():
        tap = lambda report: seen.append(report.x.clone())  # noqa: E731
        pack.module("nodes.inverting.runs").run_replay(model, inversion, *target, tap=tap, **changes)
    return seen


def by_table(pack, kind, text, length=12):
    """A prompt of a real tokenizer, and a conditioning whose every token has the vector of its id and place."""
    reads_clip = kind in tiny_dits.READS_CLIP
    tokenizer = comfy.sd1_clip.SD1Tokenizer() if reads_clip else comfy.text_encoders.flux.FluxTokenizer()
    name = "l" if reads_clip else "t5xxl"
    rows = {name: [row if reads_clip else row[:length] for row in tokenizer.tokenize_with_weights(text)[name]]}
    length = len(rows[name][0])
    clip = types.SimpleNamespace(tokenizer=tokenizer, cond_stage_model=types.SimpleNamespace())
    prompt = pack.module("nodes.host.prompts").prompt_of(clip, text, rows, length)
    made = tiny_dits.conditioning(kind, tokens=length)
    vectors = [
        torch.randn(made[0][0].shape[-1], generator=torch.Generator().manual_seed(int(entry[0]) + 77 * place))
        for place, entry in enumerate(rows[name][0])
    ]
    return prompt, [[torch.stack(vectors)[None], made[0][1]]]


def prompts(pack, kind="eps", before=SOURCE, after=TARGET, **changes):
    """PromptToPrompt on a demo model."""
    model, clip, _ = shapes(pack, kind)
    inputs = {"model": model, "clip": clip, "source_text": before, "target_text": after, **changes}
    return pack.call("PromptToPrompt", **inputs)


def blended(pack, attention, **changes):
    """LocalBlend's plan."""
    return pack.call("LocalBlend", attention=attention, **changes)[0]


@functools.cache
def pictured(pack, kind, batch=1, method=None):
    """What Invert gives of a picture of the source's words on a demo model, the latent's samples and the true mask."""
    scene, (model, _, vae) = pack.module("demo.world").parse(SOURCE), shapes(pack, kind)
    latent, _, mask = rendered(pack, vae, [scene] * batch, 3)
    eps = kind == "eps"
    given = {"scheduler": "normal" if eps else "simple", "method": method or ("ddim" if eps else "euler")}
    source = prompts(pack, kind)[0]
    outputs = pack.call("Invert", model=model, source=source, latent=latent, keep_path=True, steps=STEPS, **given)
    return outputs, latent["samples"], mask


def repainted(pack, kind, target, attention, cfg=4.0, batch=1, **changes):
    """Samples of an edit of that picture with a plan."""
    model, clip, _ = shapes(pack, kind)
    (inversion, *_), *_ = pictured(pack, kind, batch)
    inputs = {"cfg": cfg, "positive": target, "negative": encode(clip, ""), "attention": attention, **changes}
    return play(pack, model, inversion, **inputs)


def reconstructed_state(pack, model, inversion):
    return states(pack, model, inversion)[-1]
