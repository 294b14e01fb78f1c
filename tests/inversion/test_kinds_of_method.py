"""The kinds of method that the core must carry as they are: pairs, residuals, embeddings, paired rules.

Each is the shortest true method of its kind, taken through invert, save, load and replay.
"""

from dataclasses import dataclass, replace

import pytest
import torch

from retrace.inversion import (
    METHODS,
    Method,
    MethodState,
    MisfitError,
    Step,
    adopt,
    blend,
    invert,
    load,
    mix,
    parameter,
    relative_error,
    replay,
    save,
    walk,
)
from retrace_tests.inversion.problems import Mixture, full_grid


def euler(denoiser, x, sigma, sigma_next):
    return x + (sigma_next - sigma) * denoiser.derivative(x, sigma)


@dataclass(frozen=True)
class Leapfrog(Method):
    """The two-step pair x_next = x_prev + (s_next - s_prev) * d(x, s); its own inverse, mate = x_{k-1}."""

    name = "leapfrog"
    label = "Leapfrog"
    description = "For tests."
    reference = "none"
    order = 2
    reversible = True
    min_index = 2

    def invert(self, denoiser, x0, sigmas, level, keep_path=False, on_step=None):
        path = [x0, euler(denoiser, x0, sigmas[0], sigmas[1])]
        for i in range(1, level):
            path.append(path[-2] + (sigmas[i + 1] - sigmas[i - 1]) * denoiser.derivative(path[-1], sigmas[i]))
        return MethodState(path[-1], mate=path[-2], path=tuple(path) if keep_path else None)

    def replay(self, inversion, source, target=None, after_step=None, on_step=None, device="cpu"):
        denoiser, sigmas = target or source, inversion.sigmas
        above, x = inversion.x.to(device), inversion.mate.to(device)
        for i in range(inversion.index - 1, 0, -1):
            above, x = x, above + (sigmas[i - 1] - sigmas[i + 1]) * denoiser.derivative(x, sigmas[i])
            x = x if after_step is None else after_step(x, i - 1)
        return x

    def evaluations(self, level, rising=True):
        return level if rising else level - 1


@dataclass(frozen=True)
class Residual(Method):
    """Independent noise per level from a seed; what each Euler step misses is stored and added back."""

    name = "residual"
    label = "Residual"
    description = "For tests."
    reference = "none"
    order = 1
    reversible = True
    seed: int = parameter(0, "Seed of the noise.", minimum=0, maximum=2**63 - 1)

    def invert(self, denoiser, x0, sigmas, level, keep_path=False, on_step=None):
        generator = torch.Generator().manual_seed(self.seed)
        path = [x0]
        for i in range(1, level + 1):
            noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
            path.append(mix(x0, noise, sigmas[i], denoiser.space, sigmas[0]))
        missed = [path[i - 1] - euler(denoiser, path[i], sigmas[i], sigmas[i - 1]) for i in range(1, level + 1)]
        return MethodState(path[-1], residuals=tuple(missed), seed=self.seed)

    def replay(self, inversion, source, target=None, after_step=None, on_step=None, device="cpu"):
        denoiser, sigmas, x = target or source, inversion.sigmas, inversion.x
        for i in range(inversion.index, 0, -1):
            x = euler(denoiser, x, sigmas[i], sigmas[i - 1]) + inversion.residuals[i - 1]
        return x

    def evaluations(self, level, rising=True):
        return level


@dataclass(frozen=True)
class Paired(Method):
    """No inversion: z <- x0 + f_tgt(z + x*_i - x0) - f_src(x*_i), f = Euler, x*_i drawn from the seed (FlowEdit)."""

    name = "paired"
    label = "Paired"
    description = "For tests."
    reference = "arXiv:2412.08629"
    order = 1
    reversible = True
    seed: int = parameter(0, "Seed of the noise.", minimum=0, maximum=2**63 - 1)

    def noised(self, x0, sigmas, level, space):
        generator = torch.Generator().manual_seed(1000 * self.seed + level)
        return mix(x0, torch.randn(x0.shape, generator=generator, dtype=x0.dtype), sigmas[level], space, sigmas[0])

    def invert(self, denoiser, x0, sigmas, level, keep_path=False, on_step=None):
        return MethodState(self.noised(x0, sigmas, level, denoiser.space), seed=self.seed)

    def replay(self, inversion, source, target=None, after_step=None, on_step=None, device="cpu"):
        x0, sigmas = inversion.x0.to(device), inversion.sigmas
        z = x0
        for i in range(inversion.index, 0, -1):
            noised = self.noised(x0, sigmas, i, inversion.space)
            step = (sigmas[i], sigmas[i - 1])
            z = x0 + euler(target or source, z + noised - x0, *step) - euler(source, noised, *step)
        return z

    def evaluations(self, level, rising=True):
        return 0 if rising else 2 * level


@dataclass(frozen=True)
class Nulled(Method):
    """Euler with one unconditional embedding a step on the way down, put into the record by a fit."""

    name = "nulled"
    label = "Nulled"
    description = "For tests."
    reference = "arXiv:2211.09794"
    order = 1

    def invert(self, denoiser, x0, sigmas, level, keep_path=False, on_step=None):
        return METHODS["euler"]().invert(denoiser, x0, sigmas, level, keep_path, on_step)

    def replay(self, inversion, source, target=None, after_step=None, on_step=None, device="cpu"):
        def step(denoiser, x, sigma, sigma_next):
            level = inversion.sigmas.index(sigma)
            return Step(euler(denoiser.with_embedding(inversion.embeddings[level - 1]), x, sigma, sigma_next), x)

        return walk(target or source, inversion.x, inversion.falling, step, on_step, after_step)

    def evaluations(self, level, rising=True):
        return level


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for method in (Leapfrog, Residual, Paired, Nulled):
        monkeypatch.setitem(METHODS, method.name, method)


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize("name", ["leapfrog", "residual", "paired"])
def test_exact_kinds_come_back_exactly(name, space, tmp_path):
    mixture = Mixture(space)
    clean, denoiser = mixture.sample(2), mixture.denoiser(cfg=2.0)
    record = invert(denoiser, clean, full_grid(space, 20), 14, name)
    save(record, tmp_path / "record.safetensors")
    again = load(tmp_path / "record.safetensors")
    source = mixture.denoiser(cfg=2.0)
    assert relative_error(replay(again, source), clean) < 1e-12
    assert source.evaluations == METHODS[name]().evaluations(14, rising=False)
    assert record.meta["evaluations"] == METHODS[name]().evaluations(14)
    assert relative_error(replay(again, source, mixture.denoiser("target", 2.0)), clean) > 0.05


def test_the_mate_is_needed_and_kept(tmp_path):
    mixture = Mixture("flow")
    record = invert(mixture.denoiser(), mixture.sample(1), full_grid("flow", 20), 20, "leapfrog")
    assert record.mate is not None and not torch.equal(record.mate, record.x)
    with pytest.raises(MisfitError, match="must be between methods that keep one state, got leapfrog"):
        adopt(record, "euler")
    with pytest.raises(ValueError, match="index must lie between 2 and the number of steps 20, got 1"):
        invert(mixture.denoiser(), mixture.sample(1), full_grid("flow", 20), 1, "leapfrog")


def test_a_pair_can_be_blended():
    mixture = Mixture("ve")
    record = invert(mixture.denoiser(), mixture.sample(1), full_grid("ve", 12), 9, "leapfrog", keep_path=True)
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., 3:] = 1.0
    out = replay(record, mixture.denoiser(), mixture.denoiser("target"), after_step=blend(record, mask))
    assert torch.equal(out[..., :3], record.x0[..., :3]) and not torch.equal(out[..., 3:], record.x0[..., 3:])


def test_another_seed_is_another_record():
    mixture = Mixture("ve")
    clean, grid = mixture.sample(1), full_grid("ve", 10)
    first, other = (invert(mixture.denoiser(), clean, grid, 8, Residual(seed=seed)) for seed in (0, 1))
    assert (first.seed, other.seed) == (0, 1) and not torch.equal(first.x, other.x)


def test_embeddings_are_used_step_by_step(tmp_path):
    mixture = Mixture("ve")
    clean, grid, guided = mixture.sample(2), full_grid("ve", 20), mixture.denoiser(cfg=7.5)
    bare = invert(mixture.denoiser(), clean, grid, 20, "nulled", keep_path=True)
    null, source = mixture.embeddings["null"], mixture.embeddings["source"]
    ordinary = replace(bare, embeddings=(null,) * 20)
    # Negative-prompt inversion: with the source as its own negative, guidance cancels.
    cancelled = replace(bare, embeddings=(source,) * 20)
    save(cancelled, tmp_path / "record.safetensors")
    assert relative_error(replay(ordinary, guided), clean) > 1.5 * relative_error(replay(cancelled, guided), clean)
    plain = replay(adopt_euler(bare), mixture.denoiser())
    torch.testing.assert_close(replay(load(tmp_path / "record.safetensors"), guided), plain, rtol=1e-12, atol=1e-12)
    assert guided.evaluations == 60


def adopt_euler(record):
    return replace(record, method="euler", fingerprints={})
