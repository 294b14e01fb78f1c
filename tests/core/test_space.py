"""What the two weights of a space say."""

import pytest
import torch

from retrace.core import clean_variance, implied_noise, mix, noise_std, vp_scale, weights
from retrace_tests.inversion.problems import Mixture


@pytest.mark.parametrize("start", [0.0, 0.1])
@pytest.mark.parametrize("space", ["ve", "flow"])
def test_noise_goes_in_and_comes_out(space, start):
    mixture = Mixture(space)
    clean, noise = mixture.sample(2), mixture.noise(2)
    state = mix(clean, noise, 0.8, space, start)
    torch.testing.assert_close(implied_noise(state, clean, 0.8, space, start), noise)
    assert torch.equal(mix(clean, noise, start, space, start), clean)
    assert noise_std(mix(clean, 3.0 * noise, 0.8, space), clean, 0.8, space) == pytest.approx(3.0 * float(noise.std()))
    with pytest.raises(ValueError, match="sigma must lie above the clean end"):
        implied_noise(state, clean, start, space, start)


def test_weights_and_what_follows_from_them():
    assert weights(0.5, "ve") == (1.0, 0.5) and weights(0.25, "flow") == (0.75, 0.25)
    two, ten = torch.full((1, 1), 2.0), torch.full((1, 1), 10.0)
    assert float(mix(two, ten, 0.5, "ve")) == 7.0 and float(mix(two, ten, 0.5, "flow")) == 6.0
    assert torch.equal(mix(two, ten, 1.0, "flow"), ten)
    assert weights(0.5, "flow", 0.5) == (1.0, 0.0) and weights(1.0, "flow", 0.5) == (0.0, 1.0)
    assert vp_scale(0.75, "ve") == pytest.approx(1.25) and vp_scale(1.0, "flow") == 1.0
    assert clean_variance(0.0, "ve") == 0.0 and clean_variance(1.0, "flow", 0.25) == 0.25
    # The variance of a Gaussian N(0, v) given a x0 + b n, by Bayes' rule.
    assert clean_variance(2.0, "ve", 3.0) == pytest.approx(1.0 / (1.0 / 3.0 + 1.0 / 4.0))
    for sigma, space, start in ((-0.1, "ve", 0.0), (1.1, "flow", 0.0), (float("nan"), "ve", 0.0), (0.5, "ve", -1.0)):
        with pytest.raises(ValueError, match="sigma must be 0 or more, and at most 1 for flow, got"):
            weights(sigma, space, start)
    with pytest.raises(ValueError, match="must stand below sigma 1, got 1.0"):
        weights(1.0, "flow", 1.0)
    with pytest.raises(ValueError, match="space must be 've' or 'flow', got 'eps'"):
        weights(0.5, "eps")
