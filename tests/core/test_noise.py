"""What is drawn depends on the seed and the row alone."""

import pytest
import torch

from retrace.core.noise import Noises, generator


def test_one_noise_for_all_precisions_and_batches():
    like = torch.zeros(2, 3, 4, 5)
    single, double = Noises(3, like).draw(), Noises(3, like.double()).draw()
    assert single.dtype == torch.float32 and torch.equal(single, double.float())
    assert not torch.equal(double, single.double())
    wanted = torch.randn(3, 4, 5, generator=generator(3)).double()
    assert torch.equal(Noises(3, like.double(), precision=torch.float32).draw()[0], wanted)
    assert abs(float(Noises(0, torch.zeros(1, 4, 64, 64)).draw().std()) - 1.0) < 0.02
    # Row r draws from seed + r, whose numbers wrap.
    assert torch.equal(Noises(2**64 - 1, like).draw()[1:], Noises(0, like[:1]).draw())
    assert torch.equal(Noises(0, like, rows=[7, 2]).draw(), torch.cat([Noises(r, like[:1]).draw() for r in (7, 2)]))
    with pytest.raises(ValueError, match="rows must number the 2 pictures of the latent, got 1 numbers"):
        Noises(0, like, rows=[0])


@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 2, 4)), (2, (3, 2, 4, 5))])
def test_shared_noise_is_that_of_the_first(axis, shape):
    like = torch.zeros(shape)
    noises = Noises(5, like, shared=axis)
    first, second = noises.draw(), noises.draw()
    assert first.shape == shape and not torch.equal(first, second)
    assert torch.equal(first, first.narrow(axis, 0, 1).expand(shape))
    assert torch.equal(first.narrow(axis, 0, 1), Noises(5, like.narrow(axis, 0, 1)).draw())
