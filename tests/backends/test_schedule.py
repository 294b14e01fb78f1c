import math

import pytest
import torch

from retrace.backends.schedule import Schedule, flow_shift
from retrace_tests.backends import tiny


def discrete():
    return Schedule.discrete(tiny.ddim().alphas_cumprod.tolist())


@pytest.mark.parametrize("schedule", [discrete(), Schedule.flow(), Schedule.flow(3.0)], ids=["ve", "flow", "shifted"])
@pytest.mark.parametrize("steps", [2, 7, 20, 1000])
def test_grid_rises_from_zero_to_the_largest_sigma(schedule, steps):
    grid = schedule.grid(steps)
    assert len(grid) == steps + 1
    assert grid[0] == 0.0 and grid[-1] == schedule.table[-1]
    assert all(a < b for a, b in zip(grid, grid[1:]))


def test_grid_takes_levels_as_the_simple_scheduler_of_comfyui():
    # It counts 1000/3 sigmas down from the noisiest and drops the fraction.
    table = discrete().table
    assert discrete().grid(3) == (0.0, table[333], table[666], table[999])


def test_stable_diffusion_levels_are_the_known_ones():
    # sigma_min and sigma_max of Stable Diffusion, as printed in every k-diffusion sampler.
    schedule = discrete()
    assert schedule.floor == pytest.approx(0.0292, abs=1e-4)
    assert schedule.table[-1] == pytest.approx(14.6146, abs=1e-3)


def test_timestep_is_the_nearest_in_log_sigma():
    schedule = discrete()
    logs = torch.tensor(schedule.table, dtype=torch.float64).log()
    sigmas = torch.logspace(-3, 3, 2000, dtype=torch.float64).tolist()
    assert [schedule.timestep(s) for s in sigmas] == [int((math.log(s) - logs).abs().argmin()) for s in sigmas]
    assert schedule.timestep(0.0) == 0 and [schedule.timestep(s) for s in schedule.table] == list(range(1000))


def test_flow_grids_and_the_shift_of_flux_are_those_of_diffusers():
    uniform, flux = torch.linspace(1.0, 1 / 10, 10).tolist(), {"shift": 1.0, "use_dynamic_shifting": True}
    cases = [({"shift": 3.0}, {}, 3.0)]
    cases += [(flux, {"mu": mu}, flow_shift(n, 0.5, 1.15)) for n, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825))]
    for config, given, shift in cases:
        scheduler = tiny.flow(**config)
        scheduler.set_timesteps(sigmas=uniform, **given)
        assert Schedule.flow(shift).grid(10)[::-1] == pytest.approx(scheduler.sigmas.tolist(), rel=1e-6)


def test_zero_terminal_snr_has_finite_levels():
    schedule = Schedule.discrete(tiny.ddim("v_prediction", rescale_betas_zero_snr=True).alphas_cumprod.tolist())
    assert 4000 < schedule.table[-1] < 5000
    assert schedule.timestep(schedule.table[-1]) == 999


@pytest.mark.parametrize("steps", [1, 0, -3, 1001])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match=r"steps must be between 2 and 1000, got .*; choose"):
        discrete().grid(steps)
