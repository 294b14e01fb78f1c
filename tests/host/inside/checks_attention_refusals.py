"""What attention control cannot do, in one sentence at the node where a user meets it; the rest goes on working."""

import tiny_dits
import torch
from attending import injected, inverted, latent_of, negative_of, plan, resampled, target_of
from comfy_api.torch_helpers import set_torch_compile_wrapper
from helpers import refuses, same_snapshot, snapshot
from running import play


def _calls(pack, kind, model, latent=None):
    """Every node that controls the attention of a model, as a call of it; a plan for the others is made elsewhere."""
    source, target, rules = tiny_dits.conditioning(kind), target_of(kind), plan(pack)
    latent = latent_of(kind) if latent is None else latent
    pair, words = {"source": source, "target": target}, {"clip": None, "source_text": "a cat", "target_text": "a dog"}
    for name, inputs in (
        ("AttentionInject", {"preset": "structure"}),
        ("AttentionSites", {}),
        ("AttentionGuider", {**pair, "attention": rules, "negative": negative_of(kind)}),
        ("PromptToPrompt", words),
        ("UnifiedAttentionControl", {**words, "mode": "refine"}),
        ("InfEdit", {**pair, "latent": latent, "attention": rules}),
        ("FlowEdit", {**pair, "latent": latent, "attention": rules}),
        ("RFEdit", {**pair, "latent": latent, "inject": 1}),
        ("VisCtrl", {
            "reference_prompt": source, "target_prompt": target, "reference": latent, "target": latent, "passes": 1,
        }),
    ):  # fmt: skip
        yield name, lambda n=name, i=inputs: pack.call(n, model=model, **i)


def check_architectures_that_cannot_be_measured(pack):
    """A network whose attention the host hands to nobody: every node that runs it names its class, the rest works."""
    # It has no places for fewer than 32 x 32 cells.
    latent = tiny_dits.latent("pixart", size=(32, 40))
    model, inversion = inverted(pack, "pixart", latent=latent)
    before = snapshot(model)
    said = (
        "model must give each patch of the picture one row",
        "got PixArtMS, which does not call the host's attention",
    )
    known = [each.label for each in pack.module("nodes.attending.resolvers").RESOLVERS.values()]
    words = ("attention to words is known", "got PixArtMS", "by AttentionInject", *known)
    for name, call in _calls(pack, "pixart", model, latent):
        if name in ("AttentionInject", "AttentionSites"):
            assert any("measured when it runs" in str(each) for each in call()), name
        elif name == "AttentionGuider":
            call()
        else:
            refuses(call, *(words if name in ("PromptToPrompt", "UnifiedAttentionControl") else said))
    refuses(lambda: resampled(pack, model, inversion, "pixart", plan(pack)), *said)
    refuses(lambda: injected(pack, model, tokens="text"), "tokens must be image or all", "got text for PixArtMS")
    same_snapshot(model, before)
    edited = resampled(pack, model, inversion, "pixart", None)
    assert torch.isfinite(edited).all() and not torch.equal(edited, play(pack, model, inversion))


def check_compiled_models(pack):
    """A MODEL behind the host's TorchCompileModel: every node says what to do."""
    model, inversion = inverted(pack, "flux")
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    said = ("model must not be compiled to control its attention", "connect the MODEL from before that node")
    for _, call in _calls(pack, "flux", compiled):
        refuses(call, *said)
    refuses(lambda: resampled(pack, compiled, inversion, "flux", plan(pack)), *said)
    assert all("_orig_mod" not in name for name in model.model.state_dict())
    network = torch.nn.Module()
    network._orig_mod = torch.nn.Module()  # what torch.compile returns is known by this
    refuses(lambda: pack.module("nodes.attending.resolvers").resolver_for(network), "got one of torch.compile")


def check_plans_of_another_model(pack):
    """Layers that this model has not are told when the edit runs."""
    model, inversion = inverted(pack, "flux")
    rules, _ = injected(pack, tiny_dits.model("wan"), layers="block:0-1", end=0.0)
    said = ("layers of masactrl must match", "'block:0-1' on a model with double:0-1, single:0-1", "Sites lists")
    refuses(lambda: resampled(pack, model, inversion, "flux", rules), *said)
