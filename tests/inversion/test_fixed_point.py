"""The solver of y = g(y), and the inversion that is made of it."""

import logging

import pytest
import torch

from retrace.inversion import DDIMPredictor, ImplicitEuler, get_method, invert, relative_error, replay, solve, walk
from retrace_tests.inversion.problems import Mixture, full_grid


def affine(eigenvalues, rows=2):
    """y -> A y + b with these eigenvalues, and its fixed point."""
    size, generator = len(eigenvalues), torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    shift = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    truth = torch.linalg.solve(torch.eye(size, dtype=torch.float64) - matrix, shift.T).T
    return (lambda y: y @ matrix.T + shift), truth, torch.zeros_like(truth)


def test_picard_is_plain_iteration():
    g, truth, y = affine([0.5, -0.3, 0.2])
    found = solve(g, y, 6)
    by_hand = y
    for _ in range(6):
        by_hand = g(by_hand)
    assert torch.equal(found.y, by_hand) and len(found.residuals) == 6
    # An error shrinks by the largest eigenvalue an iteration.
    assert relative_error(solve(g, y, 40).y, truth) < 1e-11


def test_the_mean_of_a_window_damps_an_oscillation():
    g, truth, y = affine([-0.9, -0.9, -0.9])
    values = [y := g(y) for _ in range(9)]
    start = torch.zeros_like(truth)
    found = solve(g, start, 9, window=2)
    torch.testing.assert_close(found.y, (values[-1] + values[-2]) / 2)
    assert relative_error(found.y, truth) < 0.1 * relative_error(solve(g, start, 9).y, truth)


@pytest.mark.parametrize("eigenvalues", [[0.9, -0.8, 0.3], [2.5, -3.0, 0.3], [0.9, 0.9, 0.9]])
def test_anderson_solves_an_affine_map_in_as_many_steps_as_it_has_eigenvalues(eigenvalues):
    # Even where plain iteration diverges.
    g, truth, y = affine(eigenvalues)
    assert relative_error(solve(g, y, 6, memory=3).y, truth) < 1e-8


def test_rows_are_solved_apart():
    g, _, y = affine([0.9, -0.8, 0.3], rows=3)
    far = y.clone()
    far[2] += 1e6
    assert torch.allclose(solve(g, far, 3, memory=2).y[:2], solve(g, y, 3, memory=2).y[:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", [0, 3])
def test_a_solution_is_left_alone(memory):
    g, truth, _ = affine([0.5, 0.2, 0.1])
    found = solve(g, truth, 12, memory=memory)
    assert relative_error(found.y, truth) < 1e-14 and max(found.residuals) < 1e-14
    still = solve(lambda y: torch.zeros_like(y), torch.zeros(1, 3), 5, memory=memory)
    assert torch.equal(still.y, torch.zeros(1, 3)) and set(still.residuals) == {0.0}


def test_one_iteration_is_ddim():
    mixture = Mixture("ve")
    denoiser, x = mixture.denoiser(), mixture.sample(2)
    one = ImplicitEuler(1)(denoiser, x, 0.5, 0.7).x
    torch.testing.assert_close(one, DDIMPredictor()(denoiser, x, 0.5, 0.7).x, rtol=0, atol=1e-14)


def test_one_warm_iteration_is_uni_inv():
    mixture = Mixture("flow")
    denoiser, x, grid = mixture.denoiser(), mixture.sample(2), full_grid("flow", 6)
    ours = walk(denoiser, x, grid, ImplicitEuler(1, warm=True))
    kept = torch.zeros_like(x)  # its zero start
    for sigma, sigma_next in zip(grid, grid[1:]):
        h = sigma_next - sigma
        kept = denoiser.derivative(x + h * kept, sigma_next)
        x = x + h * kept
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


# |x0 - there and back| / |x0| at N = 50, cfg 1, float64: at most ten times the figures of the design.
BOUNDS = [
    ({"iterations": 1, "memory": 0, "warm_start": True}, 0.3, 0.07),
    ({"iterations": 5, "memory": 0}, 1.5e-3, 6e-4),
    ({"iterations": 20, "memory": 0}, 1e-11, 1e-11),
    ({"iterations": 8, "memory": 3}, 2e-8, 2e-11),
    # ReNoise as published: nine further rounds, the mean of the last two answers.
    ({"iterations": 10, "memory": 0, "window": 2}, 1e-5, 3e-6),
    ({}, 1e-5, 3e-7),
]


@pytest.mark.parametrize(("settings", "ve", "flow"), BOUNDS)
def test_round_trip(settings, ve, flow):
    for space, bound in (("ve", ve), ("flow", flow)):
        mixture = Mixture(space)
        clean, denoiser = mixture.sample(4), mixture.denoiser()
        record = invert(denoiser, clean, full_grid(space, 50), 50, get_method("fixed_point", settings))
        assert relative_error(replay(record, denoiser), clean) <= bound


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_residuals_shrink_and_are_reported(space, caplog):
    mixture = Mixture(space)
    denoiser, grid = mixture.denoiser(), full_grid(space, 30)
    stepper = ImplicitEuler(6)
    x = walk(denoiser, mixture.sample(2), grid, stepper)
    assert len(stepper.residuals) == 30
    for step in stepper.residuals:
        assert all(after < before or after < 1e-12 for before, after in zip(step, step[1:]))
    with caplog.at_level(logging.WARNING):
        method = get_method("fixed_point", {"iterations": 6, "memory": 0})
        record = invert(denoiser, mixture.sample(2), grid, 30, method)
    assert torch.equal(record.x, x) and not caplog.records
    listed = [float(residual) for residual in record.meta["residuals"].split()]
    assert listed == pytest.approx([step[-1] for step in stepper.residuals], rel=1e-2)
    assert record.meta["residual"] == max(step[-1] for step in stepper.residuals) and record.meta["diverged"] == 0


def test_what_does_not_contract_is_said(caplog):
    mixture = Mixture("flow")
    denoiser = mixture.denoiser(cfg=20.0)
    with caplog.at_level(logging.WARNING):
        record = invert(denoiser, mixture.sample(2), full_grid("flow", 6), 6, get_method("fixed_point", {"memory": 0}))
    assert record.meta["diverged"] > 0
    (said,) = [entry.getMessage() for entry in caplog.records]
    assert said.startswith(f"Retrace: the fixed point was not found in {record.meta['diverged']} of 6 steps, largest")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"window": 2}, "window of method fixed_point must be 1 with memory above 0, got 2; set memory to 0."),
        ({"memory": 0, "window": 9}, "window of method fixed_point must not exceed the iterations 5, got 9; raise"),
        ({"iterations": 0}, "iterations of method fixed_point must be at least 1, got 0"),
    ],
)
def test_refusals(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        get_method("fixed_point", settings)
