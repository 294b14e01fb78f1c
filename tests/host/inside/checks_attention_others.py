"""Rules beside what other packs do to a model, and what is left when a run ends early."""

import logging

import comfy.controlnet
import comfy.hooks
import comfy.model_management
import nodes
import tiny_dits
import torch
from attending import edited, inverted, plan, resampled, target_of
from comfy.patcher_extension import WrappersMP
from helpers import Counter, no_interrupt, refuses, relative, same_snapshot, snapshot

ROUNDING = 2e-5


class _Seen:
    """An attention override of another pack: counts its calls and may change them."""

    def __init__(self, factor=1.0, previous=None):
        self.calls = 0
        self.factor = factor
        self.previous = previous

    def __deepcopy__(self, memo):
        return self

    def __call__(self, func, *args, **kwargs):
        self.calls += 1
        found = func(*args, **kwargs) if self.previous is None else self.previous(func, *args, **kwargs)
        if self.factor == 1.0:
            return found
        # Not the same for all channels, which a norm behind the attention would take away.
        return found * torch.linspace(self.factor, 1.0, found.shape[-1])


class _Failing(_Seen):
    """Another pack's override that breaks in the midst of a forward."""

    def __init__(self, calls):
        super().__init__()
        self.last = calls

    def __call__(self, func, *args, **kwargs):
        if self.calls == self.last:
            raise RuntimeError("planted")
        return super().__call__(func, *args, **kwargs)


def _with_override(model, override):
    changed = model.clone()
    changed.model_options["transformer_options"]["optimized_attention_override"] = override
    return changed


def check_an_override_from_before_is_called(pack):
    """What another pack put into the slot is called for every call of the host, and does what it does."""
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind)
        rules = plan(pack)
        wanted = resampled(pack, model, linked, kind, rules)
        seen = _Seen()
        found = resampled(pack, _with_override(model, seen), linked, kind, rules)
        assert torch.equal(found, wanted) and seen.calls > 0, kind
        other = _Seen(0.5)
        halved = resampled(pack, _with_override(model, other), linked, kind, rules)
        assert relative(halved, wanted) > 1e-4, kind


_SLOT = "optimized_attention_override"


def check_an_override_from_behind(pack):
    """A pack that sets the slot inside the forward and chains what is there changes nothing; one that drops it is
    reported, since no rule acts."""
    for kind in tiny_dits.KINDS:
        if kind in ("sd3", "sd35"):
            continue  # the host lets nothing stand around their network
        model, linked = inverted(pack, kind)
        rules = plan(pack)
        wanted = resampled(pack, model, linked, kind, rules)
        for chains in (True, False):
            seen = []

            def wrap(executor, *args, chains=chains, seen=seen, **kwargs):
                # Some networks take the options by position, some by name.
                named = dict(enumerate(args)) | kwargs
                place = next(key for key, value in named.items() if isinstance(value, dict) and _SLOT in value)
                seen.append(_Seen(previous=named[place][_SLOT] if chains else None))
                named[place] = {**named[place], _SLOT: seen[-1]}
                args = [named.pop(key) for key in range(len(args))]
                return executor(*args, **named)

            late = model.clone()
            late.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "late", wrap)
            if chains:
                assert torch.equal(resampled(pack, late, linked, kind, rules), wanted), kind
                assert seen and seen[0].calls > 0
            else:
                refuses(
                    lambda m=late, k=kind, b=linked, r=rules: resampled(pack, m, b, k, r),
                    "layers of test must match", "no attention that passes through",
                )  # fmt: skip


def check_a_replaced_site_is_told(pack):
    """A foreign attn2 replacement keeps its site and is still called; the log says so once, and other rules act."""
    model, linked = inverted(pack, "sd15")
    called = []

    def replacement(q, k, v, extra):
        called.append(extra["block"])
        return comfy_attention(q, k, v, extra["n_heads"])

    from comfy.ldm.modules.attention import optimized_attention as comfy_attention

    other = model.clone()
    other.set_model_attn2_replace(replacement, "middle", 0)
    other.set_model_attn2_replace(replacement, "output", 0)
    lines = []

    class Listener(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logging.getLogger().addHandler(listener)
    try:
        rules = plan(pack, kinds=("self", "cross"), group="all")
        found = resampled(pack, other, linked, "sd15", rules)
    finally:
        logging.getLogger().removeHandler(listener)
    told = [line for line in lines if "another pack has replaced the attention of 2 sites" in line]
    assert len(told) == 1 and "middle:0 (cross)" in told[0], lines
    assert called and relative(found, resampled(pack, other, linked, "sd15", None)) > 1e-4


def check_other_block_patches_are_called(pack):
    """A pack's own replacement of a transformer block runs inside ours."""
    for kind in tiny_dits.DITS:
        if kind in ("lumina", "zimage"):
            continue  # the host lets no block of theirs be replaced
        model, linked = inverted(pack, kind)
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
        assert len(called) >= 2 * count > 0 and relative(found, plain) > 1e-4, kind
        assert relative(found, resampled(pack, model, linked, kind, plan(pack))) > 1e-4, kind


class _Control(comfy.controlnet.ControlBase):
    """A ControlNet that adds to the middle of a UNet."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def get_control(self, x, t, cond, batched, options=None):
        middle = torch.full((x.shape[0], 64, x.shape[2] // 2, x.shape[3] // 2), self.weight)
        return {"middle": [middle], "output": [], "input": []}

    def copy(self):
        return self


def check_controlnet_and_areas(pack):
    """With a ControlNet, or several prompts for parts of the picture, branches run one after the other; rules act."""
    kind = "sd15"
    model, linked = inverted(pack, kind, batch=2)
    controlled = [[target_of(kind)[0][0], {"control": _Control(0.3), "control_apply_to_uncond": True}]]
    left, right = (
        [target_of(kind, seed)[0][0], {"area": (4, 3, 0, side), "strength": 1.0, "set_area_to_bounds": False}]
        for seed, side in ((9, 0), (11, 3))
    )
    whole = target_of(kind)[0]
    for target in (controlled, [whole, target_of(kind, 11)[0]], [left, right], [left, whole]):
        for cfg in (1.0, 3.0):
            plain = resampled(pack, model, linked, kind, None, cfg, target)
            found = resampled(pack, model, linked, kind, plan(pack), cfg, target)
            assert relative(found, plain) > 1e-4 and torch.isfinite(found).all()
    # The part of the target that lies where the source's prompt stands alone reads the same part of the source.
    prompts = [[linked.source[0][0], part[1]] for part in (left, right)]
    free = plan(pack, "kv", source="free", kinds=("self", "cross"), group="all")
    found = resampled(pack, model, linked, kind, free, 1.0, [left, right])
    wanted = resampled(pack, model, linked, kind, free, 1.0, prompts)
    assert relative(found, wanted) < ROUNDING, relative(found, wanted)


class _Residuals(_Control):
    """A ControlNet that adds to the image tokens of each block of a transformer."""

    def get_control(self, x, t, cond, batched, options=None):
        side = 64 * 2 if self.kind.startswith("sd3") else {"qwen": 48}.get(self.kind, 32)
        tokens = (x.shape[-2] // 2) * (x.shape[-1] // 2)
        # Norms take away what is the same in every channel.
        channels = self.weight * torch.randn(side, generator=torch.Generator().manual_seed(2))
        added = [channels.expand(x.shape[0], tokens, side) for _ in range(2)]
        return {"input": added, "output": [] if self.kind == "qwen" else added, "middle": []}


def check_controlnets(pack):
    """The stock node's ControlNet on UNets and residuals on transformers: rules act beside it, and it beside them."""
    for kind in (*tiny_dits.UNETS, "sd3", "sd35", "flux", "chroma", "qwen"):
        model, linked = inverted(pack, kind, batch=2)
        target = target_of(kind)
        if kind in tiny_dits.UNETS:
            image = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(1))
            apply = nodes.ControlNetApplyAdvanced().apply_controlnet
            controlled = apply(target, target, pack.tiny.control_net(kind), image, 0.5, 0.0, 1.0)[0]
        else:
            control = _Residuals(0.3)
            control.kind = kind
            controlled = [[target[0][0], {**target[0][1], "control": control, "control_apply_to_uncond": True}]]
        before = snapshot(model)
        for cfg in (1.0, 3.0):
            found = resampled(pack, model, linked, kind, plan(pack), cfg, controlled)
            assert torch.isfinite(found).all()
            assert relative(found, resampled(pack, model, linked, kind, None, cfg, controlled)) > 1e-4, (kind, cfg)
            assert relative(found, resampled(pack, model, linked, kind, plan(pack), cfg, target)) > 1e-4, (kind, cfg)
            # It belongs to the target alone, which no forward of both could tell.
            one, two = (edited(pack, model, linked, kind, plan(pack), way, cfg, controlled) for way in (True, False))
            assert relative(one, two) < ROUNDING, (kind, cfg, relative(one, two))
        same_snapshot(model, before)


def check_lora_hooks(pack):
    """Weights that a hook changes for the target alone: the branches run one after the other, and nothing stays."""
    for kind in ("sd15", "flux", "wan"):
        model, linked = inverted(pack, kind)
        before = snapshot(model)
        weights = comfy.hooks.get_patch_weights_from_model(tiny_dits.model(kind, seed=1))
        hooks = comfy.hooks.create_hook_model_as_lora(weights, None, 0.3, 0.0)
        target = target_of(kind)
        hooked = [[target[0][0], {**target[0][1], "hooks": hooks}]]
        for cfg in (1.0, 3.0):
            found = resampled(pack, model, linked, kind, plan(pack), cfg, hooked)
            assert torch.isfinite(found).all()
            assert relative(found, resampled(pack, model, linked, kind, None, cfg, hooked)) > 1e-4, (kind, cfg)
            assert relative(found, resampled(pack, model, linked, kind, plan(pack), cfg, target)) > 1e-4, (kind, cfg)
            one, two = (edited(pack, model, linked, kind, plan(pack), way, cfg, hooked) for way in (True, False))
            assert relative(one, two) < ROUNDING, (kind, cfg, relative(one, two))
            # The source has no hook: a plan that takes nothing from it leaves the hooked edit as it is.
            empty = resampled(pack, model, linked, kind, plan(pack, strength=0.0), cfg, hooked)
            assert torch.equal(empty, resampled(pack, model, linked, kind, None, cfg, hooked)), (kind, cfg)
        same_snapshot(model, before)


def check_loras(pack):
    """Weights that a LoRA changes are the branches' weights."""
    values = ("qkv.weight", "to_v.weight", "attn.v.weight", "w2v.weight")
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind)
        name = next(key for key in model.model.state_dict() if key.endswith(values))
        weight = model.model.state_dict()[name]
        patched = model.clone()
        patched.add_patches({name: (torch.full_like(weight, 0.05),)}, 1.0)
        rules = plan(pack)
        assert relative(
            resampled(pack, patched, linked, kind, rules), resampled(pack, model, linked, kind, rules)
        ) > 1e-5, kind  # fmt: skip


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
        original = comfy.model_management.get_free_memory
        comfy.model_management.get_free_memory = lambda *args, **kwargs: 1 if not args[1:] and not kwargs else (1, 1)
        try:
            full = resampled(pack, counted, linked, kind, plan(pack), 3.0)
        finally:
            comfy.model_management.get_free_memory = original
        assert max(together) == 4 and max(rows) == 2, (kind, together, rows)
        assert relative(full, roomy) < ROUNDING, kind


def _hooks(model):
    return [module for module in model.model.diffusion_model.modules() if module._forward_hooks]


def check_features(pack):
    """The residual feature of one UNet block is taken for the rows of the target, in one forward as in two."""
    attention = pack.module("attention")
    for kind in tiny_dits.UNETS:
        model, linked = inverted(pack, kind, batch=2)
        feature = attention.FeatureRule("feature", "output", 1)
        for serves in ("shared", "both"):
            rules = attention.AttentionPlan(features=(feature,), source_for=serves)
            one = edited(pack, model, linked, kind, rules, True, 3.0)
            two = edited(pack, model, linked, kind, rules, False, 3.0)
            none = edited(pack, model, linked, kind, attention.AttentionPlan(), True, 3.0)
            assert relative(one, two) < ROUNDING and relative(one, none) > 1e-4, kind
        assert not _hooks(model)
        lost = attention.AttentionPlan(features=(attention.FeatureRule("feature", "output", 99),))
        refuses(
            lambda m=model, b=linked, k=kind, r=lost: resampled(pack, m, b, k, r),
            "output:99 on a model",
        )
    model, linked = inverted(pack, "flux")
    rules = attention.AttentionPlan(features=(feature,))
    refuses(lambda: resampled(pack, model, linked, "flux", rules), "must be a UNet", "got Flux")


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
        counter = Counter(model, interrupt_after=2)
        with no_interrupt():
            try:
                resampled(pack, counter.model, linked, kind, rules, 3.0)
            except comfy.model_management.InterruptProcessingException:
                pass
            else:
                raise AssertionError("the interrupt was swallowed")
        try:
            resampled(pack, _with_override(model, _Failing(calls=3)), linked, kind, rules, 3.0)
        except RuntimeError as error:
            assert "planted" in str(error)
        else:
            raise AssertionError("the error was swallowed")
        assert not _hooks(model)
        same_snapshot(model, before)
        assert torch.equal(resampled(pack, model, linked, kind, rules, 3.0), wanted), kind


def check_refusals(pack):
    """Each misfit in one sentence, and the model still inverts."""
    guiders, attention = pack.module("nodes.attending.branches"), pack.module("attention")
    model, linked = inverted(pack, "sd15")
    refuses(lambda: resampled(pack, model, linked, "sd15", plan(pack, layers="output:40-50")), "layers", "output:40-50")
    compiled = model.clone()
    compiled.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *args, **kwargs: executor(*args, **kwargs)
    )
    refuses(lambda: resampled(pack, compiled, linked, "sd15", plan(pack)), "must not be compiled")
    resampled(pack, compiled, linked, "sd15", None)

    class Strange(type(model.model.diffusion_model)):
        pass

    strange = tiny_dits.model("sd15")
    strange.model.diffusion_model.__class__ = Strange
    _, inversion = inverted(pack, "sd15", model=strange)
    refuses(lambda: resampled(pack, strange, inversion, "sd15", plan(pack)), "got Strange", "leave attention out")
    other = attention.AttentionPlan(rules=plan(pack).rules, branches=("mutual",))
    refuses(lambda: resampled(pack, model, linked, "sd15", other), "got a plan with mutual")
    cond = target_of("sd15")
    turn = attention.Term(k=attention.Take("mutual"))
    back = attention.Term(k=attention.Take("target"))
    cyclic = attention.AttentionPlan(
        rules=(attention.Rule("one", (turn,)), attention.Rule("two", (back,), branch="mutual")), branches=("mutual",)
    )
    branches = {name: guiders.Branch(cond) for name in ("source", "target", "mutual")}

    class Once:
        def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, mask=None, pbar=False):
            return guider(noise, torch.full((noise.shape[0],), 1.0), **extra_args)

        def max_denoise(self, *args):
            return False

    latent = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    for together, fits in ((True, True), (False, False)):
        guider = guiders.BranchGuider(model, branches, cyclic, together)

        def run(guider=guider):
            with torch.inference_mode():
                return guider.sample(latent, latent, Once(), torch.tensor([1.0, 0.0]), seed=0)

        if fits:
            assert torch.isfinite(run()).all()
        else:
            refuses(run, "branches that read from each other must share one forward")
    guided = model.clone()
    guided.model_options["sampler_calc_cond_batch_function"] = lambda args: []
    refuses(lambda: resampled(pack, guided, linked, "sd15", plan(pack)), "sampler_calc_cond_batch_function")
