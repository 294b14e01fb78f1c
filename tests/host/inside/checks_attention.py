"""Rules inside the host's models: what they do to the rows that they are for, and to nothing else."""

import tiny_dits
import torch
from attending import ROUNDING, edited, forwards, inverted, plan, resampled, states, target_of
from helpers import refuses, relative
from running import play

EVERYTHING = {"kinds": ("self", "cross", "joint"), "group": "all"}


def check_no_rule_is_bit_equal(pack):
    """An empty plan, strength 0 and an empty window give the bits of an edit without a plan."""
    for kind in tiny_dits.KINDS:
        guided = {"cfg": 2.0, "negative": tiny_dits.conditioning(kind, seed=3)}
        model, inversion = inverted(pack, kind, batch=2, **guided)
        plain = resampled(pack, model, inversion, kind, None, 3.0)
        for source in ("pinned", "free"):
            for nothing in (
                pack.module("attention").AttentionPlan(source=source),
                plan(pack, strength=0.0, source=source),
                plan(pack, window=(0.5, 0.5), source=source),
            ):
                same = resampled(pack, model, inversion, kind, nothing, 3.0)
                # With a free source the solver's own arithmetic is on twice the rows.
                assert torch.equal(same, plain) or (source == "free" and relative(same, plain) < 1e-12), (kind, source)


def check_all_keys_and_values_reproduce_the_source(pack):
    """Invariant 4: with k and v of every site and token from the source, the target is the source, bit for bit."""
    # With q and k alone, or v alone, it is not.
    for kind in tiny_dits.KINDS:
        model, inversion = inverted(pack, kind)
        source, clean = play(pack, model, inversion), states(pack, model, inversion)[-1]
        for names in ("kv", "qkv", "qk", "v"):
            rules = plan(pack, names, source="free", **EVERYTHING)
            error = relative(resampled(pack, model, inversion, kind, rules), source)
            if "kv" in names:
                assert error < ROUNDING, (kind, names, error)
                assert torch.equal(edited(pack, model, inversion, kind, rules, False), clean), (kind, names)
            else:
                assert error > 1e-4, (kind, names)


def check_shared_forwards_equal_separate_ones(pack):
    """Record-then-inject gives what one forward gives: guided, both sources, all ways of reading the source."""
    # Each picture of a batch is another edit by it; cond, both and shared are different ones under guidance.
    for kind in tiny_dits.KINDS:
        model, inversion = inverted(pack, kind, batch=2)
        edits = []
        for cfg, source, serves in (
            (1.0, "pinned", "shared"),
            (3.0, "pinned", "shared"),
            (3.0, "pinned", "both"),
            (3.0, "pinned", "cond"),
            (3.0, "free", "cond"),
            (3.0, "free", "both"),
        ):
            rules = plan(pack, "kv" if source == "pinned" else "qk", source=source, source_for=serves)
            one, two = (edited(pack, model, inversion, kind, rules, way, cfg) for way in (True, False))
            assert relative(one, two) < ROUNDING, (kind, cfg, source, serves, relative(one, two))
            plain = edited(pack, model, inversion, kind, None, None, cfg)
            assert torch.isfinite(one).all() and all(relative(a, b) > 1e-4 for a, b in zip(one, plain)), (kind, serves)
            assert all(relative(one, other) > 1e-4 for other in edits), (kind, cfg, source, serves)
            edits.append(one)


def check_steps_outside_a_window_are_those_without_a_plan(pack):
    """That windows which meet are one is tested on the executor alone."""
    for kind in tiny_dits.KINDS:
        model, inversion = inverted(pack, kind, steps=4)
        target = pack.module("nodes.host.session").Branch(target_of(kind))
        rules = plan(pack, window=(0.5, 1.0))
        ways = (states(pack, model, inversion, target, attention=each) for each in (rules, None))
        same = [torch.equal(a, b) for a, b in zip(*ways)]
        assert same == [True, True, False, False], (kind, same)


def check_the_source_runs_as_by_itself(pack):
    """Invariant 2: a free source beside an edit is the reconstruction, whatever the target reads."""
    runs, branch = pack.module("nodes.inverting.runs"), pack.module("nodes.host.session").Branch
    original = runs.of_target
    for kind in tiny_dits.KINDS:
        model, inversion = inverted(pack, kind)
        wanted = states(pack, model, inversion)[-1]
        rules = plan(pack, source="free", **EVERYTHING)
        for together, bound in ((None, ROUNDING), (False, 0.0)):
            sources = []
            runs.of_target = lambda report, to=sources: to.append(report.x.chunk(2)[0]) or original(report)
            try:
                with forwards(pack, together):
                    states(pack, model, inversion, branch(target_of(kind)), attention=rules)
            finally:
                runs.of_target = original
            assert relative(sources[-1], wanted) <= bound, (kind, together, relative(sources[-1], wanted))


def check_sizes(pack):
    """Odd and tall sizes, and a batch with a mask for each picture; a mask of zeros is no edit, one of ones is all."""
    mask_of = pack.module("attention").Mask
    for kind in tiny_dits.KINDS:
        for size in ((12, 8), (7, 9)):
            if tiny_dits.TINY[kind].whole and size == (7, 9):
                continue
            model, inversion = inverted(pack, kind, latent=tiny_dits.latent(kind, batch=2, size=size))
            pixels = torch.zeros(1 if kind in tiny_dits.VIDEO else 2, size[0] * 8, size[1] * 8)
            pixels[0] = 1.0
            plain, full, held = (
                resampled(pack, model, inversion, kind, each)
                for each in (None, plan(pack), plan(pack, mask=mask_of(pixels)))
            )
            assert relative(held[0], full[0]) < ROUNDING, (kind, size, relative(held[0], full[0]))
            if kind not in tiny_dits.VIDEO:
                assert relative(held[1], plain[1]) < ROUNDING, (kind, size, relative(held[1], plain[1]))
            assert relative(full[1], plain[1]) > 1e-4
    for kind in ("sd15", "sd3"):
        model, inversion = inverted(pack, kind, latent=tiny_dits.latent(kind))
        # A mask in pixels is the mask on the latent grid, whatever its size is.
        pixels, cells = torch.zeros(1, 24, 50), torch.zeros(1, 1, 8, 12)
        pixels[..., :25], cells[..., :6] = 1.0, 1.0
        by_pixels, by_cells, full, three = (
            plan(pack, mask=mask_of(each)) for each in (pixels, cells, torch.ones(1, 24, 50), torch.ones(3, 16, 24))
        )
        edits = [resampled(pack, model, inversion, kind, each) for each in (by_pixels, by_cells, full)]
        assert torch.equal(edits[0], edits[1]) and relative(edits[0], edits[2]) > 1e-4, kind
        call = lambda m=model, i=inversion, k=kind, r=three: resampled(pack, m, i, k, r)  # noqa: E731
        refuses(call, "mask must hold 1 or 1 pictures")


def check_unequal_text_lengths(pack):
    """Prompts of other lengths run one after the other, or repeated as the host does; image tokens are swapped."""
    for kind in tiny_dits.KINDS:
        if tiny_dits.TINY[kind].filled_text:
            lengths = (8,)
        else:
            lengths = (77 * 2, 77) if kind in tiny_dits.READS_CLIP else (5, 8)
        model, inversion = inverted(pack, kind)
        for tokens in lengths:
            target = target_of(kind, tokens=tokens)
            for names in ("kv", "qk"):
                one, two, plain = (
                    edited(pack, model, inversion, kind, plan(pack, names, strength=strength), way, 3.0, target)
                    for strength, way in ((1.0, None), (1.0, False), (0.0, None))
                )
                assert relative(one, two) < ROUNDING and relative(one, plain) > 1e-4, (kind, tokens, names)
