"""The model as a solver sees it."""

import pytest
import torch

from retrace.inversion import SIGMA_FLOOR, Denoiser, invert, replay, work_dtype
from retrace_tests.inversion.problems import Mixture

GRID = (0.0, 0.5, 1.0, 2.0, 4.0)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_derivative_is_that_of_the_noising_path(space):
    # For one Gaussian N(0, v) the path is known: x(sigma) = x0 * sqrt(a^2 v + sigma^2) / sqrt(v).
    variance = 0.7

    def denoise(x, sigma):
        scale = 1.0 if space == "ve" else 1.0 - sigma
        return scale * variance / (scale**2 * variance + sigma**2) * x

    def path(sigma):
        scale = 1.0 if space == "ve" else 1.0 - sigma
        return torch.full((1, 1, 1, 1), (scale**2 * variance + sigma**2) ** 0.5, dtype=torch.float64)

    denoiser, sigma, h = Denoiser(denoise, space), 0.6, 1e-6
    by_difference = (path(sigma + h) - path(sigma - h)) / (2 * h)
    torch.testing.assert_close(denoiser.derivative(path(sigma), sigma), by_difference, rtol=1e-8, atol=0)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_floor(space):
    asked = []

    def denoise(x, sigma):
        asked.append(sigma)
        return 0.5 * x

    denoiser, x = Denoiser(denoise, space), torch.ones(1, 1, 2, 2)
    assert torch.equal(denoiser.derivative(x, 0.0), 0.5 * x / SIGMA_FLOOR[space])
    denoiser(x, 0.0)
    denoiser.derivative(x, 0.5)
    assert asked == [SIGMA_FLOOR[space], SIGMA_FLOOR[space], 0.5]


def test_counts_its_own_calls_and_those_of_a_rebound_denoiser():
    mixture = Mixture("ve")
    denoiser, other, x = mixture.denoiser(cfg=2.0), mixture.denoiser(), mixture.sample(1)
    denoiser(x, 1.0)
    denoiser.evaluate(x, 1.0)
    rebound = denoiser.with_embedding(mixture.embeddings["target"])
    assert not torch.equal(rebound(x, 1.0), denoiser(x, 1.0))
    assert (denoiser.evaluations, rebound.evaluations, other.evaluations) == (4, 1, 0)
    assert torch.equal(denoiser.with_embedding(mixture.embeddings["null"])(x, 1.0), denoiser(x, 1.0))


def test_the_unguided_side():
    mixture = Mixture("flow")
    plain, x = mixture.denoiser(), mixture.sample(1)
    side = plain._denoise
    denoiser = Denoiser(mixture.denoiser(cfg=5.0)._denoise, "flow", rebind=lambda embedding: side, plain=side)
    assert torch.equal(denoiser.unguided(x, 0.5), plain(x, 0.5)) and not torch.equal(denoiser(x, 0.5), plain(x, 0.5))
    assert denoiser.evaluations == 2 and denoiser.unguided.sigma_floor == denoiser.sigma_floor
    denoiser.with_embedding(mixture.embeddings["null"]).unguided(x, 0.5)
    assert denoiser.evaluations == 3
    assert plain.unguided is plain


def test_refusals():
    with pytest.raises(ValueError, match="space must be 've' or 'flow', got 'eps'"):
        Denoiser(lambda x, sigma: x, "eps")
    with pytest.raises(ValueError, match="sigma_floor must lie between 0 and 1, got 0.0"):
        Denoiser(lambda x, sigma: x, "ve", 0.0)
    with pytest.raises(ValueError, match=r"must have the shape of the state \(1, 4, 2, 2\), got \(1, 3, 2, 2\)"):
        Denoiser(lambda x, sigma: x[:, :3], "ve")(torch.ones(1, 4, 2, 2), 1.0)
    with pytest.raises(TypeError, match="must let its unconditional embedding be exchanged"):
        Denoiser(lambda x, sigma: x, "ve").with_embedding(torch.zeros(1))


def test_work_is_done_and_answered_in_the_dtype_of_the_state():
    denoiser = Denoiser(lambda x, sigma: (x * 0.5).to(torch.bfloat16), "flow")
    assert denoiser(torch.ones(1, 1, 2, 2, dtype=torch.float64), 0.5).dtype == torch.float64
    assert work_dtype("cpu") == torch.float64 == work_dtype("cuda:0") and work_dtype("mps") == torch.float32


@pytest.mark.parametrize("name", ["euler", "bdia"])
def test_strides_of_a_latent_do_not_change_a_bit(name):
    # A real norm between convolutions in float32: its sums are taken in the order of the strides.
    torch.manual_seed(0)
    first, last = torch.nn.Conv2d(4, 32, 3, padding=1), torch.nn.Conv2d(32, 4, 3, padding=1)
    network = torch.nn.Sequential(first, torch.nn.GroupNorm(8, 32), last).requires_grad_(False)
    shown = []

    def denoise(x, sigma):
        shown.append(x.is_contiguous())
        return network(x.float())

    denoiser = Denoiser(denoise, "ve")
    x0 = torch.randn(2, 4, 16, 16)
    plain = invert(denoiser, x0, GRID, 4, name)
    strided = invert(denoiser, x0.to(memory_format=torch.channels_last), GRID, 4, name)
    assert torch.equal(plain.x, strided.x)
    assert torch.equal(replay(plain, denoiser), replay(strided, denoiser))
    assert shown and all(shown)
