"""DDS on priors whose posterior is known."""

import pytest
import torch

from retrace.core.space import clean_variance, weights
from retrace.restoration import DDSSettings, Measurement, PixelConsistency, dds
from retrace.restoration.operators import JPEG, BlackWhite, GaussianBlur, LowResolution, Mask, Noise, quality_tables
from retrace_tests.restoration.problems import (
    SHAPE,
    SIGMA,
    distance,
    fresh,
    matrix_of,
    moments,
    pictures_prior,
    unit,
    vp_sigmas,
    white_prior,
)

# Each with how near the defaults come to its posterior.
OPERATORS = {
    "inpaint": (Mask(SHAPE, torch.nn.functional.pad(torch.zeros(1, 3, 3), (2, 1, 1, 2), value=1.0)), 0.3),
    "small": (LowResolution(SHAPE, 2, "box"), 0.3),
    "blur": (GaussianBlur(SHAPE, 1.0, "circular"), 0.5),
    "grey": (BlackWhite(SHAPE), 0.4),
    "noise": (Noise(SHAPE), 0.7),
}


def problem(name, prior):
    operator, _ = OPERATORS[name]
    damaged = operator.seen(operator.forward(prior.sample(1, seed=3)) + SIGMA * unit(1, *operator.out_shape, seed=5))
    return Measurement(operator, damaged, SIGMA), matrix_of(operator), damaged.flatten()


def posterior(prior, matrix, y):
    rows = matrix.abs().sum(dim=1) > 0  # what a mask hides is not measured
    return prior.posterior(matrix[rows], y[rows])


def drawn(prior, measured, x, trust=1.0, seed=7, sigmas=None, space="ve"):
    sigmas = sigmas or vp_sigmas(50)
    start = weights(sigmas[0], space)[1] * x
    consistency = PixelConsistency(measured, trust)
    return dds(prior.denoiser(space), start, sigmas, consistency, fresh(x, seed), variance=0.25)


@pytest.mark.parametrize("name", OPERATORS)
def test_one_step_is_bayes_rule_on_a_white_prior(name):
    """E[x0 | x, y] = consistency(E[x0 | x]), exactly, in both spaces."""
    prior = white_prior()
    measured, matrix, y = problem(name, prior)
    size = matrix.shape[1]
    for space, sigma in (("ve", 1.3), ("ve", 0.02), ("flow", 0.4), ("flow", 1.0)):
        a, b = weights(sigma, space)
        x = unit(1, *SHAPE, seed=1)
        both = torch.cat([matrix, a * torch.eye(size, dtype=torch.float64)])
        noise = torch.cat([torch.full((len(matrix),), SIGMA), torch.full((size,), b)]).double() ** 2
        system = 0.25 * both @ both.T + torch.diag(noise)
        wanted = 0.25 * both.T @ torch.linalg.solve(system, torch.cat([y, x.flatten()]))
        corrected = PixelConsistency(measured)(prior.denoise(x, sigma, space), clean_variance(sigma, space, 0.25))
        assert torch.allclose(corrected.flatten(), wanted, atol=1e-7)


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_one_step_is_its_formula(space):
    """x' = a' xh + b' ( sqrt(1 - f^2) n^ + f n ), with n^ from the prediction and not from what it was drawn to."""
    x, denoised, corrected, noise = (unit(2, *SHAPE, seed=seed) for seed in range(4))
    sigmas = (0.8, 0.3, 0.0)
    (a, b), (a_next, b_next), _ = (weights(sigma, space) for sigma in sigmas)
    asked, told = [], []

    def consistency(d, variance):
        asked.append((d, variance))
        return corrected

    denoiser = white_prior().denoiser(space)
    denoiser._denoise = lambda state, sigma: denoised
    end = dds(denoiser, x, sigmas, consistency, lambda: noise, DDSSettings(freshness=0.28), 0.5, told.append)
    after = a_next * corrected + b_next * (0.96 * (x - a * denoised) / b + 0.28 * noise)
    assert torch.allclose(told[0].x, after) and torch.equal(end, corrected)
    assert all(torch.equal(d, denoised) for d, _ in asked)
    assert [variance for _, variance in asked] == [clean_variance(sigma, space, 0.5) for sigma in sigmas[:2]]
    assert [(r.index, r.total, r.sigma, r.sigma_next) for r in told] == [(0, 2, 0.8, 0.3), (1, 2, 0.3, 0.0)]
    assert all(torch.equal(r.denoised, corrected) for r in told)


@pytest.mark.parametrize("freshness", [0.0, 0.3, 0.85, 1.0])
def test_noise_keeps_its_size_however_much_of_it_is_new(freshness):
    """Of a picture that is known, the state is its noise: of the size of each sigma."""
    known = white_prior(variance=0.0)
    for sigmas in ((2.0, 1.2), (2.0, 1.2, 0.3)):
        mean, covariance = moments(known, sigmas, lambda denoised, variance: denoised, freshness)
        assert float(mean.abs().max()) == 0.0
        assert torch.allclose(covariance, sigmas[-1] ** 2 * torch.eye(len(covariance), dtype=torch.float64))


@pytest.mark.parametrize("name", OPERATORS)
def test_defaults_come_near_the_posterior(name):
    prior = pictures_prior()
    measured, matrix, y = problem(name, prior)
    mean, covariance = moments(prior, vp_sigmas(50), PixelConsistency(measured))
    assert distance(mean, covariance, *posterior(prior, matrix, y)) < OPERATORS[name][1]
    rows = matrix.abs().sum(dim=1) > 0
    residual = (matrix @ mean - y)[rows].square().sum() + (matrix @ covariance @ matrix.T).diagonal()[rows].sum()
    assert 0.05 < float(residual) / (SIGMA**2 * int(rows.sum())) < 1.5


def test_trust_moves_the_result_to_the_photo_and_a_batch_is_its_rows_alone():
    prior, x = pictures_prior(), unit(2, *SHAPE, seed=2)
    measured, *_ = problem("noise", prior)
    chi2 = [float(measured.chi2(drawn(prior, measured, x, trust)).mean()) for trust in (0.1, 1.0, 10.0)]
    assert chi2[0] > chi2[1] > chi2[2]
    alone = torch.cat([drawn(prior, measured, x[row : row + 1], seed=7 + row) for row in (0, 1)])
    assert torch.allclose(drawn(prior, measured, x), alone, atol=1e-9)
    assert torch.equal(x, unit(2, *SHAPE, seed=2))


def test_jpeg_cells_are_kept():
    """Every coefficient of what is drawn rounds to that of the photo."""
    shape = (3, 16, 16)
    prior, coder = white_prior(shape, 0.1), JPEG(shape, quality_tables(20), half_colour=False)
    truth = 0.5 * prior.sample(1, seed=3)
    measured = Measurement(coder, coder.forward(truth), 0.02)
    end = drawn(prior, measured, unit(2, *shape, seed=2), sigmas=(5.0, 2.0, 1.0, 0.3, 0.0))
    for wanted, found in zip(coder.coefficients(truth), coder.coefficients(end)):
        assert torch.equal(wanted.expand_as(found), found)
