"""Rules beside what other packs do to a model, and what is left when a run ends early."""

from unittest import mock

import comfy.controlnet
import comfy.hooks
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.samplers
import tiny_dits
import torch
from attending import ROUNDING, edited, forwards, inverted, plan, resampled, resolver, target_of
from comfy.patcher_extension import WrappersMP
from helpers import around, interrupted, logged, refuses, relative, same_snapshot, snapshot
from running import controlled

SEEN = 1e-4
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


def _late(model, chains, overrides):
    """A MODEL whose forwards set the slot again, and chain what is there or drop it."""

    def wrap(executor, *args, **kwargs):
        # Some networks take the options by position, some by name.
        named = dict(enumerate(args)) | kwargs
        place = next(key for key, value in named.items() if isinstance(value, dict) and _SLOT in value)
        overrides.append(_Override(previous=named[place][_SLOT] if chains else None))
        named[place] = {**named[place], _SLOT: overrides[-1]}
        args = [named.pop(key) for key in range(len(args))]
        return executor(*args, **named)

    late = model.clone()
    late.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "late", wrap)
    return late


def check_overrides_of_other_packs(pack):
    """What another pack put into the slot is called for every call of the host, and does what it does."""
    # A pack that sets the slot inside the forward and chains what is there changes nothing; one that drops it is
    # reported, since no rule acts.
    for kind in tiny_dits.KINDS:
        model, inversion = inverted(pack, kind)

        def of(changed, kind=kind, inversion=inversion):
            return resampled(pack, changed, inversion, kind, plan(pack))

        wanted, counts = of(model), _Override()
        assert torch.equal(of(_with_override(model, counts)), wanted), kind
        assert counts.calls > 0 and relative(of(_with_override(model, _Override(0.5))), wanted) > SEEN, kind
        if tiny_dits.TINY[kind].wrapped:
            overrides = []
            assert torch.equal(of(_late(model, True, overrides)), wanted) and overrides[0].calls > 0, kind
            said = ("layers of test must match", "no attention that passes through")
            refuses(lambda m=model, o=of: o(_late(m, False, [])), *said)


def check_a_replaced_site_is_told(pack):
    """A foreign attn2 replacement keeps its site and is still called; the log says so once, and other rules act."""
    model, inversion = inverted(pack, "sd15")
    called = []

    def replacement(q, k, v, extra):
        called.append(extra["block"])
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, extra["n_heads"])

    other = model.clone()
    other.set_model_attn2_replace(replacement, "middle", 0)
    other.set_model_attn2_replace(replacement, "output", 0)
    with logged() as records:
        rules = plan(pack, kinds=("self", "cross"), group="all")
        acting = resampled(pack, other, inversion, "sd15", rules)
    lines = [each.getMessage() for each in records]
    told = [line for line in lines if "another pack has replaced the attention of 2 sites" in line]
    assert len(told) == 1 and "middle:0 (cross)" in told[0], lines
    assert called and relative(acting, resampled(pack, other, inversion, "sd15", None)) > SEEN


def check_other_block_patches_are_called(pack):
    """A pack's own replacement of a transformer block runs inside ours."""
    for kind in tiny_dits.DITS:
        model, inversion = inverted(pack, kind)
        if "patches_replace" not in resolver(pack, model).mark({}):
            continue  # the host lets no block of these be replaced
        called = []

        def block(args, extra, called=called):
            called.append(1)
            out = extra["original_block"](args)
            return {**out, "img": out["img"] * 0.5}

        other = model.clone()
        other.set_model_patch_replace(block, "dit", "double_block", 0)
        plain, count = resampled(pack, other, inversion, kind, None), len(called)
        acting = resampled(pack, other, inversion, kind, plan(pack))
        assert len(called) >= 2 * count > 0 and relative(acting, plain) > SEEN, kind
        assert relative(acting, resampled(pack, model, inversion, kind, plan(pack))) > SEEN, kind


class _Control(comfy.controlnet.ControlBase):
    """A ControlNet that adds to the picture's tokens in each block of a transformer."""

    def __init__(self, channels, knows):
        super().__init__()
        self.channels, self.knows = channels, knows

    def get_control(self, x, t, cond, batched, options=None):
        _, rows, columns = self.knows.grid_of(self.knows.slots[0], x.shape)
        # Norms take away what is the same in every channel.
        channels = 0.3 * torch.randn(self.channels, generator=torch.Generator().manual_seed(2))
        added = [channels.expand(x.shape[0], rows * columns, self.channels) for _ in range(2)]
        return {"input": added, "output": added, "middle": []}

    def copy(self):
        return self


def _acts_beside(pack, kind, model, inversion, changed, scales=(1.0, 3.0)):
    """Rules act beside something that the target alone carries, and it beside them, in one forward as in two."""
    before = snapshot(model)
    for cfg in scales:
        acting, unruled, unchanged = (
            resampled(pack, model, inversion, kind, rules, cfg, target)
            for rules, target in ((plan(pack), changed), (None, changed), (plan(pack), None))
        )
        assert torch.isfinite(acting).all()
        assert relative(acting, unruled) > SEEN and relative(acting, unchanged) > SEEN, (kind, cfg)
        one, two = (edited(pack, model, inversion, kind, plan(pack), way, cfg, changed) for way in (True, False))
        assert relative(one, two) < ROUNDING, (kind, cfg, relative(one, two))
    same_snapshot(model, before)


def check_controlnets_and_hooks(pack):
    """The stock node's ControlNet on UNets, residuals on transformers, and weights that a hook changes."""
    # With a hook of the target alone the branches run one after the other, and nothing stays.
    for kind in tiny_dits.KINDS:
        model, inversion = inverted(pack, kind, batch=2)
        target, channels = target_of(kind), tiny_dits.TINY[kind].residual
        if kind in tiny_dits.UNETS:
            _acts_beside(pack, kind, model, inversion, controlled(pack, kind, (target,))[0][0])
        elif channels:
            control = _Control(channels, resolver(pack, model))
            led = _with(target, control=control, control_apply_to_uncond=True)
            _acts_beside(pack, kind, model, inversion, led)
        weights = comfy.hooks.get_patch_weights_from_model(tiny_dits.model(kind, seed=1))
        hooked = _with(target, hooks=comfy.hooks.create_hook_model_as_lora(weights, None, 0.3, 0.0))
        _acts_beside(pack, kind, model, inversion, hooked, scales=(3.0,))
        # The source has no hook: a plan that takes nothing from it leaves the hooked edit as it is.
        rules = (plan(pack, strength=0.0), None)
        assert torch.equal(*(resampled(pack, model, inversion, kind, each, 3.0, hooked) for each in rules)), kind


def check_areas(pack):
    """With several prompts for parts of the picture, branches run one after the other; rules act."""
    kind = "sd15"
    model, inversion = inverted(pack, kind, batch=2)
    (whole,), (other,) = target_of(kind), target_of(kind, 11)
    area = {"strength": 1.0, "set_area_to_bounds": False}
    left, right = ((text, {**area, "area": (4, 3, 0, side)}) for text, side in ((whole[0], 0), (other[0], 3)))
    for target in ([whole, other], [left, right], [left, whole]):
        for cfg in (1.0, 3.0):
            plain, acting = (resampled(pack, model, inversion, kind, each, cfg, target) for each in (None, plan(pack)))
            assert relative(acting, plain) > SEEN and torch.isfinite(acting).all()
    # The part of the target that lies where the source's prompt stands alone reads the same part of the source.
    free = plan(pack, "kv", source="free", kinds=("self", "cross"), group="all")
    own = [[inversion.source[0][0], part[1]] for part in (left, right)]
    error = relative(*(resampled(pack, model, inversion, kind, free, 1.0, each) for each in ([left, right], own)))
    assert error < ROUNDING, error


def check_low_memory_splits(pack):
    """Where the card is full each branch has a forward of its own, with the same result."""
    for kind in tiny_dits.KINDS:
        model, inversion = inverted(pack, kind, batch=2)
        rows = []

        def count(apply_model, args, rows=rows):
            rows.append(args["input"].shape[0])
            return apply_model(args["input"], args["timestep"], **args["c"])

        watched = around(model, count)
        roomy = resampled(pack, watched, inversion, kind, plan(pack), 3.0)
        together, rows[:] = list(rows), []
        with mock.patch.object(comfy.model_management, "get_free_memory", lambda *args: (1, 1) if args[1:] else 1):
            full = resampled(pack, watched, inversion, kind, plan(pack), 3.0)
        assert max(together) == 4 and max(rows) == 2, (kind, together, rows)
        assert relative(full, roomy) < ROUNDING, kind


def _hooks(model):
    return [module for module in model.model.diffusion_model.modules() if module._forward_hooks]


def _of_block(pack, index, **more):
    attention = pack.module("attention")
    return attention.AttentionPlan(features=(attention.FeatureRule("feature", "output", index),), **more)


def check_features(pack):
    """The residual feature of one UNet block is taken for the rows of the target, in one forward as in two."""
    for kind in tiny_dits.UNETS:
        model, inversion = inverted(pack, kind, batch=2)
        none = edited(pack, model, inversion, kind, pack.module("attention").AttentionPlan(), True, 3.0)
        for serves in ("shared", "both"):
            rules = _of_block(pack, 1, source_for=serves)
            one, two = (edited(pack, model, inversion, kind, rules, way, 3.0) for way in (True, False))
            assert relative(one, two) < ROUNDING and relative(one, none) > SEEN, kind
        assert not _hooks(model)
        call = lambda m=model, i=inversion, k=kind: resampled(pack, m, i, k, _of_block(pack, 99))  # noqa: E731
        refuses(call, "output:99 on a model")
    model, inversion = inverted(pack, "flux")
    refuses(lambda: resampled(pack, model, inversion, "flux", _of_block(pack, 1)), "must be a UNet", "got Flux")


def check_nothing_is_left_after_failure_and_interrupt(pack):
    """An error or an interrupt in any call leaves model, options and hooks as they were, and the next run is right."""
    for kind in tiny_dits.KINDS:
        model, inversion = inverted(pack, kind, batch=2)
        rules = plan(pack)
        if kind == "sd15":
            rules = rules.plus(_of_block(pack, 1))

        def run(changed, kind=kind, inversion=inversion, rules=rules):
            return resampled(pack, changed, inversion, kind, rules, 3.0)

        wanted, before = run(model), snapshot(model)
        interrupted(run, model, 2)
        try:
            run(_with_override(model, _Override(last=3)))
        except RuntimeError as error:
            assert "planted" in str(error)
        else:
            raise AssertionError("the error was swallowed")
        assert not _hooks(model)
        same_snapshot(model, before)
        assert torch.equal(run(model), wanted) and torch.equal(run(model.clone()), wanted), kind


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
    once = comfy.samplers.KSAMPLER(lambda net, x, sigmas, extra_args, **_: net(x, sigmas[:1].expand(3), **extra_args))

    def run():
        return guider.sample(latent, latent, once, torch.tensor([1.0, 0.0]), seed=0)

    with torch.inference_mode():
        assert torch.isfinite(run()).all()
        with forwards(pack, False):
            refuses(run, "branches that read from each other must share one forward")
    guided, (_, inversion) = model.clone(), inverted(pack, "sd15", model=model)
    guided.model_options["sampler_calc_cond_batch_function"] = lambda args: []
    refuses(lambda: resampled(pack, guided, inversion, "sd15", plan(pack)), "sampler_calc_cond_batch_function")
