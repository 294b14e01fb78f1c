"""Edits with blends of the latent and with further branches, on the networks of diffusers."""

import pytest
import torch

from retrace.attention import AttentionPlan, Layers, Rule, Settings, Take, Term, Window, get_preset
from retrace.attention.local_blend import LocalBlend, with_local_blend
from retrace.attention.token_map import token_map
from retrace.attention.tokens import Prompt, Segment, Token
from retrace.attention.word_list import Word
from retrace.backends.attended_infedit import attended_infedit
from retrace.backends.diffusers_attention import Prompts, attended_denoiser, attended_replay
from retrace.inversion import EditOptions, InfEdit, blend, relative_error, replay
from retrace_tests.backends import tiny

STEPS, SIZE = tiny.STEPS, (8, 12)


@pytest.fixture(params=["sd15", "sd3"])
def model(request):
    return tiny.model(request.param)


@pytest.fixture
def forwards(model):
    """Rows of every forward of the network."""
    found = []
    hook = model.network.register_forward_pre_hook(lambda _, given: found.append(given[0].shape[0]))
    yield found
    hook.remove()


def prompt(*words):
    """A prompt of the five keys of tiny.cond."""
    tokens = [Token(word, f"{word} ".encode(), "word") for word in words]
    return Prompt(" ".join(words), (Segment("clip", (Token(0, b"", "start"), *tokens, Token(1, b"", "end"))),))


def conds():
    return tiny.cond(rows=2), tiny.cond(1, rows=2), tiny.cond(2, rows=2)


def reading(window=(0.0, 1.0)):
    rule = Rule("test", (Term(k=Take(), v=Take()),), Layers.parse("all"), ("self", "joint"), Window(*window))
    return AttentionPlan((rule,))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_local_blend_with_a_mask_is_the_blend_of_a_replay(model, cfg):
    source, target, uncond = conds()
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., :4] = 1.0
    with torch.inference_mode():
        record = tiny.inverted(model, source)
        plan = with_local_blend(reading((0.0, 0.5)), LocalBlend(mask=mask, start=0.0))
        found = attended_replay(model, record, plan, Prompts(source, target, uncond, cfg))
        denoiser = attended_denoiser(model, record, reading((0.0, 0.5)), Prompts(source, target, uncond, cfg))
        wanted = replay(record, denoiser, denoiser, after_step=blend(record, mask))
        free = replay(record, denoiser, denoiser)
    assert torch.equal(found, wanted) and not torch.equal(found, free)
    kept = (mask == 0.0).expand_as(found)
    assert torch.equal(found[kept], record.x0[kept])


def test_a_local_blend_reads_its_words_and_keeps_the_rest(model):
    source, target, uncond = conds()
    text = token_map(prompt("a", "red", "ball"), prompt("a", "blue", "ball"))
    plan = get_preset("p2p").build(Settings(text=text), "sd15" if model.space == "ve" else "sd3")
    how = LocalBlend(threshold=0.5, how="quantile", start=0.5)
    with torch.inference_mode():
        record = tiny.inverted(model, source)
        prompts = Prompts(source, target, uncond, 2.0)
        found = attended_replay(model, record, with_local_blend(plan, how, [Word("ball")]), prompts)
        free = attended_replay(model, record, plan, prompts)
    kept = (found == record.x0).all(1)
    assert 0 < int(kept.sum()) < kept.numel() and not bool((free == record.x0).all(1).any())


def test_the_hook_of_a_mask_comes_after_the_blend(model):
    source, target, _ = conds()
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., :2, :] = 1.0
    everywhere = with_local_blend(reading(), LocalBlend(mask=torch.ones(1, 1, *SIZE), start=0.0))
    with torch.inference_mode():
        record = tiny.inverted(model, source)
        found = attended_replay(model, record, everywhere, Prompts(source, target), after_step=blend(record, mask))
    kept = (mask == 0.0).expand_as(found)
    assert torch.equal(found[kept], record.x0[kept]) and not torch.equal(found, record.x0)


def test_the_source_is_asked_only_where_a_rule_reads(model, forwards):
    source, target, uncond = conds()
    with torch.inference_mode():
        record = tiny.inverted(model, source)
        before = len(forwards)
        attended_replay(model, record, reading((0.0, 0.5)), Prompts(source, target, uncond, 2.0))
    # Source, target and negative in two steps, then two forwards a step.
    assert len(forwards) - before == 2 * 3 + 2 * 2


def test_infedit_without_rules_is_the_plain_edit(model):
    source, target, uncond = conds()
    x0, sigmas = tiny.latent(), model.schedule(*SIZE).grid(STEPS)
    with torch.inference_mode():
        denoisers = model.denoiser(x0, source), model.denoiser(x0, target, uncond, 2.0)
        wanted = InfEdit().edit(*denoisers, x0, sigmas, STEPS, EditOptions(seed=5))
        prompts, options = Prompts(source, target, uncond, 2.0), EditOptions(seed=5)
        found = attended_infedit(model, AttentionPlan(), x0, sigmas, STEPS, prompts, options=options)
    assert relative_error(found, wanted) < 1e-6 < 1e-3 < relative_error(found, x0)


@pytest.mark.parametrize(("cfg", "each"), [(1.0, 3), (2.0, 5)])
def test_unified_control_has_three_branches(model, forwards, cfg, each):
    source, target, uncond = conds()
    text = token_map(prompt("a", "red", "ball"), prompt("a", "blue", "ball"), "refine")
    plan = get_preset("unified").build(Settings(text=text), "sd15" if model.space == "ve" else "sd3")
    x0, sigmas = tiny.latent(), model.schedule(*SIZE).grid(STEPS)
    with torch.inference_mode():
        found = attended_infedit(model, plan, x0, sigmas, STEPS, Prompts(source, target, uncond, cfg))
        # A guided target reads from the uncond part of the source too; the third branch has none.
        assert len(forwards) == each * STEPS
        plain = attended_infedit(model, AttentionPlan(), x0, sigmas, STEPS, Prompts(source, target, uncond, cfg))
        same = token_map(text.source, text.source, "refine")
        plan = get_preset("unified").build(Settings(text=same), "sd15" if model.space == "ve" else "sd3")
        back = attended_infedit(model, plan, x0, sigmas, STEPS, Prompts(source, source))
    assert relative_error(found, plain) > 1e-4
    assert relative_error(back, x0) < 1e-5


def test_what_cannot_be_done_is_said(model):
    source, target, _ = conds()
    text = token_map(prompt("a", "red", "ball"), prompt("a", "blue", "ball"), "refine")
    unified = get_preset("unified").build(Settings(text=text, variant="mutual"), "sd15")
    blended = with_local_blend(reading(), LocalBlend(mask=torch.ones(1, 1, *SIZE)))
    x0, sigmas = tiny.latent(), model.schedule(*SIZE).grid(STEPS)
    with torch.inference_mode():
        record = tiny.inverted(model, source)
        with pytest.raises(ValueError, match="use attended_replay"):
            attended_denoiser(model, record, blended, Prompts(source, target))
        with pytest.raises(ValueError, match="further branch 'mutual'; use it with InfEdit"):
            attended_replay(model, record, unified, Prompts(source, target))
        with pytest.raises(ValueError, match="got a circle; use base source"):
            attended_infedit(model, unified, x0, sigmas, STEPS, Prompts(source, target))
