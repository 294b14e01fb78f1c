"""Gradients through networks that write into what autograd has saved, against the same networks without such writes."""

import gc
import weakref

import pytest
import torch

from retrace.inversion.mutation import mutation_of_saved


def freed(x, weights, writes):
    """What is saved is written to and given up, so that the next block's may get its place in memory and its id."""
    for weight in weights:
        inside = x @ weight
        squared = inside.square()
        inside = inside.add_(1.0) if writes else inside + 1.0
        x = x + 0.1 * squared + 0.1 * inside
        del inside
    return x


def through_a_view(x, weights, writes):
    """What is saved is written to through a view that begins elsewhere."""
    for weight in weights:
        x = (x @ weight).sin()
        squared = x.square()
        if writes:
            x[:, 3:] += 1.0
        else:
            x = torch.cat([x[:, :3], x[:, 3:] + 1.0], 1)
        x = x + 0.1 * squared
    return x


def own_result(x, weights, writes):
    """Operations that save their own result, which is then written to, with out= too."""
    for weight in weights:
        x = torch.tanh(x @ weight).exp()
        if writes:
            with torch.no_grad():
                torch.mul(x.detach(), 0.25, out=x.detach())
        else:
            x = x + (0.25 * x - x).detach()
    return x


NETWORKS = {"freed": freed, "view": through_a_view, "result": own_result}


def gradient(network, x, weights, writes):
    leaf = x.clone().requires_grad_(True)
    # Every row and column counts for itself.
    places = torch.linspace(-1.0, 2.0, x.numel(), dtype=x.dtype).reshape(x.shape)
    return torch.autograd.grad((network(leaf * 1.0, weights, writes) * places).sum(), leaf)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_is_that_without_writes(name):
    """Two hundred times, since a mistaken identity needs memory that is given out again."""
    generator = torch.Generator().manual_seed(0)
    weights = [0.3 * torch.randn(6, 6, dtype=torch.float64, generator=generator) for _ in range(8)]
    with mutation_of_saved():
        for _ in range(200):
            x = 0.5 * torch.randn(4, 6, dtype=torch.float64, generator=generator)
            found, wanted = (gradient(NETWORKS[name], x, weights, writes) for writes in (True, False))
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_nothing_is_kept_after_the_backward_pass():
    weight = torch.eye(6, dtype=torch.float64)
    with mutation_of_saved():
        x = torch.rand(4, 6, dtype=torch.float64).requires_grad_(True)
        hidden = x * 2.0
        watched = weakref.ref(hidden)
        result = freed(hidden * hidden, [weight], True)
        del hidden
        torch.autograd.grad(result.sum(), x)
        del result
        gc.collect()
        assert watched() is None
