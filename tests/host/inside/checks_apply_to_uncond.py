"""The negative side: what is announced as it, and a ControlNet that knows of none, which acts as under the host."""

import nodes
import torch
from attending import plan
from helpers import around, relative
from running import edit, invert, play, trained

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


def check_edits_give_what_both_sides_give(pack):
    """Edits are what they are where the node with two outputs puts it on both sides."""
    # A plan that takes nothing leaves the edit as it is without one, whichever side it stands on.
    for kind in UNETS:
        model = pack.tiny.model(kind)
        _, negative, (source, alone), (target, uncond) = _prompts(pack, kind)
        for node, rules in (("InfEdit", None), ("FlowEdit", None), ("InfEdit", plan(pack)), ("FlowEdit", plan(pack))):
            given = {"source": source, "target_cfg": CFG, "attention": rules}
            both, one, none = (
                edit(pack, node, kind, model, target=to, negative=away, **given)
                for to, away in ((target, uncond), (alone, negative), (target, negative))
            )
            assert torch.equal(one, both) and relative(none, both) > 1e-4, (kind, node)
        guided = {"negative": negative, "cfg": 2.0, "method": "euler", "keep_path": True}
        inversion = invert(pack, kind, model=model, source=source, **guided)[3][0]

        def back(rules=None, to=alone, away=negative, model=model, inversion=inversion):
            return play(pack, model, inversion, cfg=CFG, positive=to, negative=away, attention=rules)

        for source_at in ("pinned", "free"):
            assert torch.equal(back(plan(pack, strength=0.0, source=source_at)), back()), (kind, source_at)
        assert torch.equal(back(plan(pack)), back(plan(pack), target, uncond)), kind


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
    net, own, boxes, bare = object(), object(), ("position", None, []), {"uuid": 1}
    asking, area = {"control": net, "control_apply_to_uncond": True}, {"area": (4, 4, 0, 0)}
    for positive, negative, wanted in (
        (asking, bare, {**bare, "control": net}),
        ({"control": net}, bare, bare),
        (asking, {**bare, "control": own}, {**bare, "control": own}),
        ({"gligen": boxes}, bare, {**bare, "gligen": boxes}),
        ({**asking, **area}, bare, bare),
        (asking, {**bare, **area}, {**bare, **area}),
    ):
        assert completed([positive], [negative]) == [wanted]
    assert completed([asking], None) is None and completed([asking], []) == []
    assert bare == {"uuid": 1}, "the negative itself was changed"


def check_the_negative_is_announced_as_the_negative(pack):
    """By every node that guides: each side in a forward of its own, the positive as 0, the negative as 1."""
    told = []

    def watch(apply_model, args):
        told.append(tuple(args["c"]["transformer_options"]["cond_or_uncond"]))
        assert told[-1] == tuple(args["cond_or_uncond"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    for kind in ("eps", "flow"):
        model, (source, negative), latent = trained(pack, kind)
        model = around(model, watch)

        def of(node, *sides, model=model, negative=negative, kind=kind, **inputs):
            told.clear()
            outputs = pack.call(node, model=model, negative=negative, **inputs)
            assert set(told) == set(sides), (kind, node, told)
            return outputs[0]

        climb = {"source": source, "latent": latent, "steps": 3, "method": "euler", "keep_path": True}
        guided, plain = of("Invert", (0,), (1,), cfg=3.0, **climb), of("Invert", (0,), **climb)
        assert not torch.equal(guided.x, plain.x), kind
        back = {"inversion": plain, "cfg": 3.0, "positive": source}
        of("Resample", (0,), (1,), **back)
        of("Resample", (0,), (1,), attention=plan(pack), **back)
        of("InfEdit", (0,), (1,), source=source, target=source, latent=latent, target_cfg=3.0)
        of("NullTextOptimize", (0,), (1,), inversion=plain, cfg=3.0, inner_steps=1)
