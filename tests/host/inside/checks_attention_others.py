"""Rules beside what other packs do to a model, and what is left when a run ends early."""

import logging
from unittest import mock

import comfy.controlnet
import comfy.hooks
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.samplers
import nodes
import tiny_dits
import torch
from attending import edited, forwards, inverted, plan, resampled, target_of
from comfy.patcher_extension import WrappersMP
from helpers import Counter, no_interrupt, refuses, relative, same_snapshot, snapshot

ROUNDING, SEEN = 2e-5, 1e-4
_SLOT = "optimized_attention_override"


class _Override:
    """An attention override of another pack: counts its calls, and may change them or break in one."""

    def __init__(self, factor=1.0, previous=None, last=None):
        self.calls, self.factor, self.previous, self.last = 0, factor, previous, last

    def __deepcopy__(self, memo):
        return self

    def __call__(self, func, *args, **kwargs):
        if self.calls == self.last:
            raise RuntimeError("planted")
        self.calls += 1
        answer = func(*args, **kwargs) if self.previous is None else self.previous(func, *args, **kwargs)
        # Not the same for all channels, which a norm behind the attention would take away.
        return answer if self.factor == 1.0 else answer * torch.linspace(self.factor, 1.0, answer.shape[-1])


def _with_override(model, override):
    changed = model.clone()
    changed.model_options["transformer_options"][_SLOT] = override
    return changed


def _with(target, **entries):
    """A conditioning with further entries."""
    return [[text, {**extras, **entries}] for text, extras in target]


def check_an_override_from_before_is_called(pack):
    """What another pack put into the slot is called for every call of the host, and does what it does."""
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind)
        wanted = resampled(pack, model, linked, kind, plan(pack))
        counts = _Override()
        assert torch.equal(resampled(pack, _with_override(model, counts), linked, kind, plan(pack)), wanted), kind
        halved = resampled(pack, _with_override(model, _Override(0.5)), linked, kind, plan(pack))
        assert counts.calls > 0 and relative(halved, wanted) > SEEN, kind


def check_an_override_from_behind(pack):
    """A pack that sets the slot inside the forward and chains what is there changes nothing; one that drops it is
    reported, since no rule acts."""
    for kind in tiny_dits.KINDS:
        if not tiny_dits.TINY[kind].wrapped:
            continue
        model, linked = inverted(pack, kind)
        wanted = resampled(pack, model, linked, kind, plan(pack))
        for chains in (True, False):
            overrides = []

            def wrap(executor, *args, chains=chains, overrides=overrides, **kwargs):
                # Some networks take the options by position, some by name.
                named = dict(enumerate(args)) | kwargs
                place = next(key for key, value in named.items() if isinstance(value, dict) and _SLOT in value)
                overrides.append(_Override(previous=named[place][_SLOT] if chains else None))
                named[place] = {**named[place], _SLOT: overrides[-1]}
                args = [named.pop(key) for key in range(len(args))]
                return executor(*args, **named)

            late = model.clone()
            late.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "late", wrap)
            if chains:
                assert torch.equal(resampled(pack, late, linked, kind, plan(pack)), wanted), kind
                assert overrides and overrides[0].calls > 0
            else:
                parts = ("layers of test must match", "no attention that passes through")
                refuses(lambda m=late, k=kind, i=linked: resampled(pack, m, i, k, plan(pack)), *parts)


def check_a_replaced_site_is_told(pack):
    """A foreign attn2 replacement keeps its site and is still called; the log says so once, and other rules act."""
    model, linked = inverted(pack, "sd15")
    called, lines = [], []

    def replacement(q, k, v, extra):
        called.append(extra["block"])
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, extra["n_heads"])

    other = model.clone()
    other.set_model_attn2_replace(replacement, "middle", 0)
    other.set_model_attn2_replace(replacement, "output", 0)
    with mock.patch.object(logging.Logger, "handle", lambda logger, record: lines.append(record.getMessage())):
        found = resampled(pack, other, linked, "sd15", plan(pack, kinds=("self", "cross"), group="all"))
    told = [line for line in lines if "another pack has replaced the attention of 2 sites" in line]
    assert len(told) == 1 and "middle:0 (cross)" in told[0], lines
    assert called and relative(found, resampled(pack, other, linked, "sd15", None)) > SEEN


def check_other_block_patches_are_called(pack):
    """A pack's own replacement of a transformer block runs inside ours."""
    resolver_for = pack.module("nodes.attending.resolvers").resolver_for
    for kind in tiny_dits.DITS:
        model, linked = inverted(pack, kind)
        if "patches_replace" not in resolver_for(model.model.diffusion_model).mark({}):
            continue  # the host lets no block of these be replaced
        called = []

        def block(args, extra, called=called):
            called.append(1)
            out = extra["original_block"](args)
            return {**out, "img": out["img"] * 0.5}

        other = model.clone()
        other.set_model_patch_replace(block, "dit", "double_block", 0)
        plain = resampled(pack, other, linked, kind, None)
        count = len(called)
        found = resampled(pack, other, linked, kind, plan(pack))
        assert len(called) >= 2 * count > 0 and relative(found, plain) > SEEN, kind
        assert relative(found, resampled(pack, model, linked, kind, plan(pack))) > SEEN, kind


class _Control(comfy.controlnet.ControlBase):
    """A ControlNet that adds to the picture's tokens in each block of a transformer."""

    def __init__(self, channels, resolver):
        super().__init__()
        self.channels, self.resolver = channels, resolver

    def get_control(self, x, t, cond, batched, options=None):
        _, rows, columns = self.resolver.grid_of(self.resolver.slots[0], x.shape)
        # Norms take away what is the same in every channel.
        channels = 0.3 * torch.randn(self.channels, generator=torch.Generator().manual_seed(2))
        added = [channels.expand(x.shape[0], rows * columns, self.channels) for _ in range(2)]
        return {"input": added, "output": added, "middle": []}

    def copy(self):
        return self


def _acts_beside(pack, kind, model, linked, changed, scales=(1.0, 3.0)):
    """Rules act beside something that the target alone carries, and it beside them, in one forward as in two."""
    before = snapshot(model)
    for cfg in scales:
        found = resampled(pack, model, linked, kind, plan(pack), cfg, changed)
        assert torch.isfinite(found).all()
        assert relative(found, resampled(pack, model, linked, kind, None, cfg, changed)) > SEEN, (kind, cfg)
        assert relative(found, resampled(pack, model, linked, kind, plan(pack), cfg)) > SEEN, (kind, cfg)
        one, two = (edited(pack, model, linked, kind, plan(pack), way, cfg, changed) for way in (True, False))
        assert relative(one, two) < ROUNDING, (kind, cfg, relative(one, two))
    same_snapshot(model, before)


def check_controlnets(pack):
    """The stock node's ControlNet on UNets and residuals on transformers."""
    for kind, channels in ((kind, tiny_dits.TINY[kind].residual) for kind in tiny_dits.KINDS):
        model, linked = inverted(pack, kind, batch=2)
        target = target_of(kind)
        if kind in tiny_dits.UNETS:
            image = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(1))
            apply = nodes.ControlNetApplyAdvanced().apply_controlnet
            target = apply(target, target, pack.tiny.control_net(kind), image, 0.5, 0.0, 1.0)[0]
        elif channels:
            resolver = pack.module("nodes.attending.resolvers").resolver_for(model.model.diffusion_model)
            target = _with(target, control=_Control(channels, resolver), control_apply_to_uncond=True)
        else:
            continue
        _acts_beside(pack, kind, model, linked, target)


def check_areas(pack):
    """With several prompts for parts of the picture, branches run one after the other; rules act."""
    kind = "sd15"
    model, linked = inverted(pack, kind, batch=2)
    (whole,), (other,) = target_of(kind), target_of(kind, 11)
    area = {"strength": 1.0, "set_area_to_bounds": False}
    left, right = ((text, {**area, "area": (4, 3, 0, side)}) for text, side in ((whole[0], 0), (other[0], 3)))
    for target in ([whole, other], [left, right], [left, whole]):
        for cfg in (1.0, 3.0):
            plain = resampled(pack, model, linked, kind, None, cfg, target)
            found = resampled(pack, model, linked, kind, plan(pack), cfg, target)
            assert relative(found, plain) > SEEN and torch.isfinite(found).all()
    # The part of the target that lies where the source's prompt stands alone reads the same part of the source.
    free = plan(pack, "kv", source="free", kinds=("self", "cross"), group="all")
    prompts = [[linked.source[0][0], part[1]] for part in (left, right)]
    found, wanted = (resampled(pack, model, linked, kind, free, 1.0, each) for each in ([left, right], prompts))
    assert relative(found, wanted) < ROUNDING, relative(found, wanted)


def check_lora_hooks(pack):
    """Weights that a hook changes for the target alone: the branches run one after the other, and nothing stays."""
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind)
        weights = comfy.hooks.get_patch_weights_from_model(tiny_dits.model(kind, seed=1))
        hooked = _with(target_of(kind), hooks=comfy.hooks.create_hook_model_as_lora(weights, None, 0.3, 0.0))
        _acts_beside(pack, kind, model, linked, hooked, scales=(3.0,))
        # The source has no hook: a plan that takes nothing from it leaves the hooked edit as it is.
        rules = (plan(pack, strength=0.0), None)
        assert torch.equal(*(resampled(pack, model, linked, kind, each, 3.0, hooked) for each in rules)), kind


def check_low_memory_splits(pack):
    """Where the card is full each branch has a forward of its own, with the same result."""
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind, batch=2)
        rows = []

        def count(apply_model, args, rows=rows):
            rows.append(args["input"].shape[0])
            return apply_model(args["input"], args["timestep"], **args["c"])

        counted = model.clone()
        counted.set_model_unet_function_wrapper(count)
        roomy = resampled(pack, counted, linked, kind, plan(pack), 3.0)
        together, rows[:] = list(rows), []
        with mock.patch.object(comfy.model_management, "get_free_memory", lambda *args: (1, 1) if args[1:] else 1):
            full = resampled(pack, counted, linked, kind, plan(pack), 3.0)
        assert max(together) == 4 and max(rows) == 2, (kind, together, rows)
        assert relative(full, roomy) < ROUNDING, kind


def _hooks(model):
    return [module for module in model.model.diffusion_model.modules() if module._forward_hooks]


def check_features(pack):
    """The residual feature of one UNet block is taken for the rows of the target, in one forward as in two."""
    attention = pack.module("attention")

    def of_block(index, **more):
        return attention.AttentionPlan(features=(attention.FeatureRule("feature", "output", index),), **more)

    for kind in tiny_dits.UNETS:
        model, linked = inverted(pack, kind, batch=2)
        none = edited(pack, model, linked, kind, attention.AttentionPlan(), True, 3.0)
        for serves in ("shared", "both"):
            rules = of_block(1, source_for=serves)
            one, two = (edited(pack, model, linked, kind, rules, way, 3.0) for way in (True, False))
            assert relative(one, two) < ROUNDING and relative(one, none) > SEEN, kind
        assert not _hooks(model)
        refuses(lambda m=model, i=linked, k=kind: resampled(pack, m, i, k, of_block(99)), "output:99 on a model")
    model, linked = inverted(pack, "flux")
    refuses(lambda: resampled(pack, model, linked, "flux", of_block(1)), "must be a UNet", "got Flux")


def check_nothing_is_left_after_failure_and_interrupt(pack):
    """An error or an interrupt in any call leaves model, options and hooks as they were, and the next run is right."""
    attention = pack.module("attention")
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind)
        rules = plan(pack)
        if kind == "sd15":
            rules = rules.plus(attention.AttentionPlan(features=(attention.FeatureRule("feature", "output", 1),)))
        wanted = resampled(pack, model, linked, kind, rules, 3.0)
        before = snapshot(model)
        interrupted = (Counter(model, interrupt_after=2).model, comfy.model_management.InterruptProcessingException)
        for other, error in (interrupted, (_with_override(model, _Override(last=3)), RuntimeError)):
            with no_interrupt():
                try:
                    resampled(pack, other, linked, kind, rules, 3.0)
                except error as raised:
                    assert error is not RuntimeError or "planted" in str(raised)
                else:
                    raise AssertionError(f"{error} was swallowed")
        assert not _hooks(model)
        same_snapshot(model, before)
        assert torch.equal(resampled(pack, model, linked, kind, rules, 3.0), wanted), kind


def check_refusals(pack):
    """Each misfit in one sentence, and the model still inverts."""
    attention = pack.module("attention")
    model, linked = inverted(pack, "sd15")

    def refused(*parts, model=model, linked=linked, rules=None):
        refuses(lambda: resampled(pack, model, linked, "sd15", plan(pack) if rules is None else rules), *parts)

    refused("layers", "output:40-50", rules=plan(pack, layers="output:40-50"))
    compiled = model.clone()
    compiled.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda go, *args, **more: go(*args, **more))
    refused("must not be compiled", model=compiled)
    resampled(pack, compiled, linked, "sd15", None)
    strange = tiny_dits.model("sd15")
    strange.model.diffusion_model.__class__ = type("Strange", (type(model.model.diffusion_model),), {})
    refused("got Strange", "leave attention out", model=strange, linked=inverted(pack, "sd15", model=strange)[1])
    refused("got a plan with mutual", rules=attention.AttentionPlan(plan(pack).rules, branches=("mutual",)))
    guided = model.clone()
    guided.model_options["sampler_calc_cond_batch_function"] = lambda args: []
    refused("sampler_calc_cond_batch_function", model=guided)


def check_branches_that_read_from_each_other(pack):
    """They run in one forward, and are refused where each needs its own."""
    attention = pack.module("attention")
    take = {name: attention.Term(k=attention.Take(name)) for name in ("mutual", "target")}
    rules = (attention.Rule("one", (take["mutual"],)), attention.Rule("two", (take["target"],), branch="mutual"))
    model, branch = tiny_dits.model("sd15"), pack.module("nodes.host.session").Branch(target_of("sd15"))
    branches = dict.fromkeys(("source", "target", "mutual"), branch)
    cyclic = attention.AttentionPlan(rules, branches=("mutual",))
    guider = pack.module("nodes.attending.attended").attended_guider(model, branches, cyclic)
    latent = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    once = comfy.samplers.KSAMPLER(
        lambda model, x, sigmas, extra_args, **_: model(x, sigmas[:1].expand(3), **extra_args)
    )

    def run():
        return guider.sample(latent, latent, once, torch.tensor([1.0, 0.0]), seed=0)

    with torch.inference_mode():
        assert torch.isfinite(run()).all()
        with forwards(pack, False):
            refuses(run, "branches that read from each other must share one forward")
