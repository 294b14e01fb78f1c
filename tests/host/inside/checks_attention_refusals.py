"""What attention control cannot do, in one sentence at the node where a user meets it; the rest goes on working."""

import tiny_dits
import torch
from attending import inverted, negative_of, plan, resampled, target_of
from comfy_api.torch_helpers import set_torch_compile_wrapper
from helpers import refuses, same_snapshot, snapshot

PROMPTS = {"clip": None, "source_text": "a cat", "target_text": "a dog", "weights": "", "layers": ""}


def _calls(pack, kind, model, size=(4, 6)):
    """Every node that controls the attention of a model, as a call of it; a plan for the others is made elsewhere."""
    source, target, negative = tiny_dits.conditioning(kind), target_of(kind), negative_of(kind)
    latent = tiny_dits.latent(kind, size=size, frames=2)
    rules = plan(pack)

    def node(name, **inputs):
        return lambda: pack.call(name, model=model, **inputs)

    both = {"source": source, "target": target, "latent": latent, "steps": 3, "scheduler": "simple"}
    edit = {**both, "source_cfg": 1.0, "target_cfg": 1.0, "seed": 0, "attention": rules}
    return {
        "AttentionInject": node(
            "AttentionInject", preset="structure", variant="preset's own", layers="", start=0.0, end=1.0, strength=1.0,
            source="pinned", source_for="preset's own", tokens="preset's own",
        ),
        "AttentionSites": node("AttentionSites"),
        "AttentionGuider": node(
            "AttentionGuider", source=source, target=target, attention=rules, cfg=1.0, both=False, negative=negative
        ),
        "PromptToPrompt": node(
            "PromptToPrompt", mode="replace", cross_end=0.8, self_end=0.4, schedule="", blend_words="",
            source="pinned", **PROMPTS,
        ),
        "UnifiedAttentionControl": node(
            "UnifiedAttentionControl", cross_end=0.7, self_end=0.3, base="source", mode="refine", target_words="",
            source_words="", target_threshold=0.6, source_threshold=0.6, **PROMPTS,
        ),
        "InfEdit": node("InfEdit", strength=1.0, eta=1.0, **edit),
        "FlowEdit": node("FlowEdit", n_max=3, n_avg=1, n_min=0, **edit),
        "RFEdit": node(
            "RFEdit", method="midpoint", inject=1, cfg=1.0, strength=1.0, features="cache", aligned=False, memory=1.0,
            **both,
        ),
        "VisCtrl": node(
            "VisCtrl", reference_prompt=source, target_prompt=target, reference=latent, target=latent, passes=1,
            steps=3, start_step=0, cfg=1.0, later_steps=2, later_start_step=0, later_cfg=1.0, start_layer=0,
            method="ddim", scheduler="simple", alpha=0.5, seed=0, crop="none",
        ),
    }  # fmt: skip


def check_architectures_that_cannot_be_measured(pack):
    """A network whose attention the host hands to nobody: every node that runs it names its class, the rest works."""
    # It has no places for fewer than 32 x 32 cells.
    model, linked = inverted(pack, "pixart", latent=tiny_dits.latent("pixart", size=(32, 40)))
    before = snapshot(model)
    said = (
        "model must give each patch of the picture one row",
        "got PixArtMS, which does not call the host's attention",
    )
    calls = _calls(pack, "pixart", model, size=(32, 40))
    for name in ("PromptToPrompt", "UnifiedAttentionControl"):
        refuses(calls.pop(name), "attention to words is known", "got PixArtMS", "by AttentionInject")
    for name in ("AttentionInject", "AttentionSites"):
        assert any("measured when it runs" in str(each) for each in calls.pop(name)()), name
    calls.pop("AttentionGuider")()
    for call in calls.values():
        refuses(call, *said)
    refuses(lambda: resampled(pack, model, linked, "pixart", plan(pack)), *said)
    same_snapshot(model, before)
    found = resampled(pack, model, linked, "pixart", None)
    (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
    assert torch.isfinite(found).all() and not torch.equal(found, back["samples"])


def check_compiled_models(pack):
    """A MODEL behind the host's TorchCompileModel: every node says what to do."""
    model, linked = inverted(pack, "flux")
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    said = ("model must not be compiled to control its attention", "connect the MODEL from before that node")
    for call in _calls(pack, "flux", compiled).values():
        refuses(call, *said)
    refuses(lambda: resampled(pack, compiled, linked, "flux", plan(pack)), *said)
    assert all("_orig_mod" not in name for name in model.model.state_dict())


def check_plans_of_another_model(pack):
    """Layers that this model has not, and text tokens of two numbers, are told when the edit runs."""
    model, linked = inverted(pack, "flux")

    def injected(other, **changes):
        own = dict.fromkeys(("variant", "source_for", "tokens"), "preset's own")
        inputs = {**own, "layers": "", "start": 0.0, "end": 1.0, "strength": 1.0, "source": "pinned", **changes}
        return pack.call("AttentionInject", model=other, **inputs)[0]

    rules = injected(tiny_dits.model("wan"), preset="masactrl", layers="block:0-1")
    refuses(
        lambda: resampled(pack, model, linked, "flux", rules),
        "layers of masactrl must match", "'block:0-1' on a model with double:0-1, single:0-1", "AttentionSites lists",
    )  # fmt: skip
    whole = injected(model, preset="rf_edit", layers="all", tokens="all")
    refuses(
        lambda: resampled(pack, model, linked, "flux", whole, target=target_of("flux", tokens=5)),
        "keys and values must be equally many", "prompts of one token length, or the image tokens only",
    )  # fmt: skip
