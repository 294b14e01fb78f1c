"""Rules inside the networks of diffusers: the same as a processor of their own would do, and nothing left behind."""

import pytest
import torch

from retrace.attention import AttentionPlan, Layers, Mask, Rule, Settings, Take, Term, Window, get_preset
from retrace.attention.timing import place
from retrace.backends.diffusers_attention import (
    PRESET_LAYERS,
    Attention,
    Prompts,
    attended_denoiser,
    preset_plan,
    slots_of,
)
from retrace.inversion import Denoiser, relative_error, replay
from retrace_tests.attention.official import own_layers
from retrace_tests.backends import tiny

FAMILIES = ("sd15", "sdxl", "sd3", "flux")


def plan(names="kv", window=(0.0, 1.0), group="image", kinds=("self", "joint"), layers="all", **changes):
    term = Term(**{name: Take() for name in names})
    rule = Rule("test", (term,), Layers.parse(layers), kinds, Window(*window), group=group, **changes)
    return AttentionPlan((rule,))


def edit(model, record, made, source, target, uncond=None, cfg=1.0):
    denoiser = attended_denoiser(model, record, made, Prompts(source, target, uncond, cfg))
    return replay(record, denoiser, denoiser)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_sites_are_named_as_in_the_host():
    found = {(s.stack, s.index, s.kind): s for s in slots_of(tiny.unet()).values()}
    # One residual block a level: convolution, level 0, its downsampler, level 1.
    blocks = [("input", 3, 1), ("middle", 0, 1), ("output", 0, 1), ("output", 1, 1)]
    assert [(s.stack, s.index, s.halved) for s in found.values() if s.kind == "self"] == blocks
    assert [(s.number, s.depth) for s in found.values() if s.kind == "cross"] == [(i, i / 3) for i in range(4)]
    assert [(s.stack, s.index) for s in slots_of(tiny.sd3()).values()] == [("block", 0), ("block", 1)]
    assert [(s.stack, s.index) for s in slots_of(tiny.flux()).values()] == [("double", 0), ("single", 0)]


def test_every_key_and_value_of_the_source_gives_the_source(family):
    """With the same latent and the same pooled text, k and v of all tokens and sites leave nothing of the target."""
    model = tiny.model(family)
    source, other = tiny.cond(rows=2), tiny.cond(1, rows=2)
    target = type(source)(other.tokens, source.pooled)
    x, sigma = tiny.latent(), 0.7
    everything = plan(group="all", kinds=("self", "cross", "joint"))
    attention = Attention(model.network, everything, (8, 12))
    step = place((1.0, 0.7, 0.0), sigma)
    with torch.inference_mode():
        wanted = model.denoiser(x, source)(x, sigma)
        found = []
        for branch, cond in (("source", source), ("target", target)):
            with attention.forward(branch, "cond", 2, step):
                found.append(model.denoiser(x, cond)(x, sigma))
        free = model.denoiser(x, target)(x, sigma)
    assert torch.equal(found[0], wanted), "the source must not change"
    assert relative_error(found[1], wanted) < 1e-6 < 1e-4 < relative_error(free, wanted)


@pytest.mark.parametrize(("names", "cfg"), [("v", 1.0), ("qk", 3.0), ("kv", 3.0)])
def test_a_swap_is_what_projections_of_the_source_give(family, names, cfg):
    """The same edit with the projections of the image's tokens overwritten by those of the source."""
    model = tiny.model(family)
    source, target, uncond = tiny.cond(rows=2), tiny.cond(1, rows=2), tiny.cond(2, rows=2)
    with torch.inference_mode():
        record = tiny.inverted(model, source)
        found = edit(model, record, plan(names, (0.0, 0.5)), source, target, uncond, cfg)
        wanted = by_projections(model, record, names, source, target, uncond, cfg)
        plain = model.denoiser(record.x0, target, uncond, cfg)
        free = replay(record, plain, plain)
    assert relative_error(found, wanted) < 1e-5 < 1e-4 < relative_error(free, wanted)


def by_projections(model, record, names, source, target, uncond, cfg):
    """Hooks on to_q, to_k and to_v, which make the operands of the image in every family."""
    kept, mode = {}, ["off"]

    def hook(key):
        def after(module, inputs, out):
            if mode[0] == "keep":
                kept[key] = out
            if mode[0] != "read":
                return out
            if model.name == "flux" and key[0] == "single":
                # Text and image stand in one sequence there.
                return torch.cat([out[:, :5], kept[key][:, 5:]], 1)
            return kept[key]

        return after

    hooks = [
        getattr(module, f"to_{name}").register_forward_hook(hook((slot.stack, slot.index, slot.kind, slot.inner, name)))
        for module, slot in slots_of(model.network).items()
        if slot.kind != "cross"
        for name in names
    ]
    denoisers = [model.denoiser(record.x0, cond) for cond in (source, target, uncond)]

    def denoise(x, sigma):
        reads = place(record.falling, sigma).fraction < 0.5
        if reads:
            mode[0] = "keep"
            denoisers[0](record.state_at(sigma), sigma)
            mode[0] = "read"
        answer, base = denoisers[1](x, sigma), denoisers[2](x, sigma)
        mode[0] = "off"
        return answer if cfg == 1.0 else base + cfg * (answer - base)

    try:
        denoiser = Denoiser(denoise, model.space, model.denoiser(record.x0, source).sigma_floor)
        return replay(record, denoiser, denoiser)
    finally:
        for each in hooks:
            each.remove()


def test_nothing_is_left_on_the_network(family):
    model = tiny.model(family)
    before = dict(model.network.attn_processors)
    source, target = tiny.cond(rows=2), tiny.cond(1, rows=2)
    with torch.inference_mode():
        record = tiny.inverted(model, source)
        plain = model.denoiser(record.x0, target)
        wanted = replay(record, plain, plain)
        edit(model, record, plan(), source, target)
        with pytest.raises(ValueError, match=r"layers of test must match"):
            edit(model, record, plan(layers="double:90"), source, target)
        again = replay(record, plain, plain)
        empty = edit(model, record, plan(window=(0.0, 0.0)), source, target)
    assert torch.equal(again, wanted) and torch.equal(empty, wanted)
    assert dict(model.network.attn_processors) == before
    for module in model.network.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_an_exception_leaves_nothing():
    model = tiny.model("sd3")
    attention = Attention(model.network, plan(), (8, 12))
    with pytest.raises(RuntimeError, match="planted"), attention.forward("source", "cond", 1, place((1.0, 0.0), 1.0)):
        raise RuntimeError("planted")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())
    torch.nn.functional.scaled_dot_product_attention(*(torch.ones(1, 1, 2, 4) for _ in range(3)))


@pytest.mark.parametrize("name", ["masactrl", "structure", "rf_edit", "kv_edit", "reference"])
def test_presets_run(family, name):
    model = tiny.model(family)
    source, target, uncond = tiny.cond(rows=2), tiny.cond(1, rows=2), tiny.cond(2, rows=2)
    mask = torch.zeros(1, 8, 12)
    mask[:, :4, :4] = 1.0
    made = preset_plan(name, Settings(layers="all", mask=Mask(mask)), model.network)
    with torch.inference_mode():
        record = tiny.inverted(model, source)
        plain = model.denoiser(record.x0, target, uncond, 2.0)
        found = edit(model, record, made, source, target, uncond, 2.0)
        assert bool(found.isfinite().all())
        assert relative_error(found, replay(record, plain, plain)) > 1e-5


def test_a_plan_with_features_is_refused():
    with pytest.raises(ValueError, match="run it in ComfyUI"):
        Attention(tiny.unet(), get_preset("pnp").build(Settings(), "sd15"), (8, 12))


def test_families_give_presets_the_layers_that_they_give_in_comfyui():
    theirs = own_layers()
    assert {family: theirs[family] for family in FAMILIES if family in theirs} == PRESET_LAYERS
