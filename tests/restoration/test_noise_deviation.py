"""The measured noise is that which was added, whatever the picture shows."""

import pytest
import torch

from retrace.demo.world import Scene, render
from retrace.restoration import noise_deviation
from retrace_tests.restoration.problems import unit


def noisy(sigma):
    scenes = [Scene("big", "red", "star", "left", "cyan"), Scene("small", "black", "ring", "top", "white")]
    # The world's own grain is 2 grey levels: 0.016 in [-1, 1].
    x = torch.from_numpy(render(scenes, 3)[0]).double().permute(0, 3, 1, 2) / 127.5 - 1
    return x + sigma * unit(*x.shape)


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.3])
def test_it_is_what_was_added(sigma):
    wanted = pytest.approx((sigma**2 + 0.016**2) ** 0.5, rel=0.06)
    assert noise_deviation(noisy(sigma)) == wanted and noise_deviation(noisy(sigma)[..., :63, :61]) == wanted


def test_a_hole_does_not_count():
    y = noisy(0.1)
    seen = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    seen[..., :60, :] = False
    y = torch.where(seen, y, torch.zeros_like(y))
    assert noise_deviation(y) < 0.02
    assert noise_deviation(y, seen) == pytest.approx(0.1, rel=0.15)
