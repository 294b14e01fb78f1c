"""The small solvers against dense ones, and where they could divide by zero."""

import functools

import pytest
import torch

from retrace.restoration.krylov import conjugate_gradient, gmres, largest_eigenvalue
from retrace_tests.restoration.problems import unit

SIZE = 12
MATRIX, RIGHT = unit(SIZE, SIZE) @ unit(SIZE, SIZE).T / SIZE + torch.eye(SIZE), unit(3, SIZE, seed=1)
SOLVED = torch.linalg.solve(MATRIX, RIGHT.T).T
solve = functools.partial(conjugate_gradient, lambda v: v @ MATRIX, sample_dims=1)


def test_conjugate_gradients_solve():
    residuals = []
    found = solve(RIGHT, torch.zeros_like(RIGHT), tolerance=1e-10, residuals=residuals)
    assert torch.allclose(found, SOLVED)
    assert residuals == sorted(residuals, reverse=True) and residuals[-1] < 1e-10 < residuals[-2]


def test_the_tolerance_is_relative_and_of_each_sample():
    scale = torch.tensor([[1e-9], [1.0], [1e9]])
    scaled, plain = (solve(right, torch.zeros_like(right), iterations=4) for right in (RIGHT * scale, RIGHT))
    assert torch.allclose(scaled / scale, plain, rtol=1e-9)
    # A row that is done stays as it is while others go on.
    done = torch.stack([SOLVED[0], torch.zeros(SIZE).double()])
    both = solve(RIGHT[:2], done, iterations=30)
    assert torch.equal(both[0], SOLVED[0]) and torch.allclose(both[1], SOLVED[1], atol=1e-3)


def test_a_start_at_zero_costs_nothing():
    asked, starts = [], (None, torch.zeros_like(RIGHT))

    def counted(v):
        asked.append(v)
        return v @ MATRIX

    ends = [conjugate_gradient(counted, RIGHT, start, sample_dims=1, iterations=3) for start in starts]
    assert torch.equal(*ends) and len(asked) == 3 + 4


@pytest.mark.parametrize("scale", [1.0, 0.0, 1e30])
def test_zero_and_singular_stay_finite(scale):
    right, matrix = RIGHT * torch.tensor([[1.0], [0.0], [1.0]]), functools.partial(torch.matmul, other=scale * MATRIX)
    by_cg = conjugate_gradient(matrix, right, torch.zeros_like(right), sample_dims=1)
    for found in (by_cg, gmres(matrix, right, sample_dims=1, steps=3)):
        assert bool(torch.isfinite(found).all()) and float(found[1].abs().max()) == 0.0


def test_the_largest_eigenvalue_is_found_from_below():
    wanted = float(torch.linalg.eigvalsh(MATRIX)[-1])
    found = [largest_eigenvalue(lambda v: v @ MATRIX, RIGHT[0], steps) for steps in (1, 3, 6, SIZE)]
    assert found == sorted(found) and found[0] < wanted and found[-1] == pytest.approx(wanted, rel=1e-9)
    # Where powers need thousands: a thousand eigenvalues crowd below the largest.
    crowd = torch.linspace(0, 1, 1000, dtype=torch.float64)
    assert largest_eigenvalue(lambda v: crowd * v, unit(1000), 20) == pytest.approx(1.0, abs=1e-2)
    # A start that is an eigenvector already, and a map to nothing, divide by nothing.
    assert largest_eigenvalue(lambda v: 4.0 * v, RIGHT[0], 5) == pytest.approx(4.0)
    assert largest_eigenvalue(lambda v: 0.0 * v, RIGHT[0], 5) == 0.0


@pytest.mark.parametrize("steps", [1, 2, 5, SIZE])
def test_gmres_minimises_over_its_krylov_space(steps):
    matrix = unit(SIZE, SIZE) / 6 + torch.eye(SIZE)
    found = gmres(lambda v: v @ matrix.T, RIGHT, sample_dims=1, steps=steps)
    for row in range(3):
        vectors = [RIGHT[row]]
        for _ in range(steps - 1):
            vectors.append(matrix @ vectors[-1])
        basis = torch.linalg.qr(torch.stack(vectors, 1))[0]
        best = torch.linalg.lstsq(matrix @ basis, RIGHT[row][:, None]).solution
        assert torch.allclose(matrix @ found[row], matrix @ (basis @ best)[:, 0], atol=1e-6)
