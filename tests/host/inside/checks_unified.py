"""UnifiedAttentionControl under InfEdit in the host: three branches, their blend, and what it refuses."""

import functools

import attending
import checks_lcm
import checks_words
import nodes
import tiny_dits
import torch
from helpers import Counter, refuses, relative, same_snapshot, snapshot

CAPTION = "a big red circle on the left of a blue background"
STEPS = 4


@functools.cache
def _start(pack, kind, lcm=False):
    """Model and latent of a picture on a demo model."""
    model, clip, vae = pack.call("LoadShapesModel", kind=kind, lcm=lcm)
    scene = pack.module("demo.world").parse(CAPTION)
    pixels, masks = pack.module("demo.world").render([scene] * 2, 3)
    with torch.inference_mode():
        latent = {"samples": vae.encode(torch.from_numpy(pixels) / 255)}
    return checks_lcm._lcm(model) if lcm else model, clip, vae, latent, torch.from_numpy(masks)


def _control(pack, model, clip, after=CAPTION, **changes):
    inputs = {
        "model": model,
        "clip": clip,
        "source_text": CAPTION,
        "target_text": after,
        "cross_end": 0.7,
        "self_end": 0.3,
        "base": "source",
        "mode": "similarity",
        "weights": "",
        "target_words": "",
        "source_words": "",
        "target_threshold": 0.6,
        "source_threshold": 0.6,
        "layers": "",
        **changes,
    }
    return pack.call("UnifiedAttentionControl", **inputs)


def _edit(pack, model, source, target, latent, plan=None, node="InfEdit", **changes):
    own = {"strength": 1.0, "eta": 1.0} if node == "InfEdit" else {"n_max": STEPS, "n_avg": 1, "n_min": 0}
    inputs = {
        "model": model,
        "source": source,
        "target": target,
        "latent": latent,
        "steps": STEPS,
        "scheduler": "sgm_uniform",
        "source_cfg": 1.0,
        "target_cfg": 1.0,
        "seed": 3,
        "attention": plan,
        **own,
        **changes,
    }
    return pack.call(node, **inputs)[0]["samples"]


def check_unified_control_of_equal_prompts_is_the_identity(pack):
    """Equal prompts and guidance give the source back, with both bases, guided, blended, and for one of a batch."""
    for kind in ("eps", "flow"):
        model, clip, _, latent, _ = _start(pack, kind)
        before = snapshot(model)
        (negative,) = nodes.CLIPTextEncode().encode(clip, "")
        for base in ("source", "mutual"):
            source, target, plan, summary = _control(pack, model, clip, base=base)
            assert "kept: a big red circle" in summary and plan.branches == ("mutual",), summary
            for cfg in (1.0, 2.0):
                same = _edit(
                    pack, model, source, target, latent, plan, source_cfg=cfg, target_cfg=cfg, negative=negative
                )
                assert relative(same, latent["samples"]) < 1e-4, (kind, base, cfg, relative(same, latent["samples"]))
        *_, plan, _ = _control(pack, model, clip, target_words="red, circle", source_words="background, circle")
        same = _edit(pack, model, source, target, latent, plan)
        assert relative(same, latent["samples"]) < 1e-4, (kind, relative(same, latent["samples"]))
        other = _edit(pack, model, source, target, latent, _control(pack, model, clip, weights="red:6")[2])
        assert relative(other, latent["samples"]) > 1e-3, kind
        same_snapshot(model, before)


def check_unified_control_changes_the_edit(pack):
    """Every knob acts, an edit repeats bit for bit, a row of a batch is what it is alone, and a mask holds."""
    for kind in ("eps", "flow"):
        model, clip, _, latent, _ = _start(pack, kind)
        after = CAPTION.replace("red", "green")
        source, target, plan, _ = _control(pack, model, clip, after)
        plain, found = (_edit(pack, model, source, target, latent, used) for used in (None, plan))
        assert relative(found, plain) > 1e-3, kind
        assert torch.equal(found, _edit(pack, model, source, target, latent, plan)), kind
        one = {"samples": latent["samples"][1:], "batch_index": [1]}
        alone = _edit(pack, model, source, target, one, plan)
        assert relative(alone, found[1:]) < 1e-4, (kind, relative(alone, found[1:]))
        seen = [found]
        changes = (
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
        )
        for change in changes:
            other = _edit(pack, model, source, target, latent, _control(pack, model, clip, after, **change)[2])
            assert torch.isfinite(other).all()
            assert all(relative(other, before) > 1e-5 for before in seen), (kind, change)
            seen.append(other)
        mask = torch.zeros(1, 64, 64)
        mask[:, :, 32:] = 1.0
        masked = _edit(pack, model, source, target, latent, plan, mask=mask)
        half = masked.shape[-1] // 2
        assert torch.equal(masked[..., :half], latent["samples"][..., :half]), kind
        assert not torch.equal(masked[..., half:], latent["samples"][..., half:]), kind


def check_unified_control_runs_three_branches_in_one_forward(pack):
    """A level is one forward of source, target and third branch; guided, a second one."""
    model, clip, _, latent, _ = _start(pack, "eps")
    source, target, plan, _ = _control(pack, model, clip, CAPTION.replace("red", "green"))
    (negative,) = nodes.CLIPTextEncode().encode(clip, "")
    spy = Counter(model)
    _edit(pack, spy.model, source, target, latent, plan)
    assert spy.calls == STEPS, spy.calls
    spy = Counter(model)
    _edit(pack, spy.model, source, target, latent, plan, target_cfg=2.0, negative=negative)
    assert spy.calls == 2 * STEPS, spy.calls


def check_unified_control_on_every_architecture(pack):
    """On tiny networks of all families, pictures and clips that are not square: same prompts are the identity."""
    module = pack.module("attention")
    for kind in tiny_dits.KINDS:
        model = tiny_dits.model(kind)
        latent = tiny_dits.latent(kind, batch=2, size=(4, 6), frames=2)
        reads_clip = kind in tiny_dits.READS_CLIP
        source, one = checks_words._by_table(pack, kind, "a red cat on a mat", reads_clip)
        target, other = checks_words._by_table(pack, kind, "a tiny blue lynx on a mat", reads_clip)
        family = pack.module("nodes.attending.resolvers").resolver_for(model.model.diffusion_model).family
        found = {}
        for name, prompt, cond in (("same", source, one), ("other", target, other)):
            tokens = pack.module("attention.token_map").token_map(source, prompt, "refine")
            plan = module.get_preset("unified").build(module.Settings(text=tokens), family)
            for used in (None, plan):
                found[name, used is not None] = _edit(pack, model, one, cond, latent, used, scheduler="simple")
        error = relative(found["same", True], latent["samples"])
        assert error < 1e-3, (kind, error)
        assert relative(found["other", True], found["other", False]) > 1e-4, kind


def check_unified_control_edits_in_four_steps(pack):
    """With the LCM LoRA: the shape that the words name, and much less of the rest than without control."""
    world, reader = pack.module("demo.world"), pack.module("demo.reader")
    model, clip, vae, _, _ = _start(pack, "eps", True)
    scene = world.parse("a big yellow star on the right of a purple background")
    wanted = scene.changed(shape="square")
    (pixels, before), (_, after) = (world.render([each], 3) for each in (scene, wanted))
    outside = (torch.from_numpy(before)[0] < 0.01) & (torch.from_numpy(after)[0] < 0.01)
    with torch.inference_mode():
        latent = {"samples": vae.encode(torch.from_numpy(pixels) / 255)}
        kept = vae.decode(latent["samples"])[0]
    source, target, plan, _ = _control(pack, model, clip, wanted.caption, source_text=scene.caption)
    found = {}
    for name, used in (("plain", None), ("control", plan)):
        with torch.inference_mode():
            edit = vae.decode(_edit(pack, model, source, target, latent, used, seed=0))[0]
        seen = reader.read((edit.clamp(0, 1) * 255).round().byte().numpy())
        assert (seen.shape, seen.colour, seen.position) == ("square", "yellow", "right"), (name, seen)
        found[name] = float(-10 * ((edit - kept)[outside] ** 2).mean().log10())
    print(f"outside: plain {found['plain']:.2f} dB, control {found['control']:.2f} dB")  # noqa: T201
    assert found["control"] > found["plain"] + 6.0, found


def check_local_blend_under_infedit(pack):
    """A plan of LocalBlend acts under InfEdit and FlowEdit too: outside its mask the source stays bit for bit."""
    for kind in ("eps", "flow"):
        model, _, _, latent, _ = _start(pack, kind)
        source, target, plan, _ = checks_words._prompts(pack, kind, CAPTION, CAPTION.replace("red", "green"))
        mask = torch.zeros(1, *latent["samples"].shape[-2:])
        mask[:, 2:9, 1:6] = 1.0
        blended = checks_words._blended(pack, plan, mask=mask)
        worded = checks_words._blended(pack, plan, words="red, green", threshold=0.6)
        for node, changes in (("InfEdit", {}), ("FlowEdit", {}), ("FlowEdit", {"n_min": 1, "n_avg": 2})):
            found = _edit(pack, model, source, target, latent, blended, node, **changes)
            kept = (mask == 0)[:, None].expand_as(found)
            assert torch.equal(found[kept], latent["samples"][kept]), (kind, node)
            free = _edit(pack, model, source, target, latent, plan, node, **changes)
            assert not torch.equal(free[kept], latent["samples"][kept]), (kind, node)
            assert not torch.equal(found[~kept], latent["samples"][~kept]), (kind, node)
            by_words = _edit(pack, model, source, target, latent, worded, node, **changes)
            changed = (by_words != latent["samples"]).any(1).float().mean()
            assert 0.0 < float(changed) < 0.9, (kind, node, float(changed))


def check_unified_control_refuses(pack):
    """Words that are not there, other nodes than InfEdit, text that cannot be read."""
    model, clip, _, latent, _ = _start(pack, "eps")
    after = CAPTION.replace("red", "green")
    source, target, plan, _ = _control(pack, model, clip, after)
    refuses(lambda: _control(pack, model, clip, after, target_words="dog"), "dog")
    refuses(lambda: _control(pack, model, clip, after, source_words="red"), "red")
    refuses(lambda: _edit(pack, model, source, target, latent, plan, "FlowEdit"), "got a plan with mutual")
    refuses(lambda: attending.resampled(pack, *attending.inverted(pack, "sd15"), "sd15", plan), "plan with mutual")
    node = pack.node("UnifiedAttentionControl")
    assert isinstance(node.validate_inputs(weights="red:x"), str) and node.validate_inputs() is True
