"""UnifiedAttentionControl under InfEdit in the host: three branches, their blend, and what it refuses."""

import functools

import attending
import checks_lcm
import torch
from helpers import Counter, refuses, relative, same_snapshot, snapshot
from running import STEPS, decode, encode, rendered, seen, shapes

CAPTION = attending.SOURCE
AFTER = CAPTION.replace("red", "green")


@functools.cache
def _start(pack, kind):
    """Model, CLIP and latent of two pictures of a demo model."""
    model, clip, vae = shapes(pack, kind)
    return model, clip, rendered(pack, vae, [pack.module("demo.world").parse(CAPTION)] * 2, 3)[0]


def _control(pack, model, clip, after=CAPTION, **changes):
    inputs = {"model": model, "clip": clip, "source_text": CAPTION, "target_text": after, **changes}
    return pack.call("UnifiedAttentionControl", **inputs)


def _edit(pack, model, source, target, latent, plan=None, node="InfEdit", **changes):
    inputs = {"source": source, "target": target, "latent": latent, "scheduler": "sgm_uniform", "seed": 3, **changes}
    return pack.call(node, model=model, attention=plan, **inputs)[0]["samples"]


def check_unified_control_of_equal_prompts_is_the_identity(pack):
    """Equal prompts and guidance give the source back, with both bases, guided, blended, and for one of a batch."""
    for kind in ("eps", "flow"):
        model, clip, latent = _start(pack, kind)
        before, negative = snapshot(model), encode(clip, "")
        for base in ("source", "mutual"):
            source, target, plan, summary = _control(pack, model, clip, base=base)
            assert "kept: a big red circle" in summary and plan.branches == ("mutual",), summary
            for cfg in (1.0, 2.0):
                guided = {"source_cfg": cfg, "target_cfg": cfg, "negative": negative}
                error = relative(_edit(pack, model, source, target, latent, plan, **guided), latent["samples"])
                assert error < 1e-4, (kind, base, cfg, error)
        *_, plan, _ = _control(pack, model, clip, target_words="red, circle", source_words="background, circle")
        error = relative(_edit(pack, model, source, target, latent, plan), latent["samples"])
        assert error < 1e-4, (kind, error)
        other = _edit(pack, model, source, target, latent, _control(pack, model, clip, weights="red:6")[2])
        assert relative(other, latent["samples"]) > 1e-3, kind
        same_snapshot(model, before)


def check_unified_control_changes_the_edit(pack):
    """Every knob acts, an edit repeats bit for bit, a row of a batch is what it is alone, and a mask holds."""
    for kind in ("eps", "flow"):
        model, clip, latent = _start(pack, kind)
        source, target, plan, _ = _control(pack, model, clip, AFTER)

        def edited(used, z=latent, model=model, source=source, target=target, **changes):
            return _edit(pack, model, source, target, z, used, **changes)

        plain, controlled = edited(None), edited(plan)
        assert relative(controlled, plain) > 1e-3 and torch.equal(controlled, edited(plan)), kind
        alone = edited(plan, {"samples": latent["samples"][1:], "batch_index": [1]})
        assert relative(alone, controlled[1:]) < 1e-4, (kind, relative(alone, controlled[1:]))
        before = [controlled]
        for change in (
            {"cross_end": 0.0},
            {"self_end": 0.8},
            {"base": "mutual"},
            {"mode": "refine"},
            {"weights": "green:4"},
            {"layers": "0.5-1.0"},
            {"target_words": "green"},
            {"target_words": "green", "target_threshold": 0.9},
            {"source_words": "background"},
            {"source_words": "background", "source_threshold": 0.2},
            {"source_words": "background, green", "target_words": "green"},
        ):
            other = edited(_control(pack, model, clip, AFTER, **change)[2])
            assert torch.isfinite(other).all()
            assert all(relative(other, each) > 1e-5 for each in before), (kind, change)
            before.append(other)
        mask = torch.zeros(1, 64, 64)
        mask[:, :, 32:] = 1.0
        changed = edited(plan, mask=mask) != latent["samples"]
        half = changed.shape[-1] // 2
        assert not changed[..., :half].any() and changed[..., half:].any(), kind


def check_unified_control_runs_three_branches_in_one_forward(pack):
    """A level is one forward of source, target and third branch; guided, a second one."""
    model, clip, latent = _start(pack, "eps")
    source, target, plan, _ = _control(pack, model, clip, AFTER)
    for forwards, guided in ((1, {}), (2, {"target_cfg": 2.0, "negative": encode(clip, "")})):
        spy = Counter(model)
        _edit(pack, spy.model, source, target, latent, plan, **guided)
        assert spy.calls == forwards * STEPS, spy.calls


def check_unified_control_edits_in_four_steps(pack):
    """With the LCM LoRA: the shape that the words name, and much less of the rest than without control."""
    model, clip, vae = shapes(pack, "eps", True)
    scene = pack.module("demo.world").parse("a big yellow star on the right of a purple background")
    wanted = scene.changed(shape="square")
    (latent, _, before), (*_, after) = (rendered(pack, vae, [each], 3) for each in (scene, wanted))
    outside = (before[0] < 0.01) & (after[0] < 0.01)
    model, there = checks_lcm.lcm(model), decode(vae, latent["samples"])[0]
    source, target, plan, _ = _control(pack, model, clip, wanted.caption, source_text=scene.caption)
    psnr = {}
    for name, used in (("plain", None), ("control", plan)):
        edited = decode(vae, _edit(pack, model, source, target, latent, used, seed=0))[0]
        read = seen(pack, edited)
        assert (read.shape, read.colour, read.position) == ("square", "yellow", "right"), (name, read)
        psnr[name] = float(-10 * ((edited - there)[outside] ** 2).mean().log10())
    assert psnr["control"] > psnr["plain"] + 6.0, psnr


def check_local_blend_under_infedit(pack):
    """A plan of LocalBlend acts under InfEdit and FlowEdit too: outside its mask the source stays bit for bit."""
    for kind in ("eps", "flow"):
        model, _, latent = _start(pack, kind)
        source, target, plan, _ = attending.prompts(pack, kind, CAPTION, AFTER)
        mask = torch.zeros(1, *latent["samples"].shape[-2:])
        mask[:, 2:9, 1:6] = 1.0
        blended = attending.blended(pack, plan, mask=mask)
        worded = attending.blended(pack, plan, words="red, green", threshold=0.6)
        for node, changes in (("InfEdit", {}), ("FlowEdit", {}), ("FlowEdit", {"n_min": 1, "n_avg": 2})):
            held, free, by_words = (
                _edit(pack, model, source, target, latent, each, node, **changes) != latent["samples"]
                for each in (blended, plan, worded)
            )
            outside = (mask == 0)[:, None].expand_as(held)
            assert not held[outside].any() and free[outside].any() and held[~outside].any(), (kind, node)
            share = float(by_words.any(1).float().mean())
            assert 0.0 < share < 0.9, (kind, node, share)


def check_unified_control_refuses(pack):
    """Words that are not there, other nodes than InfEdit, text that cannot be read."""
    model, clip, latent = _start(pack, "eps")
    source, target, plan, _ = _control(pack, model, clip, AFTER)
    refuses(lambda: _control(pack, model, clip, AFTER, target_words="dog"), "dog")
    refuses(lambda: _control(pack, model, clip, AFTER, source_words="red"), "red")
    refuses(lambda: _edit(pack, model, source, target, latent, plan, "FlowEdit"), "got a plan with mutual")
    refuses(lambda: attending.resampled(pack, *attending.inverted(pack, "sd15"), "sd15", plan), "plan with mutual")
    node = pack.node("UnifiedAttentionControl")
    assert isinstance(node.validate_inputs(weights="red:x"), str) and node.validate_inputs() is True
