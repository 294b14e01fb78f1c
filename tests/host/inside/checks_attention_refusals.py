"""What attention control cannot do, in one sentence at the node where a user meets it; the rest goes on working."""

import tiny_dits
import torch
from attending import injected, inverted, latent_of, negative_of, plan, resampled, target_of
from comfy_api.torch_helpers import set_torch_compile_wrapper
from helpers import refuses, same_snapshot, snapshot
from running import play


def _calls(pack, kind, model):
    """Every node that controls the attention of a model, as a call of it; a plan for the others is made elsewhere."""
    source, target, latent, rules = tiny_dits.conditioning(kind), target_of(kind), latent_of(kind), plan(pack)
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
        yield lambda n=name, i=inputs: pack.call(n, model=model, **i)


def check_architectures_without_a_resolver(pack):
    """A network of the host that nothing is known of: every node names its class, and inversion works with it."""
    # It has no places for fewer than 32 x 32 cells.
    model, inversion = inverted(pack, "pixart", latent=tiny_dits.latent("pixart", size=(32, 40)))
    before = snapshot(model)
    known = [each.label for each in pack.module("nodes.attending.resolvers").RESOLVERS.values()]
    said = ("model must be of a kind whose attention is known", "got PixArtMS", "leave attention out", *known)
    for call in _calls(pack, "pixart", model):
        refuses(call, *said)
    refuses(lambda: resampled(pack, model, inversion, "pixart", plan(pack)), *said)
    same_snapshot(model, before)
    edited = resampled(pack, model, inversion, "pixart", None)
    assert torch.isfinite(edited).all() and not torch.equal(edited, play(pack, model, inversion))


def check_compiled_models(pack):
    """A MODEL behind the host's TorchCompileModel: every node says what to do."""
    model, inversion = inverted(pack, "flux")
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    said = ("model must not be compiled to control its attention", "connect the MODEL from before that node")
    for call in _calls(pack, "flux", compiled):
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
