"""The invertible chain of the pair methods: the same way down, and autograd's gradient from two latents."""

from itertools import product

import pytest
import torch

from retrace.inversion import METHODS, Coupled, Denoiser, Inversion, coupled_gradient, get_method, invert
from retrace_tests.inversion.problems import WIDTH, full_grid
from retrace_tests.inversion.test_gradient import Conditioned, Held, Tiny, agrees, some_loss

PAIRS = sorted(name for name, method in METHODS.items() if issubclass(method, Coupled))
SETTINGS = [*product(PAIRS, [{}]), ("bdia", {"gamma": 0.9}), ("edict", {"p": 0.93})]


def plainly(method, denoiser, record, loss, inputs):
    """Autograd through the method's own replay."""
    x, mate = (state.clone().requires_grad_(True) for state in (record.x, record.mate))
    about = {"x": x, "mate": mate, "method": method.name, "params": method.params}
    end = method.replay(Inversion(record.space, record.sigmas, record.index, record.x0, **about), denoiser)
    value = loss(end)
    return value.item(), end.detach(), torch.autograd.grad(value, [x, mate, *inputs])


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize("index", [2, 3, 14, 20])
def test_equals_autograd(space, name, settings, index):
    problem, method = Conditioned(space), get_method(name, settings)
    inputs = (problem.prompt, problem.null)
    record = invert(problem.denoiser(), problem.mixture.sample(2), full_grid(space, 20), index, method)
    value, end, wanted = plainly(method, problem.denoiser(), record, some_loss, inputs)
    denoiser = problem.denoiser()
    with torch.inference_mode():
        found = coupled_gradient(method, denoiser, record.x, record.mate, record.sigmas, index, some_loss, inputs)
    assert found.loss == pytest.approx(value, rel=1e-11)
    agrees(found.end, end)
    # The states are found again by algebra: as exact as the round trip, whose rounding guidance stretches.
    for ours, theirs in zip((found.start, found.mate, *found.inputs), wanted, strict=True):
        agrees(ours, theirs, 1e-11)
        assert not ours.is_inference() and not ours.requires_grad
    assert denoiser.evaluations == 2 * method.evaluations(index, rising=False)


@pytest.mark.parametrize("name", PAIRS)
def test_memory_does_not_grow_with_the_steps(name):
    network, prompt = Tiny(), torch.randn(WIDTH, dtype=torch.float64)
    clean = torch.randn(1, 4, 7, 9, dtype=torch.float64)

    def most(steps):
        held = Held(clean)

        def denoise(x, sigma):
            held.look()
            return network(x, sigma, prompt)

        method, grid = get_method(name), full_grid("ve", steps)
        with held:
            coupled_gradient(method, Denoiser(denoise, "ve"), clean, 1.01 * clean, grid, steps, some_loss)
        return held.most

    assert most(100) == most(10)


def test_a_way_down_that_cannot_be_found_again_is_refused():
    """Before the model is asked: the states are found again by walking up, which some settings do not survive."""
    x, denoiser = torch.randn(1, 4, 3, 3, dtype=torch.float64), Conditioned("ve").denoiser()

    def refused(sentence, grid, index, method, *inputs):
        with pytest.raises(ValueError, match=sentence):
            coupled_gradient(method, denoiser, x, x, grid, index, some_loss, inputs)

    grid = full_grid("ve", 12)
    refused("gamma of method bdia must be at least 0.72 to climb 12", grid, 12, get_method("bdia", {"gamma": 0.2}))
    refused("p of method edict must be 0 or at least", grid, 12, get_method("edict", {"p": 0.5}))
    for name in PAIRS:
        refused("index must lie between .* got 13", grid, 13, get_method(name))
        refused("index must lie between .* got -1", grid, -1, get_method(name))
        refused("sigmas must strictly rise", grid[::-1], 4, get_method(name))
    refused("inputs must require a gradient", grid, 4, get_method("edict"), torch.zeros(3))
    assert denoiser.evaluations == 0
    denoiser = Denoiser(torch.no_grad()(lambda state, sigma: 0.5 * state), "ve")
    refused("must let gradients reach its state", grid, 4, get_method("edict"))
