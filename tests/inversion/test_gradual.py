"""Which reference a pass looks at, and how far a pass moves the target."""

from dataclasses import replace

import pytest
import torch

from retrace.inversion import drawn, invert, moved, replay
from retrace_tests.inversion.problems import Mixture, full_grid


def record(batch=3, keep_path=True):
    mixture = Mixture("ve")
    return mixture, invert(mixture.denoiser("source"), mixture.sample(batch), full_grid("ve", 5), 4, "ddim", keep_path)


def test_draws_depend_on_the_picture_alone():
    found = drawn(4, 50, 7, [0, 1, 5])
    assert len(found) == 50 and all(len(row) == 3 for row in found)
    assert {number for row in found for number in row} == {0, 1, 2, 3}
    assert found == drawn(4, 50, 7, [0, 1, 5]) and found != drawn(4, 50, 8, [0, 1, 5])
    assert [row[2] for row in found] == [row[0] for row in drawn(4, 50, 7, [5])]
    assert [row[0] for row in found] != [row[1] for row in found]
    # More passes do not change those before.
    assert drawn(4, 60, 7, [0, 1, 5])[:50] == found
    assert set(drawn(1, 5, 0, [0, 1])) == {(0, 0)}


def test_rows_of_a_record():
    mixture, whole = record()
    part = whole.of_rows([2, 0, 2, 1])
    assert part.shape == (4, *whole.shape[1:])
    for mine, theirs in ((part.x0, whole.x0), (part.x, whole.x), *zip(part.path, whole.path, strict=True)):
        assert torch.equal(mine, theirs[[2, 0, 2, 1]])
    assert replace(whole, path=None).of_rows([1]).path is None
    one = replay(whole.of_rows([1]), mixture.denoiser("source"))
    assert torch.allclose(one, replay(whole, mixture.denoiser("source"))[1:2], rtol=0, atol=1e-12)


def test_alpha_weights_the_start():
    _, found = record()
    before = torch.zeros_like(found.x)
    assert moved(found, None, 0.3) is found and moved(found, before, 1.0) is found
    assert torch.equal(moved(found, before, 0.0).x, before)
    half = moved(found, before, 0.25)
    assert torch.allclose(half.x, 0.25 * found.x) and half.path is None and torch.equal(half.x0, found.x0)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got 2"):
        moved(found, before, 2.0)
