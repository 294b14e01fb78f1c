"""A record is whole or not at all."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from retrace.inversion import Inversion, check_sigmas


def latent(value=0.0, *shape):
    return torch.full(shape or (1, 2, 3, 5), value, dtype=torch.float64)


GOOD = Inversion("ve", (0.0, 1.0, 2.0), 2, latent(), latent(1.0), method="euler")


def test_reads_itself():
    assert (GOOD.steps, GOOD.sigma, GOOD.climb, GOOD.falling) == (2, 2.0, (0.0, 1.0, 2.0), (2.0, 1.0, 0.0))
    part = replace(GOOD, index=1)
    assert (part.steps, part.sigma, part.falling, part.shape, part.dtype) == (
        2, 1.0, (1.0, 0.0), (1, 2, 3, 5), torch.float64,
    )  # fmt: skip
    with pytest.raises(FrozenInstanceError):
        GOOD.index = 1


def test_does_not_share_what_it_was_given():
    params = {"p": 0.93}
    record = replace(GOOD, params=params, sigmas=[0.0, 1.0, 2.0])
    params["p"] = 0.5
    assert record.params == {"p": 0.93} and record.sigmas == (0.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"space": "eps"}, ValueError, "space must be 've' or 'flow', got 'eps'"),
        ({"space": "flow"}, ValueError, "sigmas of a flow model must not exceed 1, got 2"),
        ({"sigmas": (0.0,)}, ValueError, "sigmas must be at least two, got 1"),
        ({"sigmas": (2.0, 1.0, 0.0)}, ValueError, r"sigmas must strictly rise .*got \[2, 1, 0\]; flip a falling grid"),
        ({"sigmas": (0.0, 1.0, 1.0)}, ValueError, "sigmas must strictly rise"),
        ({"sigmas": (0.0, 1e-300, 1.0)}, ValueError, "sigmas must rise in steps that float32 can hold"),
        ({"sigmas": (0.0, 1.0, float("inf"))}, ValueError, "sigmas must be finite and not negative"),
        ({"sigmas": (-0.1, 1.0, 2.0)}, ValueError, "sigmas must be finite and not negative"),
        ({"index": 0}, ValueError, "index must lie between 1 and the number of steps 2, got 0"),
        ({"index": 3}, ValueError, "index must lie between 1 and the number of steps 2, got 3"),
        ({"index": 1.0}, TypeError, "index must be a whole number, got 1.0"),
        ({"index": True}, TypeError, "index must be a whole number, got True"),
        ({"x0": latent(0.0, 2, 3)}, ValueError, r"x0 must be a latent of shape .*got \(2, 3\)"),
        ({"x": latent(1.0, 1, 2, 5, 3)}, ValueError, r"x must have the shape \(1, 2, 3, 5\)"),
        ({"x": latent().float()}, ValueError, "x must have the shape .*got .*torch.float32"),
        ({"x": latent().half()}, ValueError, "x must be float32 or float64 on the CPU, got torch.float16"),
        ({"x": latent(float("nan"))}, ValueError, "x must be finite, got inf or nan; use more steps"),
        ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
        ({"mate": latent(0.0, 1, 2, 3, 4)}, ValueError, "mate must have the shape"),
        ({"path": (latent(),)}, ValueError, "path must hold 3 latents for index 2, got 1"),
        ({"path": (latent(), latent(), latent(0.0, 1, 2, 3, 4))}, ValueError, "path must have the shape"),
        ({"residuals": (latent(),)}, ValueError, "residuals must hold 2 latents for index 2, got 1"),
        ({"embeddings": (torch.zeros(3, dtype=torch.int64),)}, ValueError, "embeddings must be float32 or float64"),
        ({"seed": 1.5}, TypeError, "seed must be a whole number, got 1.5"),
        ({"method": 3}, TypeError, "method must be a name, got 3"),
        ({"params": {"p": [1]}}, TypeError, "params must map names to plain texts and finite numbers, got 'p'"),
        ({"params": {"p": float("nan")}}, TypeError, "params must map names to plain texts and finite numbers"),
        ({"fingerprints": {"model": 3}}, TypeError, "fingerprints must map names to plain texts"),
        ({"meta": [1]}, TypeError, "meta must map names to values, got list"),
    ],
)
def test_refuses_parts_that_do_not_fit(change, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        replace(GOOD, **change)
    assert "\n" not in str(caught.value)


def test_check_sigmas_takes_tensors():
    assert check_sigmas(torch.tensor([0.0, 0.5, 1.0]), "flow") == (0.0, 0.5, 1.0)
