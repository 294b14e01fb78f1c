"""SPDInv: the published loop, what it claims of its fixed point, and what a descent must never do."""

import pytest
import torch

from retrace.core.steps import DDIMPredictor
from retrace.inversion import Denoiser, get_method, invert, relative_error, replay, walk
from retrace.inversion.methods.spd import GradientDescent
from retrace_tests.inversion.problems import Mixture, full_grid


def by_torch(denoiser, x, sigma, sigma_next, iterations, rate, stop):
    """The published loop in torch's own AdamW, in variance-preserving units; returns every z that was tried."""
    scale = (1.0 + sigma_next**2) ** -0.5 if denoiser.space == "ve" else 1.0
    z = (scale * DDIMPredictor()(denoiser, x, sigma, sigma_next).x).requires_grad_(True)
    optimiser, tried = torch.optim.AdamW([z], lr=rate), []
    for index in range(iterations + 1):
        wanted = scale * (x + (sigma_next - sigma) * denoiser.derivative(z / scale, sigma_next))
        loss = (z - wanted).square().mean()
        tried.append((loss.item(), z.detach().clone() / scale))
        if index == iterations or (index > 0 and tried[-2][0] < stop):
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return tried


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize(("iterations", "stop"), [(7, 0.0), (40, 1e-3)])
def test_updates_are_those_of_torch(space, iterations, stop):
    mixture = Mixture(space)
    x, levels = mixture.sample(1), full_grid(space, 10)[4:6]
    tried = by_torch(mixture.denoiser(), x, *levels, iterations, 1e-3, stop)
    stepper = GradientDescent(iterations, 1e-3, stop)
    found = stepper(mixture.denoiser(), x, *levels)
    loss, best = min(tried, key=lambda entry: entry[0])
    torch.testing.assert_close(found.x, best, rtol=1e-10, atol=1e-10)
    assert stepper.losses[0] == pytest.approx((tried[0][0], loss), rel=1e-9)
    assert stepper.updates == [len(tried) - 1] and best is not tried[0][1]


# |x0 - there and back| / |x0| at N = 50, cfg 1, float64: .031 and .021 of the design, with room for another mixture.
@pytest.mark.parametrize(("space", "bound"), [("ve", 0.06), ("flow", 0.04)])
def test_round_trip_with_the_published_settings(space, bound):
    mixture = Mixture(space)
    clean, grid = mixture.sample(1), full_grid(space, 50)
    errors = {}
    for name in ("ddim", "spd"):
        record = invert(mixture.denoiser(), clean, grid, 50, name)
        errors[name] = relative_error(replay(record, mixture.denoiser()), clean)
    assert errors["spd"] <= bound and errors["spd"] < errors["ddim"] / 1.3, errors
    steps = [[float(loss) for loss in step.split(">")] for step in record.meta["losses"].split()]
    assert len(steps) == 50 and all(after <= before for before, after in steps)
    assert record.meta["loss"] == pytest.approx(max(after for _, after in steps), rel=1e-2)
    assert record.meta["updates"] < 25 * 50


def test_calls_and_modes():
    mixture, grid = Mixture("ve"), full_grid("ve", 6)
    denoiser, method = mixture.denoiser(), get_method("spd", {"iterations": 3, "stop": 0.0})
    x = mixture.sample(1)
    wanted = walk(denoiser, x, grid, method.up())
    assert denoiser.evaluations == method.evaluations(6) == 5 * 6
    with torch.inference_mode():
        assert torch.equal(walk(denoiser, x, grid, method.up()), wanted)
    assert method.needs_gradients and not wanted.requires_grad


def test_a_model_without_gradients_is_refused():
    mixture = Mixture("ve")
    exact = mixture.denoiser()
    deaf = Denoiser(torch.no_grad()(lambda x, sigma: exact(x, sigma)), "ve")
    with pytest.raises(ValueError, match="must let gradients reach its state, got an answer without any"):
        invert(deaf, mixture.sample(1), full_grid("ve", 4), 4, "spd")
