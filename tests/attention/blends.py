"""What a blend of latents is tried on: runs whose word maps are known, and states that a sum would round."""

from types import SimpleNamespace

import torch

from retrace.attention.words import WordMaps

SHAPES = [(2, 4, 8, 12), (2, 4, 3, 8, 12)]


def run_of(**heats):
    """A run whose word maps hold these heats, (items, frames, h, w) each."""
    maps = {}
    for name, heat in heats.items():
        maps[name] = WordMaps([(0,), (1,)])
        for item, one in enumerate(heat):
            site = SimpleNamespace(grid=tuple(one.shape), latent=(len(one), 8, 12))
            maps[name].add(site, None, item, torch.stack([one, torch.zeros_like(one)]))
    return SimpleNamespace(maps=maps)


def heat(row, column, frames=1, items=(0, 1)):
    """A peak in one cell of a 4 x 6 grid."""
    maps = torch.full((2, frames, 4, 6), 0.01)
    maps[list(items), :, row, column] = 0.5
    return maps


def states(shape=SHAPES[0]):
    """1e8 swallows small differences."""
    generator = torch.Generator().manual_seed(0)
    powers = {"source": 4, "target": 0, "mutual": 2}
    return {name: torch.randn(shape, generator=generator) * 10.0**power for name, power in powers.items()}
