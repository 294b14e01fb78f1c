"""Word masses: what image tokens attend to, before any edit."""

import pytest
import torch

from retrace.attention import AttentionPlan, Call, Layers, Probe, Rows, Step, Window, probes
from retrace_tests.attention.forms import STRUCTURE, rule
from retrace_tests.attention.problems import STEP, attend, cross_site, joint_site, pair, probabilities, tensors


class Readings(list):
    def add(self, site, step, item, masses):
        self.append((site, step, item, masses))


def read(site, q, k, v, tokens, rows=None, rules=(), mask=None, **about):
    run = AttentionPlan(rules=rules, probes=(Probe("heat", tokens, Readings, **about),)).start()
    out = run.run(site, rows or pair(), STEP, Call(q, k, v, attend, mask))
    return run.maps["heat"], out


def masses(*arguments, **about):
    """What one reading gives, (image tokens, tokens)."""
    ((_, _, _, found),) = read(*arguments, **about)[0]
    assert found.dtype == torch.float32
    return found.flatten(1).T.double()


def close(found, want):
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", [3, 1])
@pytest.mark.parametrize("reading", ["text", "exact"])
@pytest.mark.parametrize(
    "site", [cross_site(text=5, grid=(2, 3, 4)), joint_site(text=5), joint_site(text=5, text_first=False)]
)
def test_masses_are_means_over_heads(site, reading, heads, monkeypatch):
    """Text keys alone give the joint rows renormalised, head by head; all keys give the joint rows; few at a time."""
    q, k, v = tensors(site, key_heads=heads)
    whole = probabilities(q[0], k[0].repeat_interleave(3 // heads, 0))[:, slice(*site.image), slice(*site.text)]
    want = (whole / whole.sum(-1, keepdim=True) if reading == "text" else whole).mean(0)
    places, out = read(site, q, k, v, (0, 1, 4), read=reading)
    assert [place[:3] for place in places] == [(site, STEP, 0)] and places[0][3].shape == (3, *site.grid)
    assert torch.equal(out, attend(q, k, v))
    close(masses(site, q, k, v, (0, 1, 4), read=reading), want[:, [0, 1, 4]])
    monkeypatch.setattr(probes, "CHUNK", 3 * 3 * 5)
    mask = torch.randn(2, 1, q.shape[2], k.shape[2], generator=torch.Generator().manual_seed(4))
    few = masses(site, q, k, v, (1, 3), read=reading, mask=mask)
    monkeypatch.undo()
    close(few, masses(site, q, k, v, (1, 3), read=reading, mask=mask))


@pytest.mark.parametrize("boolean", [False, True])
def test_padding_that_the_host_masks_has_no_mass_and_repeated_text_counts_once(boolean):
    site, mask = cross_site(text=6), torch.zeros(2, 1, 1, 6)
    q, k, v = tensors(site)
    mask[..., 4:] = float("-inf")
    want = probabilities(q[0], k[0][:, :4]).mean(0)
    found = masses(site, q, k, v, (0, 4, 5), mask=mask == 0 if boolean else mask)
    close(found[:, 0], want[:, 0])
    assert not found[:, 1:].any()
    k, v = (tensor[:, :, :4].repeat(1, 1, 3, 1) for tensor in (k, v))
    close(masses(cross_site(text=12), q, k, v, (2,), length=4)[:, 0], want[:, 2])


def test_it_reads_its_branch_before_the_edit():
    site = cross_site(text=7)
    q, k, v = tensors(site, rows=4)
    rows = Rows(("source", "target") * 2, ("cond", "cond", "uncond", "uncond"), (0,) * 4)
    about = {"rows": rows, "rules": (rule(STRUCTURE, group="all"),), "branch": "target"}
    close(masses(site, q, k, v, (3,), **about)[:, 0], probabilities(q[1], k[1]).mean(0)[:, 3])
    assert not torch.equal(read(site, q, k, v, (3,), **about)[1], attend(q, k, v))


@pytest.mark.parametrize(
    "about",
    [
        {"layers": Layers.parse("input")},
        {"window": Window(0.5, 1.0)},
        {"limit": 0.25},
        {"chunks": ("uncond",)},
        {"branch": "mutual"},
        {"kinds": ("joint",)},
    ],
)
def test_only_where_and_when_it_is_asked_for(about):
    site = cross_site(text=7, latent=(1, 8, 8))
    assert not read(site, *tensors(site), (0,), **about)[0]


def test_a_window_and_refusals():
    probe = AttentionPlan(probes=(Probe("heat", (0,), Readings, window=Window(0.5, 1.0)),)).start()
    assert not probe.active(Step(4, 10, 1.0)) and probe.active(Step(5, 10, 1.0))
    site = cross_site(text=7)
    with pytest.raises(ValueError, match="tokens of probe heat must lie within the 7 text tokens .* got 7"):
        read(site, *tensors(site), (0, 7))
    with pytest.raises(ValueError, match="kinds of a probe must be"):
        Probe("heat", (0,), Readings, kinds=("self",))
