"""Word maps: means over sites and steps, sums over the tokens of a word."""

import pytest
import torch

from retrace.attention.words import WordMaps


def test_means_over_sites_and_steps_and_sums_over_tokens():
    maps = WordMaps([(0, 2), (1,)])
    one, other = (torch.rand(3, 1, 4, 6, generator=torch.Generator().manual_seed(i)) for i in range(2))
    maps.add("site a", "step 0", 0, one)
    maps.add("site b", "step 0", 0, other)
    maps.add("site a", "step 1", 1, one)
    found = maps.maps()
    assert found.shape == (2, 2, 1, 4, 6)
    mean = (one + other) / 2
    torch.testing.assert_close(found[0], torch.stack([mean[0] + mean[2], mean[1]]))
    torch.testing.assert_close(found[1], torch.stack([one[0] + one[2], one[1]]))


def test_sites_of_all_grids_count_alike():
    maps = WordMaps([(0,)])
    maps.add(None, None, 0, torch.full((1, 2, 4, 6), 0.3))
    maps.add(None, None, 0, torch.full((1, 2, 2, 3), 0.1))
    maps.add(None, None, 0, torch.full((1, 2, 2, 3), 0.2))
    assert maps.finest == (2, 4, 6)
    torch.testing.assert_close(maps.maps(), torch.full((1, 1, 2, 4, 6), 0.2))
    assert maps.maps((2, 9, 5)).shape == (1, 1, 2, 9, 5)


def test_what_was_handed_in_stays_untouched():
    masses = torch.ones(1, 1, 2, 2)
    maps = WordMaps([(0,)])
    maps.add(None, None, 0, masses)
    maps.add(None, None, 0, masses)
    assert bool((masses == 1).all()) and not maps.is_empty


def test_nothing_seen_is_an_error():
    with pytest.raises(ValueError, match="must have seen a step"):
        WordMaps([(0,)]).maps()
