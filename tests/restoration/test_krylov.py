"""The two small solvers against dense ones, and where they could divide by zero."""

import functools

import pytest
import torch

from retrace.restoration.krylov import conjugate_gradient, gmres, largest_eigenvalue
from retrace_tests.restoration.problems import unit

SIZE = 12


def system(seed=0, symmetric=True):
    matrix, right = unit(SIZE, SIZE, seed=seed), unit(3, SIZE, seed=seed + 1)
    matrix = matrix @ matrix.T / SIZE + torch.eye(SIZE) if symmetric else matrix / 6 + torch.eye(SIZE)
    return matrix, right, torch.linalg.solve(matrix, right.T).T


def test_conjugate_gradients_solve():
    matrix, right, wanted = system()
    residuals = []
    found = conjugate_gradient(
        lambda v: v @ matrix, right, torch.zeros_like(right), sample_dims=1, tolerance=1e-10, residuals=residuals
    )
    assert torch.allclose(found, wanted)
    assert residuals == sorted(residuals, reverse=True) and residuals[-1] < 1e-10


def test_the_tolerance_is_relative_and_of_each_sample():
    matrix, right, wanted = system()
    scale = torch.tensor([[1e-9], [1.0], [1e9]])

    def run(b):
        return conjugate_gradient(lambda v: v @ matrix, b, torch.zeros_like(b), sample_dims=1, iterations=4)

    assert torch.allclose(run(right * scale) / scale, run(right), rtol=1e-9)
    # A row that is done stays as it is while others go on.
    done = torch.stack([wanted[0], torch.zeros(SIZE).double()])
    both = conjugate_gradient(lambda v: v @ matrix, right[:2], done, sample_dims=1, iterations=30)
    assert torch.equal(both[0], wanted[0]) and torch.allclose(both[1], wanted[1], atol=1e-3)


def test_a_preconditioner_changes_the_way_and_not_the_end():
    matrix, right, wanted = system()
    inverse = torch.linalg.inv(matrix + 0.05 * torch.eye(SIZE))
    short = conjugate_gradient(
        lambda v: v @ matrix, right, right, sample_dims=1, iterations=4, precondition=lambda r: r @ inverse
    )
    assert torch.allclose(short, wanted, atol=1e-3)
    plain = conjugate_gradient(lambda v: v @ matrix, right, right, sample_dims=1, iterations=4)
    assert float((plain - wanted).norm()) > 5 * float((short - wanted).norm())


def test_a_start_at_zero_costs_nothing():
    matrix, right, _ = system()
    calls = {"none": 0, "zero": 0}

    def counted(name):
        def multiply(v):
            calls[name] += 1
            return v @ matrix

        return multiply

    first = conjugate_gradient(counted("none"), right, None, sample_dims=1, iterations=3)
    second = conjugate_gradient(counted("zero"), right, torch.zeros_like(right), sample_dims=1, iterations=3)
    assert torch.equal(first, second) and calls == {"none": 3, "zero": 4}


@pytest.mark.parametrize("solver", ["cg", "gmres"])
def test_zero_and_exact_and_singular_stay_finite(solver):
    matrix, right, _ = system()
    right = right.clone()
    right[1] = 0.0
    for scale in (1.0, 0.0, 1e30):
        scaled = functools.partial(torch.matmul, other=scale * matrix)
        if solver == "cg":
            found = conjugate_gradient(scaled, right, torch.zeros_like(right), sample_dims=1)
        else:
            found = gmres(scaled, right, sample_dims=1, steps=3)
        assert bool(torch.isfinite(found).all()) and float(found[1].abs().max()) == 0.0


def test_the_largest_eigenvalue_is_found_from_below():
    matrix, right, _ = system()
    wanted = float(torch.linalg.eigvalsh(matrix)[-1])
    found = [largest_eigenvalue(lambda v: v @ matrix, right[0], steps) for steps in (1, 3, 6, SIZE)]
    assert found == sorted(found) and found[0] < wanted and found[-1] == pytest.approx(wanted, rel=1e-9)
    # Where powers need thousands: a thousand eigenvalues crowd below the largest.
    crowd = torch.linspace(0, 1, 1000, dtype=torch.float64)
    assert largest_eigenvalue(lambda v: crowd * v, unit(1000), 20) == pytest.approx(1.0, abs=1e-2)
    # A start that is an eigenvector already, and a map to nothing, divide by nothing.
    assert largest_eigenvalue(lambda v: 4.0 * v, right[0], 5) == pytest.approx(4.0)
    assert largest_eigenvalue(lambda v: 0.0 * v, right[0], 5) == 0.0


@pytest.mark.parametrize("steps", [1, 2, 5, SIZE])
def test_gmres_minimises_over_its_krylov_space(steps):
    matrix, right, wanted = system(symmetric=False)
    found = gmres(lambda v: v @ matrix.T, right, sample_dims=1, steps=steps)
    for row in range(3):
        vectors = [right[row]]
        for _ in range(steps - 1):
            vectors.append(matrix @ vectors[-1])
        basis = torch.linalg.qr(torch.stack(vectors, 1))[0]
        best = torch.linalg.lstsq(matrix @ basis, right[row][:, None]).solution
        assert torch.allclose(matrix @ found[row], matrix @ (basis @ best)[:, 0], atol=1e-6)
    if steps == SIZE:
        assert torch.allclose(found, wanted, atol=1e-6)
