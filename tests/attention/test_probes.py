"""Word masses: what image tokens attend to, before any edit."""

import pytest
import torch

from retrace.attention import AttentionPlan, Call, Layers, Probe, Rows, Rule, Step, Take, Term, Window, probes
from retrace_tests.attention.problems import STEP, attend, cross_site, joint_site, pair, probabilities, tensors


class Readings(list):
    def add(self, site, step, item, masses):
        self.append((site, step, item, masses))


def read(site, q, k, v, tokens, rows=None, rules=(), mask=None, **about):
    run = AttentionPlan(rules=rules, probes=(Probe("heat", tokens, Readings, **about),)).start()
    out = run.run(site, rows or pair(), STEP, Call(q, k, v, attend, mask))
    return run.maps["heat"], out


def joint(site, q, k):
    """Mean over heads of the rows of image tokens and the columns of text tokens."""
    return probabilities(q, k).mean(0)[slice(*site.image), slice(*site.text)]


@pytest.mark.parametrize("length", ["text", "exact"])
def test_cross_sites(length):
    site = cross_site(text=7, grid=(2, 3, 4))
    q, k, v = tensors(site)
    found, out = read(site, q, k, v, (0, 2, 6), read=length)
    [(where, step, item, masses)] = found
    want = probabilities(q[0], k[0]).mean(0)[:, [0, 2, 6]].T.reshape(3, 2, 3, 4)
    assert (where, step, item) == (site, STEP, 0) and masses.dtype == torch.float32
    torch.testing.assert_close(masses.double(), want, rtol=0, atol=1e-6)
    assert torch.equal(out, attend(q, k, v))


@pytest.mark.parametrize("text_first", [True, False])
def test_joint_sites(text_first):
    """Text keys alone give the joint rows renormalised, head by head; all keys give the joint rows."""
    site = joint_site(text=5, text_first=text_first)
    q, k, v = tensors(site)
    whole = probabilities(q[0], k[0])[:, slice(*site.image), slice(*site.text)]
    renormalised = (whole / whole.sum(-1, keepdim=True)).mean(0)
    for reading, want in (("exact", whole.mean(0)), ("text", renormalised)):
        masses = read(site, q, k, v, (0, 1, 4), read=reading)[0][0][3]
        torch.testing.assert_close(masses.flatten(1).T.double(), want[:, [0, 1, 4]], rtol=0, atol=1e-6)


def test_masses_of_all_words_add_up_to_one():
    site = joint_site(text=5)
    q, k, v = tensors(site)
    masses = read(site, q, k, v, tuple(range(5)))[0][0][3]
    torch.testing.assert_close(masses.sum(0), torch.ones(1, 4, 4))


@pytest.mark.parametrize("reading", ["text", "exact"])
def test_chunked_is_unchunked(monkeypatch, reading):
    site = joint_site(text=5)
    q, k, v = tensors(site)
    mask = torch.randn(2, 1, 21, 21, generator=torch.Generator().manual_seed(4))
    whole = read(site, q, k, v, (1, 3), read=reading, mask=mask)[0][0][3]
    monkeypatch.setattr(probes, "CHUNK", 3 * 21 * 5)
    torch.testing.assert_close(read(site, q, k, v, (1, 3), read=reading, mask=mask)[0][0][3], whole)


@pytest.mark.parametrize("boolean", [False, True])
def test_padding_that_the_host_masks_has_no_mass(boolean):
    site = cross_site(text=6)
    q, k, v = tensors(site)
    mask = torch.zeros(2, 1, 1, 6)
    mask[..., 4:] = float("-inf")
    mask = mask == 0 if boolean else mask
    masses = read(site, q, k, v, (0, 4, 5), mask=mask)[0][0][3]
    want = probabilities(q[0], k[0][:, :4]).mean(0)[:, 0]
    torch.testing.assert_close(masses[0].flatten().double(), want, rtol=0, atol=1e-6)
    assert not masses[1:].any()


def test_repeated_text_counts_once():
    site = cross_site(text=12)
    q, _, _ = tensors(site)
    _, k, v = tensors(cross_site(text=4))
    masses = read(site, q, k.repeat(1, 1, 3, 1), v.repeat(1, 1, 3, 1), (2,), length=4)[0][0][3]
    want = probabilities(q[0], k[0]).mean(0)[:, 2]
    torch.testing.assert_close(masses.flatten().double(), want, rtol=0, atol=1e-6)


def test_shared_key_heads():
    site = joint_site(text=5)
    q, k, v = tensors(site, heads=4, key_heads=2)
    masses = read(site, q, k, v, (1,), read="exact")[0][0][3]
    want = joint(site, q[0], k[0].repeat_interleave(2, 0))[:, 1]
    torch.testing.assert_close(masses.flatten().double(), want, rtol=0, atol=1e-6)


def test_it_reads_its_branch_before_the_edit():
    site = cross_site(text=7)
    q, k, v = tensors(site, rows=4)
    rows = Rows(("source", "target") * 2, ("cond", "cond", "uncond", "uncond"), (0,) * 4)
    rule = Rule("words", (Term(q=Take(), k=Take()),), kinds=("cross",), group="all")
    found, out = read(site, q, k, v, (3,), rows=rows, rules=(rule,), branch="target")
    [(_, _, _, masses)] = found
    want = probabilities(q[1], k[1]).mean(0)[:, 3]
    torch.testing.assert_close(masses.flatten().double(), want, rtol=0, atol=1e-6)
    assert not torch.equal(out, attend(q, k, v))


def test_only_where_and_when_it_is_asked_for():
    site = cross_site(text=7, latent=(1, 8, 8))
    q, k, v = tensors(site)
    for about in (
        {"layers": Layers.parse("input")},
        {"window": Window(0.5, 1.0)},
        {"limit": 0.25},
        {"chunks": ("uncond",)},
        {"branch": "mutual"},
        {"kinds": ("joint",)},
    ):
        assert not read(site, q, k, v, (0,), **about)[0]
    probe = AttentionPlan(probes=(Probe("heat", (0,), Readings, window=Window(0.5, 1.0)),)).start()
    assert not probe.active(Step(4, 10, 1.0)) and probe.active(Step(5, 10, 1.0))


def test_refusals():
    site = cross_site(text=7)
    with pytest.raises(ValueError, match="tokens of probe heat must lie within the 7 text tokens .* got 7"):
        read(site, *tensors(site), (0, 7))
    with pytest.raises(ValueError, match="kinds of a probe must be"):
        Probe("heat", (0,), Readings, kinds=("self",))
