"""Rules inside the host's models: what they do to the rows that they are for, and to nothing else."""

import tiny_dits
import torch
from attending import edited, forwards, inverted, plan, reconstructed_state, resampled, target_of
from helpers import refuses, relative, same_snapshot, snapshot

EVERYTHING = {"kinds": ("self", "cross", "joint"), "group": "all"}
# Rows of one forward and forwards of one row differ by the order of float32 sums.
ROUNDING = 2e-5


def check_rules_act_on_every_architecture(pack):
    """Keys and values of the source change the edit of every picture, guided or not, and leave the model as it was."""
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind, batch=2)
        before = snapshot(model)
        for cfg in (1.0, 3.0):
            plain = resampled(pack, model, linked, kind, None, cfg)
            for names in ("kv", "qk", "v"):
                found = resampled(pack, model, linked, kind, plan(pack, names), cfg)
                for row in range(2):
                    assert torch.isfinite(found).all(), (kind, names)
                    assert relative(found[row], plain[row]) > 1e-4, (kind, cfg, names, row)
        same_snapshot(model, before)


def check_no_rule_is_bit_equal(pack):
    """An empty plan, strength 0 and an empty window give the bits of an edit without a plan."""
    attention = pack.module("attention")
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind, batch=2, cfg=2.0, negative=tiny_dits.conditioning(kind, seed=3))
        plain = resampled(pack, model, linked, kind, None, 3.0)
        for source in ("pinned", "free"):
            for nothing in (
                attention.AttentionPlan(source=source),
                plan(pack, strength=0.0, source=source),
                plan(pack, window=(0.5, 0.5), source=source),
            ):
                found = resampled(pack, model, linked, kind, nothing, 3.0)
                if source == "pinned":
                    assert torch.equal(found, plain), (kind, source)
                else:  # the solver's own arithmetic is on twice the rows
                    assert relative(found, plain) < 1e-12 or torch.equal(found, plain), (kind, source)


def check_all_keys_and_values_reproduce_the_source(pack):
    """Invariant 4: with k and v of every site and token from the source, the target is the source, bit for bit.

    With q and k alone, or v alone, it is not.
    """
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind)
        (source,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
        for names in ("kv", "qkv"):
            whole = plan(pack, names, source="free", **EVERYTHING)
            found = resampled(pack, model, linked, kind, whole)
            assert relative(found, source["samples"]) < ROUNDING, (kind, names, relative(found, source["samples"]))
            alone = edited(pack, model, linked, kind, whole, False)
            wanted = reconstructed_state(pack, model, linked)
            assert torch.equal(alone, wanted), (kind, names, relative(alone, wanted))
        for names in ("qk", "v"):
            part = plan(pack, names, source="free", **EVERYTHING)
            assert relative(resampled(pack, model, linked, kind, part), source["samples"]) > 1e-4, (kind, names)


def check_equal_prompts_give_the_source(pack):
    """Invariant 3: with the source's own prompt and guidance the target stays the source under every swap."""
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind)
        wanted = reconstructed_state(pack, model, linked)
        for names in ("kv", "qk", "v", "qkv"):
            found = edited(pack, model, linked, kind, plan(pack, names, source="free"), None, target=linked.source)
            assert relative(found, wanted) < ROUNDING, (kind, names, relative(found, wanted))


def check_shared_forwards_equal_separate_ones(pack):
    """Record-then-inject gives what one forward gives: guided, both sources, all ways of reading the source."""
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind, batch=2)
        for cfg, source, serves in (
            (1.0, "pinned", "shared"),
            (3.0, "pinned", "shared"),
            (3.0, "pinned", "both"),
            (3.0, "free", "cond"),
            (3.0, "free", "both"),
        ):
            rules = plan(pack, "kv" if source == "pinned" else "qk", source=source, source_for=serves)
            one = edited(pack, model, linked, kind, rules, True, cfg)
            two = edited(pack, model, linked, kind, rules, False, cfg)
            assert relative(one, two) < ROUNDING, (kind, cfg, source, serves, relative(one, two))


def check_reading_differs_by_who_reads(pack):
    """cond, both and shared are three different edits where there is guidance."""
    model, linked = inverted(pack, "sd15")
    found = [
        resampled(pack, model, linked, "sd15", plan(pack, source_for=serves), 3.0)
        for serves in ("cond", "both", "shared")
    ]
    assert all(relative(a, b) > 1e-4 for a, b in ((found[0], found[1]), (found[1], found[2]), (found[0], found[2])))


def check_windows_join(pack):
    """Invariant 7: two windows that meet are one window; outside of it steps are those without a plan."""
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind, steps=4)
        for source in ("pinned", "free"):
            whole = plan(pack, window=(0.0, 1.0), source=source)
            parts = plan(pack, window=(0.0, 0.5), source=source).plus(
                plan(pack, window=(0.5, 1.0), source=source, name="rest")
            )
            one, two = (resampled(pack, model, linked, kind, each) for each in (whole, parts))
            assert torch.equal(one, two), kind
        steps = {}
        runs, branch = pack.module("nodes.inverting.runs"), pack.module("nodes.host.session").Branch
        for name, rules in (("late", plan(pack, window=(0.5, 1.0))), ("none", None)):
            steps[name] = []
            with torch.inference_mode():
                tap = lambda report, kept=steps[name]: kept.append(report.x.clone())  # noqa: E731
                runs.run_replay(model, linked, branch(target_of(kind)), tap=tap, attention=rules)
        same = [torch.equal(a, b) for a, b in zip(steps["late"], steps["none"])]
        assert same == [True, True, False, False], (kind, same)


def check_the_source_runs_as_by_itself(pack):
    """Invariant 2: a free source beside an edit is the reconstruction, whatever the target reads."""
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind)
        runs, branch = pack.module("nodes.inverting.runs"), pack.module("nodes.host.session").Branch
        wanted = reconstructed_state(pack, model, linked)
        rules = plan(pack, source="free", **EVERYTHING)
        for together, bound in ((None, ROUNDING), (False, 0.0)):
            kept = []
            original = runs.of_target
            runs.of_target = lambda report, kept=kept, go_on=original: (
                kept.append(report.x.chunk(2)[0]) or go_on(report)
            )
            try:
                with torch.inference_mode(), forwards(pack, together):
                    runs.run_replay(model, linked, branch(target_of(kind)), attention=rules)
            finally:
                runs.of_target = original
            assert relative(kept[-1], wanted) <= bound, (kind, together, relative(kept[-1], wanted))


def check_sizes(pack):
    """Odd and tall sizes, and a batch with a mask for each picture; a mask of zeros is no edit, one of ones is all."""
    attention = pack.module("attention")
    for kind in tiny_dits.KINDS:
        for size in ((12, 8),) if tiny_dits.TINY[kind].whole else ((12, 8), (7, 9)):
            latent = tiny_dits.latent(kind, batch=2, size=size)
            model, linked = inverted(pack, kind, latent=latent)
            plain = resampled(pack, model, linked, kind, None)
            full = resampled(pack, model, linked, kind, plan(pack))
            pixels = torch.zeros(2, size[0] * 8, size[1] * 8)
            pixels[0] = 1.0
            if kind in tiny_dits.VIDEO:
                pixels = pixels[:1]
            found = resampled(pack, model, linked, kind, plan(pack, mask=attention.Mask(pixels)))
            assert relative(found[0], full[0]) < ROUNDING, (kind, size, relative(found[0], full[0]))
            if kind not in tiny_dits.VIDEO:
                assert relative(found[1], plain[1]) < ROUNDING, (kind, size, relative(found[1], plain[1]))
            assert relative(full[1], plain[1]) > 1e-4


def check_masks_of_any_size(pack):
    """A mask in pixels is the mask on the latent grid, whatever its size is."""
    attention = pack.module("attention")
    for kind in ("sd15", "sd3"):
        model, linked = inverted(pack, kind, latent=tiny_dits.latent(kind))
        pixels, cells = torch.zeros(1, 24, 50), torch.zeros(1, 1, 8, 12)
        pixels[..., :25], cells[..., :6] = 1.0, 1.0
        found, wanted = (
            resampled(pack, model, linked, kind, plan(pack, mask=attention.Mask(each))) for each in (pixels, cells)
        )
        assert torch.equal(found, wanted), kind
        assert relative(found, resampled(pack, model, linked, kind, plan(pack))) > 1e-4, kind
        three = plan(pack, mask=attention.Mask(torch.ones(3, 16, 24)))
        refuses(
            lambda m=model, b=linked, k=kind, r=three: resampled(pack, m, b, k, r), "mask must hold 1 or 1 pictures"
        )


def check_unequal_text_lengths(pack):
    """Prompts of other lengths run one after the other, or repeated as the host does; image tokens are swapped."""
    for kind in tiny_dits.KINDS:
        if tiny_dits.TINY[kind].filled_text:
            lengths = (8,)
        else:
            lengths = (77 * 2, 77) if kind in tiny_dits.READS_CLIP else (5, 8)
        model, linked = inverted(pack, kind)
        for tokens in lengths:
            target = target_of(kind, tokens=tokens)
            for names in ("kv", "qk"):
                one = edited(pack, model, linked, kind, plan(pack, names), None, 3.0, target)
                two = edited(pack, model, linked, kind, plan(pack, names), False, 3.0, target)
                plain = edited(pack, model, linked, kind, plan(pack, names, strength=0.0), None, 3.0, target)
                assert relative(one, two) < ROUNDING and relative(one, plain) > 1e-4, (kind, tokens, names)


def check_twice_is_equal(pack):
    """A second run of the same plan, and of a clone of the model, gives the same bits: nothing is left behind."""
    for kind in tiny_dits.KINDS:
        model, linked = inverted(pack, kind, batch=2)
        rules = plan(pack)
        first = resampled(pack, model, linked, kind, rules, 3.0)
        resampled(pack, model, linked, kind, plan(pack, "qk", source="free"), 3.0)
        assert torch.equal(first, resampled(pack, model, linked, kind, rules, 3.0)), kind
        assert torch.equal(first, resampled(pack, model.clone(), linked, kind, rules, 3.0)), kind
