"""The measured noise is that which was added, whatever the picture shows."""

import pytest
import torch

from retrace.demo.world import Scene, render
from retrace.restoration.noise_level import noise_level


def noisy(sigma, seed=0):
    scenes = [Scene("big", "red", "star", "left", "cyan"), Scene("small", "black", "ring", "top", "white")]
    # The world's own grain is 2 levels: 0.016 in [-1, 1].
    x = torch.from_numpy(render(scenes, 3)[0]).double().permute(0, 3, 1, 2) / 127.5 - 1
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.3])
def test_it_is_what_was_added(sigma):
    assert noise_level(noisy(sigma)) == pytest.approx((sigma**2 + 0.016**2) ** 0.5, rel=0.06)


def test_a_hole_does_not_count():
    y = noisy(0.1)
    seen = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    seen[..., :60, :] = False
    y = torch.where(seen, y, torch.zeros_like(y))
    assert noise_level(y) < 0.02
    assert noise_level(y, seen) == pytest.approx(0.1, rel=0.15)


def test_odd_sides_and_a_refusal():
    assert noise_level(noisy(0.1)[..., :63, :61]) == pytest.approx(0.1, rel=0.1)
    with pytest.raises(ValueError, match="must show 2 x 2 pixels") as caught:
        noise_level(torch.zeros(1, 1, 1, 5))
    assert str(caught.value).endswith(".")
