"""Presets: what each method does to q, k and v, its official defaults, and what all of them share."""

import math

import pytest
import torch

from retrace.attention import (
    FAMILIES,
    OWN,
    PRESETS,
    SOURCE,
    TARGET,
    Add,
    Join,
    Layers,
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
# Adding doubles the values of equal rows.
@pytest.mark.parametrize(("name", "variant"), [entry for entry in EVERY if entry != ("rf_edit", "add")])
def test_equal_branches_stay_equal(name, variant, site):
    """Same prompt, latent and noise: the edit is the source, whatever the method and the step."""
    same = words(target="a red cat")
    wanted = set(get_preset(name).needs_mask) & {variant, "*"}
    run = built(name, variant, text=same, mask=MASK if wanted else None).start()
    rows = rows_of(run)
    one = tensors(SITES[site], rows=1)
    q, k, v = (tensor.repeat(len(rows), 1, 1, 1) for tensor in one)
    whole = attend(*one)
    gathered = variant == "masked" and site != "cross"
    for index in (0, 4, 9):
        out = run.run(SITES[site], rows, Step(index, 10, 1.0), q, k, v, attend)
        for row in range(len(rows)):
            edited = rows.branches[row] != "source"
            # Reading the foreground alone is another softmax, for equal rows too.
            assert (edited and gathered) or float((out[row] - whole[0]).abs().max()) <= 2e-6


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_the_source_stays_untouched_and_the_rest_is_finite(name, variant, site):
    run = built(name, variant).start()
    rows = rows_of(run)
    q, k, v = tensors(SITES[site], rows=len(rows))
    plain = attend(q, k, v)
    for index in (0, 9):
        out = run.run(SITES[site], rows, Step(index, 10, 1.0), q, k, v, attend)
        assert out.shape == plain.shape and bool(out.isfinite().all())
        for row, branch in enumerate(rows.branches):
            if branch == "source":
                assert float((out[row] - plain[row]).abs().max()) <= 1e-6


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_it_changes_something_within_its_default_window_and_nothing_at_strength_0(name, variant):
    preset = get_preset(name)
    for family, sites in (("sd15", ("self", "cross")), ("flux", ("joint",))):
        if family not in preset.families():
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
                out = run.run(SITES[site], rows, step, q, k, v, attend)
                changed |= not torch.equal(out, attend(q, k, v))
            assert changed == bool(strength)
            assert start < end


@pytest.mark.parametrize("family", [*FAMILIES, "something new"])
@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_every_default_can_be_read(name, variant, family):
    preset = get_preset(name)
    if name == "pnp" and family not in ("sd15", "sdxl"):
        with pytest.raises(ValueError, match="Preset pnp must run on sd15, sdxl, got"):
            preset.build(Settings(), family)
        return
    Layers.parse(preset.default_layers(family, variant))
    plan = built(name, variant, family, layers="", start=None, end=None)
    assert plan.rules and plan.source_for == preset.source_for
    assert preset.label and preset.description.endswith(".") and "arXiv:" in preset.reference
    assert preset.__doc__ and preset.mask_note.endswith(".")


# Layers of the official codes, as running numbers of their lists.
FLUX = {
    "stable_flow": [0, 1, 17, 18, 25, 28, 53, 54, 56],
    "free_flux": [1, 2, 4, 26, 30, 54, 55],
    "rf_edit": list(range(39, 57)),
    "structure": list(range(19, 57)),
}


@pytest.mark.parametrize("name", FLUX)
def test_official_layers_of_flux(name):
    layers = Layers.parse(get_preset(name).default_layers("flux"))
    doubles = [joint_site(stack="double", index=i, number=i, depth=i / 56) for i in range(19)]
    singles = [joint_site(stack="single", index=i, number=19 + i, depth=(19 + i) / 56) for i in range(38)]
    assert [site.number for site in doubles + singles if layers.matches(site)] == FLUX[name]


def test_official_layers_of_sd15():
    """Self sites in running order: input 1, 2, 4, 5, 7, 8, the middle, output 3 to 11."""
    blocks = [("input", i) for i in (1, 2, 4, 5, 7, 8)] + [("middle", 0)] + [("output", i) for i in range(3, 12)]
    sites = [self_site(stack=s, index=i, number=n, depth=n / 15) for n, (s, i) in enumerate(blocks)]

    def of(name, variant=""):
        layers = Layers.parse(get_preset(name).default_layers("sd15", variant))
        return [site.number for site in sites if layers.matches(site)]

    assert of("masactrl") == list(range(10, 16)) and of("reference", "replace") == list(range(1, 16))
    assert of("structure") == of("pnp") == list(range(8, 16))


def test_windows_of_the_papers():
    def steps(name, family, total, variant=""):
        window = get_preset(name).default_window(family, variant)
        rule = built(name, variant, family, start=window[0], end=window[1]).rules[0]
        return [index for index in range(total) if rule.acts(Step(index, total, 1.0))]

    assert steps("masactrl", "sd15", 50) == list(range(4, 50))
    assert steps("pnp", "sd15", 50) == list(range(25))
    assert steps("rf_edit", "flux", 25) == list(range(5)) and steps("rf_edit", "hunyuan_video", 25) == list(range(3))
    assert steps("p2p", "sd15", 50) == list(range(20))
    assert steps("free_flux", "flux", 50, "background") == list(range(44))
    feature = built("pnp", start=None, end=None).features[0]
    assert [i for i in range(50) if feature.acts(Step(i, 50, 1.0))] == list(range(40))
    assert (feature.stack, feature.index) == ("output", 4)


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
    for name, variant in (("kv_edit", ""), ("masactrl", "masked"), ("free_flux", "background")):
        with pytest.raises(ValueError, match="must have a mask, got none"):
            built(name, variant, mask=None)


def test_masked_mutual_attention_tells_foreground_from_background():
    """The target's mask says which queries, the source's which keys."""
    ours, theirs = (torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(seed)) > 0.5 for seed in (1, 2))
    about = {"mask": Mask(ours.float()), "source_mask": Mask(theirs.float())}
    run = built("masactrl", "masked", **about).start()
    site = SITES["self"]
    q, k, v = tensors(site)
    out = run.run(site, Rows(("source", "target"), ("cond",) * 2, (0, 0)), Step(0, 10, 1.0), q, k, v, attend)
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
        out = run.run(site, rows, Step(index, 10, 1.0), q, k, v, attend)
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
    out = run.run(site, rows, Step(0, 10, 1.0), q, k, v, attend)
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
        out = run.run(site, rows, Step(0, 10, 1.0), q, k, v, counted)
        plain = attend(q, k, v)
        assert float((out[2:] - plain[2:]).abs().max()) <= 1e-6
        late = Counted()
        assert torch.equal(run.run(site, rows, Step(9, 10, 1.0), q, k, v, late), plain)
        assert len(late.calls) == 1


def test_self_attention_of_prompt_to_prompt_on_small_grids_of_a_unet_only():
    fine, coarse = self_site(grid=(1, 8, 8), latent=(1, 8, 8)), self_site(grid=(1, 4, 4), latent=(1, 8, 8))
    unet, flux = (built("p2p", family=family).rules[0] for family in ("sd15", "flux"))
    assert (unet.covers(fine), unet.covers(coarse)) == (False, True) and flux.covers(fine)


@pytest.mark.parametrize("name", ["structure", "p2p"])
def test_queries_and_keys_leave_the_second_attention_of_sd35_medium_alone(name):
    """Shin et al. 2025: it sees the image only. Whoever writes "all" has it too; keys and values take it as well."""
    whole, second = joint_site(stack="block", depth=0.0), self_site(stack="block", depth=0.0)
    own, every = (built(name, family="sd3", layers=layers).rules[0] for layers in ("", "all"))
    assert (own.covers(whole), own.covers(second)) == (True, False) and every.covers(second)
    assert built("masactrl", family="sd3", layers="").rules[0].covers(second)


def test_reweight_alone_reads_no_source():
    heavy = words(source="a blue cat", weights=[WordWeight(Word("blue"), 3.0)])
    plan = built("p2p", "reweight", text=heavy, mask=None)
    run = plan.start()
    assert not any(rule.reads() for rule in run.rules)
    site = SITES["cross"]
    q, k, v = tensors(site, rows=2)
    out = run.run(site, Rows(("target",) * 2, ("cond", "uncond"), (0, 0)), Step(0, 10, 1.0), q, k, v, attend)
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
    early = run.run(SITES["self"], rows, Step(2, 10, 1.0), q, k, v, attend)
    assert torch.equal(early, attend(q[[0, 0, 0]], k[[0, 0, 0]], v[[0, 1, 0]]))
    late = run.run(SITES["self"], rows, Step(3, 10, 1.0), q, k, v, attend)
    assert torch.equal(late, attend(q[[0, 1, 1]], k[[0, 1, 0]], v[[0, 1, 0]]))
    q, k, v = tensors(SITES["cross"], rows=3)
    out = run.run(SITES["cross"], rows, Step(3, 10, 1.0), q, k, v, attend)
    there = 0 if base == "source" else 2
    alpha = found.alpha.double()
    mixed = (probabilities(q[there], k[there]) @ found.matrix.double()) * alpha
    mixed = mixed + probabilities(q[1], k[1]) * (1.0 - alpha)
    assert float((out[1].double() - mixed @ v[1].double()).abs().max()) <= 2e-6
    assert torch.equal(out[[0, 2]], attend(q, k, v)[[0, 2]])


def test_a_mask_of_the_source_is_read_or_refused():
    """Masked MasaCtrl reads it; every other preset and variant would ignore it."""
    for name, variant in EVERY:
        if (name, variant) == ("masactrl", "masked"):
            built(name, variant, source_mask=MASK)
            continue
        with pytest.raises(ValueError, match=f"source_mask must be left out for preset {name}"):
            built(name, variant, source_mask=MASK)


def test_the_feature_of_plug_and_play_is_chosen_or_refused():
    assert [built("pnp").features[0].index, built("pnp", family="sdxl").features[0].index] == [4, 1]
    chosen = built("pnp", feature=2).features[0]
    assert (chosen.stack, chosen.index, chosen.window.end) == ("output", 2, 1.0)
    with pytest.raises(ValueError, match="feature_block must be left out for preset structure, got 2"):
        built("structure", feature=2)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="preset must be one of .* got 'value'"):
        get_preset("value")
    with pytest.raises(ValueError, match="variant of masactrl must be one of mutual, union, masked, got 'join'"):
        get_preset("masactrl").build(Settings(variant="join"))
    with pytest.raises(ValueError, match="Preset p2p must have a token map"):
        get_preset("p2p").build(Settings())
