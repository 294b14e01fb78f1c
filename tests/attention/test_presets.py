"""Presets: what each method does to q, k and v, its official defaults, and what all of them share."""

import contextlib
import math

import pytest
import torch

from retrace.attention import (
    OWN,
    PRESETS,
    SOURCE,
    TARGET,
    Add,
    Call,
    Gather,
    Join,
    Mask,
    Rows,
    Settings,
    Step,
    Take,
    complement,
    get_preset,
    protected,
)
from retrace.attention.token_map import token_map
from retrace.attention.word_list import Word, WordWeight
from retrace_tests.attention.official import BLOCKS, OTHER, ROWS, met, own_layers, ranges
from retrace_tests.attention.problems import (
    Counted,
    attend,
    cross_site,
    joint_site,
    probabilities,
    self_site,
    tensors,
)
from retrace_tests.attention.prompts import sd15

LENGTH = sd15("").length
MASK = Mask((torch.arange(16).reshape(1, 4, 4) % 3 > 0).float())
FAMILY_LAYERS = own_layers()
EVERY = [(name, variant) for name in PRESETS for variant in PRESETS[name].variants or ("",)]
SITES = {
    "self": self_site(),
    "cross": cross_site(text=LENGTH),
    "joint": joint_site(text=LENGTH),
    "joint, image first": joint_site(text=LENGTH, text_first=False),
}


def words(source="a red cat", target="a blue cat", mode="replace", **about):
    return token_map(sd15(source), sd15(target), mode, **about)


def built(name, variant="", family="sd15", **about):
    given = {"layers": "all", "start": 0.0, "end": 1.0, "variant": variant, "mask": MASK, "text": words()}
    return get_preset(name).build(Settings(**{**given, **about}), family)


def rows_of(run, chunks=("cond", "uncond")):
    every = [(branch, chunk) for chunk in chunks for branch in run.branches]
    return Rows(tuple(b for b, _ in every), tuple(c for _, c in every), (0,) * len(every))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_equal_branches_stay_equal(name, variant, site):
    """Same prompt, latent and noise: the edit is the source, whatever the method and the step."""
    same = words(target="a red cat")
    wanted = set(get_preset(name).needs_mask) & {variant, "*"}
    run = built(name, variant, text=same, mask=MASK if wanted else None).start()
    rows = rows_of(run)
    one = tensors(SITES[site], rows=1)
    q, k, v = (tensor.repeat(len(rows), 1, 1, 1) for tensor in one)
    whole = attend(*one)
    # Adding doubles the values of equal rows; reading the foreground alone is another softmax, for equal rows too.
    others = [term.v for rule in run.rules if rule.covers(SITES[site]) for term in rule.terms]
    another = any(isinstance(operand, Add | Gather) for operand in others)
    for index in (0, 4, 9):
        out = run.run(SITES[site], rows, Step(index, 10, 1.0), Call(q, k, v, attend))
        for row in range(len(rows)):
            edited = rows.branches[row] != "source"
            assert (edited and another) or float((out[row] - whole[0]).abs().max()) <= 2e-6


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_the_source_stays_untouched_and_the_rest_is_finite(name, variant, site):
    run = built(name, variant).start()
    rows = rows_of(run)
    q, k, v = tensors(SITES[site], rows=len(rows))
    plain = attend(q, k, v)
    for index in (0, 9):
        out = run.run(SITES[site], rows, Step(index, 10, 1.0), Call(q, k, v, attend))
        assert out.shape == plain.shape and bool(out.isfinite().all())
        for row, branch in enumerate(rows.branches):
            if branch == "source":
                assert float((out[row] - plain[row]).abs().max()) <= 1e-6


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_it_changes_something_within_its_default_window_and_nothing_at_strength_0(name, variant):
    preset = get_preset(name)
    for family, sites in (("sd15", ("self", "cross")), ("flux", ("joint",))):
        if preset.layers_of(family, variant) is None:
            continue
        start, end = preset.default_window(family, variant)
        step = Step(math.ceil(start * 50), 50, 1.0)
        for strength in (0.0, 1.0):
            heavy = words(weights=[WordWeight(Word("blue"), 3.0)])
            about = {"start": None, "end": None, "strength": strength, "text": heavy}
            run = built(name, variant, family, **about).start()
            rows, changed = rows_of(run), False
            for site in sites:
                q, k, v = tensors(SITES[site], rows=len(rows))
                out = run.run(SITES[site], rows, step, Call(q, k, v, attend))
                changed |= not torch.equal(out, attend(q, k, v))
            assert changed == bool(strength)
            assert start < end


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_it_tells_what_it_is(preset):
    assert preset.label and preset.description.endswith(".") and "arXiv:" in preset.reference
    assert preset.__doc__ and preset.mask_note.endswith(".")


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_it_refuses_what_it_misses_and_what_it_would_not_read(name, variant):
    preset = PRESETS[name]
    full = f"{name} {variant}".strip()
    for refused, sentence, about in (
        ({variant, "*"} & {*preset.needs_mask}, f"Preset {full} must have a mask, got none", {"mask": None}),
        (preset.needs_text, f"Preset {name} must have a token map", {"text": None}),
        (variant not in preset.tells_source, f"source_mask must be left out for preset {full}", {"source_mask": MASK}),
        (not preset.takes_feature, f"feature_block must be left out for preset {name}, got 2", {"feature": 2}),
        (True, f"variant of {name} must be one of .*, got 'join them'", {"variant": "join them"}),
    ):
        with pytest.raises(ValueError, match=sentence) if refused else contextlib.nullcontext():
            built(name, **{"variant": variant, **about})


def by_default(preset, variant, family):
    """The plan of a preset on a family, with nothing chosen that it does not need."""
    settings = Settings(variant=variant, mask=MASK, text=words() if preset.needs_text else None)
    return preset().build(settings, family, FAMILY_LAYERS.get(family, {}))


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_its_defaults_meet_layers_of_every_family(name, variant):
    """On every family that it or the nodes name, and on one that nobody knows of."""
    preset = PRESETS[name]
    for family in (*preset.families(), *FAMILY_LAYERS, OTHER):
        if preset.layers_of(family, variant, FAMILY_LAYERS.get(family, {})) is None:
            with pytest.raises(ValueError, match=f"Preset {name} must run on .*, got {family}; choose another"):
                by_default(preset, variant, family)
            continue
        plan = by_default(preset, variant, family)
        assert plan.rules and plan.source_for == preset.source_for
        for rule in plan.rules:
            assert met(rule, family if family in BLOCKS else OTHER), (family, rule.name)
            assert 0.0 <= rule.window.start < rule.window.end <= 1.0
        if family in (*preset.families(), OTHER) or any(
            key.split()[0] == name for key in FAMILY_LAYERS.get(family, {})
        ):
            rows = [row for row in ROWS if row[0] == name and row[3] == family and row[1] in ("", variant)]
            assert {f"{name} {row[2]}".strip() for row in rows} >= {rule.name for rule in plan.rules}, (
                f"{name} {variant} on {family} has no row in official.py"
            )


@pytest.mark.parametrize(("name", "variant", "suffix", "family", "layers", "steps", "source"), ROWS)
def test_layers_and_steps_are_those_of_the_table(name, variant, suffix, family, layers, steps, source):
    special = {row[1] for row in ROWS if (row[0], *row[2:4]) == (name, suffix, family)} - {variant}
    for chosen in (variant,) if variant else set(PRESETS[name].variants or ("",)) - special:
        plan = by_default(PRESETS[name], chosen, family)
        acting = {rule.name: rule for rule in (*plan.rules, *plan.features)}.get(f"{name} {suffix}".strip())
        if acting is None:
            assert (chosen, suffix) == ("reweight", "self")
            continue
        assert met(acting, family) == layers
        assert ranges([index for index in range(50) if acting.window.holds(Step(index, 50, 1.0))]) == steps


def test_operands():
    def term(name, variant="", family="sd15", index=0):
        return built(name, variant, family).rules[index].terms[0]

    assert isinstance(term("masactrl").k, Take) and isinstance(term("masactrl").v, Take)
    assert term("masactrl", "union").k == Join((OWN, SOURCE)) == term("reference").v
    assert isinstance(term("structure").q, Take) and not isinstance(term("structure").v, Take)
    assert term("rf_edit").v == Take() and term("rf_edit", "add").v == Add()
    assert built("rf_edit", family="flux").rules[0].group == "all" and built("rf_edit").rules[0].group == "image"
    assert built("free_flux", "background", "flux").rules[0].terms[0].k != Take()


def test_kv_edit_keeps_its_hands_off_every_cell_of_the_mask():
    weights = torch.zeros(1, 8, 8)
    weights[0, 3, 3] = 1.0
    rule = built("kv_edit", mask=Mask(weights)).rules[0]
    on = rule.mask.on((1, 4, 4))
    assert on.sum() == 15.0 and on[0, 5] == 0.0
    assert torch.equal(on, complement(protected(Mask(weights))).on((1, 4, 4)))


def test_masked_mutual_attention_tells_foreground_from_background():
    """The target's mask says which queries, the source's which keys."""
    ours, theirs = (torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(seed)) > 0.5 for seed in (1, 2))
    about = {"mask": Mask(ours.float()), "source_mask": Mask(theirs.float())}
    run = built("masactrl", "masked", **about).start()
    site = SITES["self"]
    q, k, v = tensors(site)
    out = run.run(site, Rows(("source", "target"), ("cond",) * 2, (0, 0)), Step(0, 10, 1.0), Call(q, k, v, attend))
    there = ours.flatten()[:, None] == theirs.flatten()[None]
    scores = q[1].double() @ k[0].double().transpose(-1, -2) * q.shape[-1] ** -0.5
    want = scores.masked_fill(~there, float("-inf")).softmax(-1) @ v[0].double()
    assert float((out[1].double() - want).abs().max()) <= 2e-6


@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize("target", ["a blue cat", "a light_ish pur_ple cat", "a cat", "a big red cat"])
def test_prompt_to_prompt_is_what_its_authors_write(mode, target):
    """Explicit probabilities, word windows and weights, against the rule."""
    found = words(target=target, mode=mode, weights=[], window=(0.0, 0.8))
    run = built("p2p", "text", text=found, start=0.0, end=0.0, mask=None).start()
    site = SITES["cross"]
    q, k, v = tensors(site)
    rows = Rows(("source", "target"), ("cond", "cond"), (0, 0))
    source, own = probabilities(q[0], k[0]), probabilities(q[1], k[1])
    alpha = found.alpha.double()
    edited = (source @ found.matrix.double()) * alpha + own * (1.0 - alpha)
    for index in range(10):
        out = run.run(site, rows, Step(index, 10, 1.0), Call(q, k, v, attend))
        # A table with one row more than there are steps.
        want = edited if index < int(0.8 * 11) else own
        assert float((out[1].double() - want @ v[1].double()).abs().max()) <= 2e-6


@pytest.mark.parametrize(("name", "variant"), [("p2p", "text"), ("p2p", "joint"), ("unified", "source")])
def test_words_at_a_joint_site(name, variant):
    """Image columns are the target's own, or the source's for "joint"."""
    found = words(mode="refine")
    run = built(name, variant, text=found, start=0.0, end=0.0, mask=None).start()
    site = SITES["joint"]
    rows = Rows(run.branches, ("cond",) * len(run.branches), (0,) * len(run.branches))
    q, k, v = tensors(site, rows=len(rows))
    out = run.run(site, rows, Step(0, 10, 1.0), Call(q, k, v, attend))
    source, want = probabilities(q[0], k[0]), probabilities(q[1], k[1])
    image, text, alpha = slice(*site.image), slice(*site.text), found.alpha.double()
    kept = want[:, image, text] * (1.0 - alpha)
    want[:, image, text] = (source[:, image, text] @ found.matrix.double()) * alpha + kept
    if variant == "joint":
        want[:, image, image] = source[:, image, image]
    assert float((out[1].double() - want @ v[1].double()).abs().max()) <= 2e-6


def test_prompt_to_prompt_leaves_uncond_alone_and_costs_nothing_after_its_window():
    run = built("p2p", "text", start=0.0, end=0.4, mask=None).start()
    rows = rows_of(run)
    for site in SITES.values():
        q, k, v = tensors(site, rows=4)
        counted = Counted()
        out = run.run(site, rows, Step(0, 10, 1.0), Call(q, k, v, counted))
        plain = attend(q, k, v)
        assert float((out[2:] - plain[2:]).abs().max()) <= 1e-6
        late = Counted()
        assert torch.equal(run.run(site, rows, Step(9, 10, 1.0), Call(q, k, v, late)), plain)
        assert len(late.calls) == 1


def test_self_attention_of_prompt_to_prompt_on_small_grids_of_a_unet_only():
    fine, coarse = self_site(grid=(1, 8, 8), latent=(1, 8, 8)), self_site(grid=(1, 4, 4), latent=(1, 8, 8))
    unet, flux = (built("p2p", family=family).rules[0] for family in ("sd15", "flux"))
    assert (unet.covers(fine), unet.covers(coarse)) == (False, True) and flux.covers(fine)
    # Whoever writes "all" has the second attention of SD3.5-medium too.
    assert built("p2p", family="sd3", layers="all").rules[0].covers(fine)


def test_reweight_alone_reads_no_source():
    heavy = words(source="a blue cat", weights=[WordWeight(Word("blue"), 3.0)])
    plan = built("p2p", "reweight", text=heavy, mask=None)
    run = plan.start()
    assert not any(rule.reads() for rule in run.rules)
    site = SITES["cross"]
    q, k, v = tensors(site, rows=2)
    out = run.run(site, Rows(("target",) * 2, ("cond", "uncond"), (0, 0)), Step(0, 10, 1.0), Call(q, k, v, attend))
    assert torch.equal(out[1], attend(q, k, v)[1])
    weights = torch.ones(LENGTH)
    weights[list(heavy.target.find("blue"))] = 3.0
    want = (probabilities(q[0], k[0]) * weights.double()) @ v[0].double()
    assert float((out[0].double() - want).abs().max()) <= 2e-6


@pytest.mark.parametrize("base", ["source", "mutual"])
def test_unified_control_of_three_branches(base):
    run = built("unified", base, start=0.0, end=0.3, mask=None).start()
    assert run.branches == (SOURCE, TARGET, "mutual")
    rows, found = Rows(run.branches, ("cond",) * 3, (0,) * 3), words()
    q, k, v = tensors(SITES["self"], rows=3)
    early = run.run(SITES["self"], rows, Step(2, 10, 1.0), Call(q, k, v, attend))
    assert torch.equal(early, attend(q[[0, 0, 0]], k[[0, 0, 0]], v[[0, 1, 0]]))
    late = run.run(SITES["self"], rows, Step(3, 10, 1.0), Call(q, k, v, attend))
    assert torch.equal(late, attend(q[[0, 1, 1]], k[[0, 1, 0]], v[[0, 1, 0]]))
    q, k, v = tensors(SITES["cross"], rows=3)
    out = run.run(SITES["cross"], rows, Step(3, 10, 1.0), Call(q, k, v, attend))
    there = 0 if base == "source" else 2
    alpha = found.alpha.double()
    mixed = (probabilities(q[there], k[there]) @ found.matrix.double()) * alpha
    mixed = mixed + probabilities(q[1], k[1]) * (1.0 - alpha)
    assert float((out[1].double() - mixed @ v[1].double()).abs().max()) <= 2e-6
    assert torch.equal(out[[0, 2]], attend(q, k, v)[[0, 2]])


def test_the_feature_of_plug_and_play_is_chosen():
    chosen = built("pnp", feature=2).features[0]
    assert (chosen.stack, chosen.index, chosen.window.end) == ("output", 2, 1.0)


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="preset must be one of .* got 'value'"):
        get_preset("value")
