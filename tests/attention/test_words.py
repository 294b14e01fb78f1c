"""Word maps: means over sites and steps, sums over the tokens of a word, on the grid that suits them."""

import pytest
import torch

from retrace.attention import Layers, Site, Step, Window
from retrace.attention.word_list import parse_words
from retrace.attention.words import WordMaps, word_probe
from retrace_tests.attention.prompts import sd3, sd15

STEP = Step(0, 10, 1.0)


def site(rows, columns, latent=(1, 64, 64), frames=1):
    grid = (frames, rows, columns)
    return Site("block", 0, 0, "cross", 0, 0.0, (0, rows * columns * frames), (0, 12), grid, latent)


def test_means_over_sites_and_steps_and_sums_over_tokens():
    maps = WordMaps([(0, 2), (1,)])
    one, other = (torch.rand(3, 1, 4, 6, generator=torch.Generator().manual_seed(i)) for i in range(2))
    before = one.clone()
    with pytest.raises(ValueError, match="must have seen a step"):
        maps.maps()
    for item, masses in ((0, one), (0, other), (1, one)):
        maps.add(site(4, 6), STEP, item, masses)
    found = maps.maps()
    assert found.shape == (2, 2, 1, 4, 6) and torch.equal(one, before)
    mean = (one + other) / 2
    torch.testing.assert_close(found[0], torch.stack([mean[0] + mean[2], mean[1]]))
    torch.testing.assert_close(found[1], torch.stack([one[0] + one[2], one[1]]))


@pytest.mark.parametrize(
    ("latent", "grids", "wanted"),
    [
        ((1, 64, 64), [(64, 64), (32, 32), (16, 16), (8, 8)], (16, 16)),  # SD1.5 at 512 x 512
        ((1, 64, 96), [(32, 48), (16, 24), (8, 12)], (16, 24)),
        ((1, 128, 128), [(64, 64), (32, 32)], (32, 32)),  # SDXL at 1024 x 1024
        ((1, 128, 128), [(64, 64)], (64, 64)),  # a transformer with one grid
        ((1, 16, 16), [(16, 16), (8, 8)], (16, 16)),
    ],
)
def test_sites_of_one_grid_count(latent, grids, wanted):
    maps = WordMaps([(0,)])
    for rows, columns in grids:
        maps.add(site(rows, columns, latent), STEP, 0, torch.full((1, 1, rows, columns), 1.0 / rows))
    assert maps.grid == (1, *wanted) and maps.maps().shape == (1, 1, 1, *wanted)
    torch.testing.assert_close(maps.maps(), torch.full((1, 1, 1, *wanted), 1.0 / wanted[0]))


def test_probe_of_words():
    words = parse_words("lightish, cat#2")
    probe = word_probe("p", sd15("a light_ish cat and a cat"), words, "target", Layers.parse("0.3-1.0"), Window(0, 0.5))
    assert probe.tokens == (2, 3, 7) and probe.length == 12 and probe.branch == "target"
    maps = probe.make()
    assert maps is not probe.make()
    masses = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 2, 2) + 1.0
    maps.add(site(2, 2), STEP, 0, masses)
    assert maps.maps()[0, :, 0, 0, 0].tolist() == [3.0, 3.0]
    assert word_probe("p", sd3("a red cat"), parse_words("cat"), "source").tokens == (3, 14)
    with pytest.raises(ValueError, match="words must name at least one word"):
        word_probe("p", sd15("a"), [], "source")
    with pytest.raises(ValueError, match="'dog' must be in the prompt"):
        word_probe("p", sd15("a cat"), parse_words("dog"), "source")
