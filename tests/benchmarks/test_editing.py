"""The editing benchmark: its triples and figures against known answers, and a whole small run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from retrace.demo import world
from retrace.inversion import METHODS, psnr, ssim
from retrace_tests.benchmarks.modules import load


@pytest.fixture(scope="module")
def parts(root):
    return load(root, "editing_triples", "editing_figures", "editing_methods", "editing")


def test_triples_are_held_out_and_differ_in_one_word(parts):
    found = parts[0].triples(50)
    assert len(set(found)) == 200 and found == parts[0].triples(50)
    for triple in found:
        assert triple.source.held_out and triple.target.held_out
        words = [w for w in parts[1].WORDS if getattr(triple.source, w) != getattr(triple.target, w)]
        assert words == [triple.kind]
    assert {triple.kind for triple in found[:4]} == set(parts[0].KINDS)
    assert not any(t.source.held_out or t.target.held_out for t in parts[0].triples(5, held_out=False))


def test_regions_are_what_an_edit_must_touch(parts):
    """Source and drawn target agree outside the region but for noise, and the object or ground is inside it."""
    chosen = parts[0].triples(50)
    drawn = parts[0].draw(chosen)
    moved = np.abs(drawn.pictures.astype(int) - drawn.wanted).max(-1)
    for triple, difference, region in zip(chosen, moved, drawn.regions):
        # The world's own noise has a deviation of 2 grey levels.
        assert difference[~region].max(initial=0) <= 24, triple
        assert difference[region].max() > 60 and (~region).sum() >= 60, triple


def test_figures_see_what_they_are_for(parts):
    triples, figures, *_ = parts
    chosen = triples.triples(2)
    drawn = triples.draw(chosen)
    source, wanted = figures.as_pictures(drawn.pictures), figures.as_pictures(drawn.wanted)
    regions = torch.from_numpy(drawn.regions)
    assert [figures.verdict(t, p) for t, p in zip(chosen, drawn.wanted)] == [(True, True)] * 8
    assert [figures.verdict(t, p) for t, p in zip(chosen, drawn.pictures)] == [(False, False)] * 8
    # The wanted word changed, and another one with it.
    spoilt, _ = world.render([t.target.changed(size="big" if t.target.size == "small" else "small") for t in chosen])
    assert [figures.verdict(t, p) for t, p in zip(chosen, spoilt)] == [(False, True)] * 8
    # A change inside the region costs nothing, one of 0.1 outside it is 20 dB.
    inside = regions[:, None].expand_as(source)
    grey = torch.full_like(source, 0.5)
    assert float(figures.kept_psnr(torch.where(inside, grey, source), source, regions).min()) > 100.0
    assert torch.allclose(figures.kept_ssim(torch.where(inside, grey, source), source, regions), torch.ones(8).double())
    off = figures.kept_psnr(torch.where(inside, grey, source + 0.1), source, regions)
    assert torch.allclose(off, torch.full((8,), 20.0, dtype=off.dtype), atol=1e-3)
    # With nothing inside, both are those of the package.
    nothing = torch.zeros_like(regions)
    ours = figures.kept_psnr(wanted, source, nothing)[3], figures.kept_ssim(wanted, source, nothing)[3]
    assert float(ours[0]) == pytest.approx(psnr(wanted[3:4], source[3:4]))
    assert float(ours[1]) == pytest.approx(ssim(wanted[3:4], source[3:4]))


def test_every_method_of_the_registry_has_a_row(parts):
    methods = parts[2]
    names = {name for name in methods.entries()}
    assert set(METHODS) <= names and {"infedit", "flowedit", "null_text", methods.BASELINE} <= names
    setting = methods.Setting(3.0, 0.8)
    assert methods.fitting(40, setting, lambda level: 3 * level) == (13, 16)


def test_a_small_run_writes_everything_and_is_resumed(parts, tmp_path, capsys):
    folder = tmp_path / "results"
    names = ["naive DDIM, cfg 7.5", "euler", "edict", "flowedit"]
    command = ["--count", "1", "--budget", "8", "--workers", "0", "--kinds", "flow", "--output", str(folder)]
    parts[3].main([*command, "--entries", *names])
    report = json.loads((folder / "editing.json").read_text())
    own = {row["job"]["entry"]: row for row in report["rows"] if row["job"]["masked"]}
    assert set(own) == set(names) and report["provenance"]["commit"]
    for row in own.values():
        assert 0 < row["calls"] <= 12 and row["equal_outside"] and 0 <= row["free"]["all"]["success"] <= 100
    assert own["euler"]["calls"] <= 8 and own["flowedit"]["calls"] <= 8
    text = (folder / "editing.md").read_text()
    assert all(f"| {name}" in text or f"| **{name}**" in text for name in names) and "Not beaten" in text
    # What was not searched for is said.
    assert "but for those of naive DDIM, cfg 7.5, which were chosen by hand" in text
    for name in ("editing.png", "editing.jpg"):
        with Image.open(folder / name) as picture:
            assert picture.size[0] > 400
    capsys.readouterr()
    parts[3].main([*command, "--entries", *names])
    assert ", 0 to measure" in capsys.readouterr().err
