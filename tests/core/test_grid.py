"""Grids, the index of a sigma in them, and how both are refused."""

import pytest
import torch

from retrace.core import check_falling, check_index, check_sigmas, shorten, strength_to_index


def test_a_grid_is_floats():
    assert check_sigmas(torch.tensor([0.0, 0.5, 1.0]), "flow") == (0.0, 0.5, 1.0)
    assert shorten([0.0, 1 / 3]) == "[0, 0.333333]" and shorten(range(5)) == "[0, 1, 2, 3, ...] (5 sigmas)"


@pytest.mark.parametrize(
    ("sigmas", "space", "sentence"),
    [
        ((0.0,), "ve", "sigmas must be at least two, got 1"),
        ((2.0, 1.0, 0.0), "ve", r"sigmas must strictly rise .*got \[2, 1, 0\]; flip a falling grid"),
        ((0.0, 1.0, 1.0), "ve", "sigmas must strictly rise"),
        ((0.0, 1e-300, 1.0), "ve", "sigmas must rise in steps that float32 can hold"),
        ((0.0, 1.0, float("inf")), "ve", "sigmas must be finite and not negative"),
        ((-0.1, 1.0, 2.0), "ve", "sigmas must be finite and not negative"),
        ((0.0, 2.0), "flow", "sigmas of a flow model must not exceed 1, got 2"),
        ((0.0, 1.0), "eps", "space must be 've' or 'flow', got 'eps'"),
    ],
)
def test_what_is_no_grid(sigmas, space, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_sigmas(sigmas, space)


@pytest.mark.parametrize("sigmas", [(1.0,), (0.5, 1.0), (1.0, 0.5, 0.5), (1.0, float("nan")), ()])
def test_what_does_not_fall(sigmas):
    with pytest.raises(ValueError, match="sigmas must be at least two that fall, got"):
        check_falling(sigmas, "ve")
    check_falling((1.0, 0.5, 0.0), "flow")
    for bad in ((2.0, 0.0), (1.0, -0.5)):
        with pytest.raises(ValueError, match="sigma must be 0 or more, and at most 1 for flow"):
            check_falling(bad, "flow")


@pytest.mark.parametrize(
    ("index", "lowest", "sentence"),
    [
        (0, 1, "index must lie between 1 and the number of steps 2, got 0"),
        (3, 1, "index must lie between 1 and the number of steps 2, got 3"),
        (1, 2, "index must lie between 2 and the number of steps 2, got 1"),
        (1.0, 1, "index must be a whole number, got 1.0"),
        (True, 1, "index must be a whole number, got True"),
    ],
)
def test_what_is_no_index(index, lowest, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        check_index(index, (0.0, 1.0, 2.0), lowest)
    check_index(2, (0.0, 1.0, 2.0), lowest)


@pytest.mark.parametrize(
    ("strength", "steps", "index"),
    [(1.0, 20, 20), (0.8, 50, 40), (0.5, 5, 3), (0.25, 2, 1), (0.001, 20, 1), (1.0, 1, 1)],
)
def test_strength_is_a_share_of_the_steps(strength, steps, index):
    assert strength_to_index(strength, steps) == index


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_strength_out_of_range(strength):
    with pytest.raises(ValueError, match="strength must lie above 0 and not above 1"):
        strength_to_index(strength, 20)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        strength_to_index(0.5, 0)
