"""A ControlNet of the stock node that knows of no negative acts on the negative of its branch, as under the host."""

import nodes
import torch
from attending import plan
from helpers import STEPS, relative

CFG = 3.0
UNETS = ("sd15", "sdxl")


def _prompts(pack, kind):
    """Source, target and negative; source and target under ControlNets of their own; target's on the negative too."""
    source, target, negative = (pack.tiny.conditioning(kind, seed) for seed in (0, 9, 5))
    control = pack.tiny.control_net(kind)
    hints = [torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    plain = nodes.ControlNetApply().apply_controlnet
    sides = [plain(prompt, control, hint, 0.5)[0] for prompt, hint in zip((source, target), hints, strict=True)]
    advanced = nodes.ControlNetApplyAdvanced().apply_controlnet(target, negative, control, hints[1], 0.5, 0.0, 1.0)
    return source, negative, sides, advanced


def check_edits_without_an_inversion(pack):
    """InfEdit and FlowEdit give what they give where the node with two outputs puts it on both sides."""
    for kind, rules in zip(UNETS, (None, plan(pack)), strict=True):
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind)
        source, negative, (_, controlled), (target, uncond) = _prompts(pack, kind)
        inputs = {"model": model, "latent": latent, "steps": STEPS, "scheduler": "simple", "seed": 3}
        guided = {"source": source, "source_cfg": 1.0, "target_cfg": CFG, **inputs}
        for name, own in (
            ("InfEdit", {"strength": 1.0, "eta": 1.0}),
            ("FlowEdit", {"n_max": STEPS, "n_avg": 1, "n_min": 0}),
        ):
            edit = {**guided, **own, "attention": rules}
            (wanted,) = pack.call(name, target=target, negative=uncond, **edit)
            (found,) = pack.call(name, target=controlled, negative=negative, **edit)
            (without,) = pack.call(name, target=target, negative=negative, **edit)
            assert torch.equal(found["samples"], wanted["samples"]), (kind, name)
            assert relative(without["samples"], wanted["samples"]) > 1e-4, (kind, name)


def check_resample_with_attention(pack):
    """A plan that takes nothing leaves the edit as it is without one, whichever side it stands on."""
    for kind in UNETS:
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind)
        _, negative, (source, controlled), (target, uncond) = _prompts(pack, kind)
        linked = pack.call(
            "Invert", model=model, source=source, negative=negative, latent=latent, steps=STEPS, scheduler="simple",
            method="euler", cfg=2.0, strength=1.0, keep_path=True,
        )[0]  # fmt: skip
        edit = {"model": model, "inversion": linked, "cfg": CFG}
        (wanted,) = pack.call("Resample", positive=controlled, negative=negative, **edit)
        for source_at in ("pinned", "free"):
            nothing = plan(pack, strength=0.0, source=source_at)
            (found,) = pack.call("Resample", positive=controlled, negative=negative, attention=nothing, **edit)
            assert torch.equal(found["samples"], wanted["samples"]), (kind, source_at)
        (read,) = pack.call("Resample", positive=controlled, negative=negative, attention=plan(pack), **edit)
        (same,) = pack.call("Resample", positive=target, negative=uncond, attention=plan(pack), **edit)
        assert torch.equal(read["samples"], same["samples"]), kind


def check_each_branch_has_its_own(pack):
    """Source and target under ControlNets of their own and one negative: each answers as it would alone."""
    session, attended = pack.module("nodes.host.session"), pack.module("nodes.attending.attended")
    for kind in UNETS:
        model, samples = pack.tiny.model(kind), pack.tiny.latent(kind)["samples"]
        plain, negative, (one, other), _ = _prompts(pack, kind)

        def answer(guider, *names, samples=samples, sigmas=(2.0, 0.0)):
            copies = torch.cat([samples] * max(1, len(names))).double()
            with torch.inference_mode():
                return guider.run(samples, sigmas, lambda run: run.denoiser(*names)(copies, 2.0))

        for source, target in ((one, other), (plain, other), (one, plain)):
            sides = {"source": session.Branch(source, negative, CFG), "target": session.Branch(target, negative, CFG)}
            wanted = {name: answer(session.Guider(model, {name: side})) for name, side in sides.items()}
            for name, alone in wanted.items():
                assert torch.equal(answer(session.Guider(model, sides), name), alone), (kind, name)
            for strength, window in ((0.0, (0.0, 1.0)), (1.0, (0.9, 1.0))):
                guider = attended.attended_guider(model, sides, plan(pack, strength=strength, window=window))
                both = answer(guider, *sides, sigmas=(2.0, 1.0, 0.5, 0.0)).chunk(2)
                for (name, alone), ours in zip(wanted.items(), both, strict=True):
                    assert relative(ours, alone) < 1e-6, (kind, name, strength)


def check_what_is_brought_into_a_negative(pack):
    """GLIGEN as ControlNet; what the negative has stays, and parts of the picture are left out."""
    completed = pack.module("nodes.host.session").completed
    net, own, boxes = object(), object(), ("position", None, [])
    asking = {"control": net, "control_apply_to_uncond": True}
    assert completed([asking], [{"uuid": 1}]) == [{"uuid": 1, "control": net}]
    assert completed([{"control": net}], [{"uuid": 1}]) == [{"uuid": 1}]
    assert completed([asking], [{"uuid": 1, "control": own}]) == [{"uuid": 1, "control": own}]
    assert completed([{"gligen": boxes}], [{"uuid": 1}]) == [{"uuid": 1, "gligen": boxes}]
    assert completed([{**asking, "area": (4, 4, 0, 0)}], [{"uuid": 1}]) == [{"uuid": 1}]
    part = {"uuid": 1, "area": (4, 4, 0, 0)}
    assert completed([asking], [part]) == [part]
    assert completed([asking], None) is None and completed([asking], []) == []
    negative = [{"uuid": 1}]
    completed([asking], negative)
    assert negative == [{"uuid": 1}], "the negative itself was changed"
