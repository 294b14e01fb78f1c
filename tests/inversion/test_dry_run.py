"""The levels at which a method asks."""

import pytest

from retrace.inversion import get_method, sigmas_asked

GRID = (0.0, 0.2, 0.5, 0.8, 1.0)


def test_second_order_methods_ask_in_the_middle_and_pairs_at_one_end():
    up, down = sigmas_asked(get_method("midpoint"), GRID, 2, "flow", 1e-3)
    assert up == pytest.approx((1e-3, 0.1, 0.2, 0.35)) and down == pytest.approx((0.5, 0.35, 0.2, 0.1))
    up, down = sigmas_asked(get_method("fireflow"), GRID, 2, "flow", 1e-3)
    assert up == pytest.approx((1e-3, 0.1, 0.35)) and down == pytest.approx((0.5, 0.35, 0.1))
    up, down = sigmas_asked(get_method("euler"), GRID, 4, "flow", 1e-3)
    assert up == pytest.approx((1e-3, 0.2, 0.5, 0.8)) and down == pytest.approx((1.0, 0.8, 0.5, 0.2))
    # EDICT asks at the noisier end of each step, so the floor at 0 plays no part; the others ask once at 0, going up.
    up, down = sigmas_asked(get_method("edict"), GRID, 4, "flow", 1e-3)
    assert up == tuple(level for level in GRID[1:] for _ in (0, 1)) and down == up[::-1]
    for name in ("bdia", "belm"):
        assert sigmas_asked(get_method(name), GRID, 4, "flow", 1e-3) == ((1e-3, *GRID[1:4]), GRID[3:0:-1])
