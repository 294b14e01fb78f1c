"""Hashes that mean the same everywhere."""

import pytest
import torch

from retrace.inversion import fingerprint


def test_is_the_same_on_every_machine():
    # Written down once: records from other machines and versions must go on comparing equal.
    parts = ("unet", 3, 0.5, None, True, [1, "a"], {"b": 1, "a": 2}, torch.arange(4, dtype=torch.float32))
    assert fingerprint(*parts) == "99676c6a6bdb75f206c253fd09ff33a3e71bc6c5d634c61571fadfc55c4538d5"


def test_tells_apart():
    zero = torch.zeros(2, 3)
    others = [
        zero, zero.reshape(3, 2), zero.double(), zero + 1e-30, -zero, zero.to(torch.bfloat16),
        0, 0.0, False, None, "", b"", "0", [], [0], [[0]], [0, 0], {}, {"0": 0}, ["ab", "c"], ["a", "bc"],
    ]  # fmt: skip
    assert len({fingerprint(other) for other in others}) == len(others)


def test_sees_values_not_memory():
    grid = torch.arange(6.0).reshape(2, 3)
    assert fingerprint(grid.t().contiguous()) == fingerprint(grid.t()) == fingerprint(grid.t().clone().requires_grad_())


def test_refuses_what_has_no_stable_form():
    with pytest.raises(TypeError, match="must be made of tensors and plain values, got object"):
        fingerprint(object())
