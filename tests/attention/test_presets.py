"""Presets: what each method does to q, k and v, its official defaults, and what all of them share."""

import contextlib
import math

import pytest
import torch

from retrace.attention import PRESETS, Add, Call, Gather, Mask, Rows, Settings, Step, complement, get_preset, protected
from retrace.attention.token_map import token_map
from retrace.attention.word_list import Word, WordWeight
from retrace_tests.attention.official import BLOCKS, OTHER, ROWS, met, own_layers, ranges
from retrace_tests.attention.problems import Counted, attend, cross_site, joint_site, probabilities, self_site, tensors
from retrace_tests.attention.prompts import sd15

LENGTH = sd15("").length
MASK = Mask((torch.arange(16).reshape(1, 4, 4) % 3 > 0).float())
FAMILY_LAYERS = own_layers()
EACH = [(name, variant) for name in PRESETS for variant in PRESETS[name].variants or ("",)]
EVERY = pytest.mark.parametrize(("name", "variant"), EACH)
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


def by_default(preset, variant, family):
    """The plan of a preset on a family, with nothing chosen that it does not need."""
    settings = Settings(variant=variant, mask=MASK, text=words() if preset.needs_text else None)
    return preset().build(settings, family, FAMILY_LAYERS.get(family, {}))


def rows_of(run, chunks=("cond", "uncond")):
    each = [(branch, chunk) for chunk in chunks for branch in run.branches]
    return Rows(tuple(b for b, _ in each), tuple(c for _, c in each), (0,) * len(each))


def asked(run, site, call, index=0, attention=attend, chunks=("cond", "uncond")):
    return run.run(SITES[site], rows_of(run, chunks), Step(index, 10, 1.0), Call(*call, attention))


def near(out, want, bound=2e-6):
    assert float((out.double() - want).abs().max()) <= bound


@EVERY
def test_the_source_stays_untouched_and_equal_branches_stay_equal(name, variant):
    """Same prompt, latent and noise: the edit is the source, whatever the method and the step."""
    wanted = {*PRESETS[name].needs_mask} & {variant, "*"}
    same = built(name, variant, text=words(target="a red cat"), mask=MASK if wanted else None).start()
    run, rows = built(name, variant).start(), rows_of(same)
    sources = [row for row, branch in enumerate(rows.branches) if branch == "source"]
    for site in SITES:
        call = tensors(SITES[site], rows=len(rows))
        equal = [tensor[:1].repeat(len(rows), 1, 1, 1) for tensor in call]
        # Adding doubles the values of equal rows; reading the foreground alone is another softmax, for equal rows too.
        read = [term.v for rule in same.rules if rule.covers(SITES[site]) for term in rule.terms]
        held = sources if any(isinstance(operand, Add | Gather) for operand in read) else slice(None)
        for index in (0, 4, 9):
            out = asked(run, site, call, index)
            assert bool(out.isfinite().all())
            near(out[sources], attend(*call)[sources], 1e-6)
            near(asked(same, site, equal, index)[held], attend(*equal)[held])


@EVERY
def test_it_changes_something_within_its_default_window_and_nothing_at_strength_0(name, variant):
    preset, heavy = PRESETS[name], words(weights=[WordWeight(Word("blue"), 3.0)])
    for family, sites in (("sd15", ("self", "cross")), ("flux", ("joint",))):
        if preset.layers_of(family, variant) is None:
            continue
        step = Step(math.ceil(preset.default_window(family, variant)[0] * 50), 50, 1.0)
        for strength in (0.0, 1.0):
            run = built(name, variant, family, start=None, end=None, strength=strength, text=heavy).start()
            calls = [(SITES[site], Call(*tensors(SITES[site], rows=len(rows_of(run))), attend)) for site in sites]
            outs = [run.run(site, rows_of(run), step, call) for site, call in calls]
            plain = [attend(call.q, call.k, call.v) for _, call in calls]
            assert all(map(torch.equal, outs, plain)) == (not strength)


@EVERY
def test_it_refuses_what_it_misses_and_what_it_would_not_read(name, variant):
    preset, full = PRESETS[name], f"{name} {variant}".strip()
    for refused, sentence, about in (
        ({variant, "*"} & {*preset.needs_mask}, f"Preset {full} must have a mask, got none", {"mask": None}),
        (preset.needs_text, f"Preset {name} must have a token map", {"text": None}),
        (variant not in preset.tells_source, f"source_mask must be left out for preset {full}", {"source_mask": MASK}),
        (not preset.takes_feature, f"feature_block must be left out for preset {name}, got 2", {"feature": 2}),
        (True, f"variant of {name} must be one of .*, got 'join them'", {"variant": "join them"}),
    ):
        with pytest.raises(ValueError, match=sentence) if refused else contextlib.nullcontext():
            built(name, **{"variant": variant, **about})
    with pytest.raises(ValueError, match="preset must be one of .* got 'value'"):
        get_preset("value")


@EVERY
def test_it_tells_what_it_is_and_meets_layers_of_every_family(name, variant):
    """On every family that it or the nodes name, and on one that nobody knows of."""
    preset = PRESETS[name]
    assert preset.label and preset.description.endswith(".") and "arXiv:" in preset.reference
    assert preset.__doc__ and preset.mask_note.endswith(".")
    for family in (*preset.families(), *FAMILY_LAYERS, OTHER):
        own = FAMILY_LAYERS.get(family, {})
        if preset.layers_of(family, variant, own) is None:
            with pytest.raises(ValueError, match=f"Preset {name} must run on .*, got {family}; choose another"):
                by_default(preset, variant, family)
            continue
        plan = by_default(preset, variant, family)
        assert plan.rules and plan.source_for == preset.source_for
        for rule in plan.rules:
            assert met(rule, family if family in BLOCKS else OTHER), (family, rule.name)
            assert 0.0 <= rule.window.start < rule.window.end <= 1.0
        if family in (*preset.families(), OTHER) or name in {key.split()[0] for key in own}:
            rows = [row for row in ROWS if (row[0], row[3]) == (name, family) and row[1] in ("", variant)]
            rowless = {rule.name for rule in plan.rules} - {f"{name} {row[2]}".strip() for row in rows}
            assert not rowless, f"{rowless} of {variant} on {family} must have a row in official.py"


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


@pytest.mark.parametrize(
    ("operands", "names"),
    [
        ("Own Take Take", ["masactrl", "free_flux", "kv_edit", "stable_flow", "reference replace"]),
        ("Own Join Join", ["masactrl union", "reference"]),
        ("Own Gather Gather", ["masactrl masked"]),
        ("Own Own Take", ["free_flux background", "rf_edit"]),
        ("Take Take Own", ["structure", "pnp", "p2p"]),
        ("Own Own Add", ["rf_edit add"]),
    ],
)
def test_operands(operands, names):
    for name in names:
        rule = built(*name.split()).rules[0]
        assert " ".join(type(operand).__name__ for _, operand in rule.terms[0].operands()) == operands
        assert rule.group == "image" and len(rule.terms) == 1 + (name == "masactrl masked")
    assert built("rf_edit", family="flux").rules[0].group == "all"


def test_what_white_means():
    """KV-Edit keeps its hands off every cell of the mask, FreeFlux off the place of a new object."""
    weights = torch.zeros(1, 8, 8)
    weights[0, 3, 3] = 1.0
    (kept,) = built("kv_edit", mask=Mask(weights)).rules[0].mask.on((1, 4, 4))
    assert kept.tolist() == [1.0] * 5 + [0.0] + [1.0] * 10
    assert torch.equal(built("free_flux", "add").rules[0].mask.on((1, 4, 4)), complement(MASK).on((1, 4, 4)))
    # The target's mask says which queries, the source's which keys.
    ours, theirs = protected(MASK), Mask(weights)
    front, back = built("masactrl", "masked", mask=ours, source_mask=theirs).rules[0].terms
    assert (front.k.tokens, front.where) == (theirs, ours)
    for mask, other in ((back.k.tokens, theirs), (back.where, ours)):
        assert torch.equal(mask.on((1, 4, 4)), 1.0 - other.on((1, 4, 4)))


@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize("target", ["a blue cat", "a light_ish pur_ple cat", "a cat", "a big red cat"])
@pytest.mark.parametrize(
    ("name", "variant", "site"),
    [(*each, site) for each in EACH if each[0] in ("p2p", "unified") for site in ("cross", "joint")],
)
def test_words_are_mapped_as_the_authors_write(name, variant, site, target, mode):
    """Explicit probabilities and word windows; image columns of a joint site are the target's own or the source's."""
    text = words(target=target, mode=mode, window=(0.0, 0.8), weights=[WordWeight(Word("cat"), 2.0)])
    run, there = built(name, variant, text=text, start=0.0, end=0.0, mask=None).start(), SITES[site]
    q, k, v = tensors(there, rows=len(run.branches))
    base, own = (probabilities(q[row], k[row]) for row in (2 if variant == "mutual" else 0, 1))
    image, columns = slice(0 if site == "cross" else LENGTH, None), slice(0, LENGTH)
    alpha = text.alpha.double()
    mapped = (base[:, image, columns] @ text.matrix.double()) * alpha + own[:, image, columns] * (1.0 - alpha)
    edited = own.clone()
    edited[:, image, columns] = (own[:, image, columns] if variant == "reweight" else mapped) * text.weights.double()
    if variant == "joint" and site == "joint":
        edited[:, image, image] = base[:, image, image]
    for index in range(10):
        out = asked(run, site, (q, k, v), index, chunks=("cond",))
        # A table with one row more than there are steps.
        near(out[1], (edited if index < int(0.8 * 11) else own) @ v[1].double(), 4e-6)
    assert variant != "reweight" or not any(rule.reads() for rule in run.rules)


def test_prompt_to_prompt_leaves_uncond_alone_and_costs_nothing_after_its_window():
    run = built("p2p", "text", start=0.0, end=0.4, mask=None).start()
    for site in SITES:
        call, late = tensors(SITES[site], rows=4), Counted()
        near(asked(run, site, call)[2:], attend(*call)[2:], 1e-6)
        assert torch.equal(asked(run, site, call, 9, late), attend(*call)) and len(late.calls) == 1


def test_self_attention_of_prompt_to_prompt_on_small_grids_of_a_unet_only():
    fine, coarse = self_site(grid=(1, 8, 8), latent=(1, 8, 8)), self_site(grid=(1, 4, 4), latent=(1, 8, 8))
    unet, flux = (built("p2p", family=family).rules[0] for family in ("sd15", "flux"))
    assert (unet.covers(fine), unet.covers(coarse)) == (False, True) and flux.covers(fine)
    # Whoever writes "all" has the second attention of SD3.5-medium too.
    assert built("p2p", family="sd3", layers="all").rules[0].covers(fine)


@pytest.mark.parametrize("base", ["source", "mutual"])
def test_self_attention_of_three_branches(base):
    run = built("unified", base, start=0.0, end=0.3, mask=None).start()
    q, k, v = tensors(SITES["self"], rows=3)
    assert run.branches == ("source", "target", "mutual")
    early, late = (asked(run, "self", (q, k, v), index, chunks=("cond",)) for index in (2, 3))
    assert torch.equal(early, attend(q[[0, 0, 0]], k[[0, 0, 0]], v[[0, 1, 0]]))
    assert torch.equal(late, attend(q[[0, 1, 1]], k[[0, 1, 0]], v[[0, 1, 0]]))


def test_the_feature_of_plug_and_play_is_chosen():
    chosen = built("pnp", feature=2).features[0]
    assert (chosen.stack, chosen.index, chosen.window.end) == ("output", 2, 1.0)
