"""RED-diff against the fixed point that its gradient has on a Gaussian prior."""

import pytest
import torch

from retrace.restoration import Measurement, REDDiffSettings, red_diff
from retrace.restoration.operators import LowResolution
from retrace.restoration.solvers.red_diff import WEIGHTS
from retrace_tests.restoration.problems import SIGMA, as_flow, fresh, matrix_of, pictures_prior, unit, vp_sigmas

SHAPE = (1, 6, 6)


def problem():
    prior, operator = pictures_prior(SHAPE), LowResolution(SHAPE, 2, "box")
    damaged = operator.forward(prior.sample(1, seed=3))
    measured = Measurement(operator, damaged + SIGMA * unit(*damaged.shape, seed=5), SIGMA)

    def gradient(mu):
        return measured.adjoint(measured.residual(mu)) / operator.measured

    return prior, measured, gradient


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_fixed_point_on_a_gaussian(weight):
    """At one sigma s: (A^T A / m + prior w(s) / (s d) (I - W)) mu = A^T y / m, with D = W x."""
    prior, measured, gradient = problem()
    size, s = 36, 1.5
    matrix = matrix_of(measured.operator) / measured.operator.norm
    wiener = prior.denoise(torch.eye(size, dtype=torch.float64).reshape(-1, *SHAPE), s).reshape(size, size)
    share = 0.5 * WEIGHTS[weight](s) / s / size * (torch.eye(size) - wiener)
    count = measured.operator.measured
    wanted = torch.linalg.solve(matrix.T @ matrix / count + share, matrix.T @ measured.y.flatten() / count)
    sigmas = tuple(s * (1 - 1e-6 * i) for i in range(2000))
    start = (wanted.reshape(1, *SHAPE) + 0.1).repeat(8, 1, 1, 1)
    settings = REDDiffSettings(prior=0.5, step=0.005, weight=weight, schedule="cosine")
    found = red_diff(prior.denoiser(), start, sigmas, gradient, fresh(start, 0), settings)
    error = (found.mean(0).flatten() - wanted).square().mean().sqrt()
    assert float(error) < 0.03 * float(wanted.square().mean().sqrt())


def test_flow_and_ve_are_one_and_batches_are_rows():
    prior, measured, gradient = problem()
    start, sigmas, told = measured.initial().repeat(2, 1, 1, 1), vp_sigmas(20), []

    def fit(rows=slice(None), space="ve", on_step=None):
        chosen, noise = sigmas if space == "ve" else as_flow(sigmas), fresh(start[rows], 3 if rows.start is None else 4)
        return red_diff(prior.denoiser(space), start[rows], chosen, gradient, noise, on_step=on_step)

    ve = fit(on_step=told.append)
    assert torch.allclose(ve, fit(space="flow"), atol=1e-9)
    assert torch.allclose(ve[1:], fit(slice(1, None)), atol=1e-9)
    # What is too noisy is left out, and a last 0.
    left = [sigma for sigma in sigmas if 0.0 < sigma <= 10.0]
    assert [r.sigma for r in told] == left and [r.sigma_next for r in told] == [*left[1:], 0.0]
    assert {(r.index, r.total) for r in told} == {(i, len(left)) for i in range(len(left))}
    assert torch.equal(told[-1].x, ve)


def test_a_rate_stays_or_falls_along_a_cosine():
    """Where the gradient is always the same, Adam moves by the rate."""
    prior, start, sigmas = pictures_prior(SHAPE), unit(1, *SHAPE), tuple(2.0 - 0.1 * i for i in range(9))
    for schedule, way in (("constant", 9.0), ("cosine", 5.0)):
        settings = REDDiffSettings(prior=0.0, step=0.01, schedule=schedule)
        end = red_diff(prior.denoiser(), start, sigmas, torch.ones_like, fresh(start), settings)
        assert torch.allclose(start - end, torch.full_like(start, 0.01 * way))
