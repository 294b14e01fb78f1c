"""Operators against those of DeepInverse, where it is installed (extra `oracle`)."""

import warnings

import pytest
import torch

from retrace.restoration.operators import BlackWhite, Blur, Combine, GaussianBlur, LowResolution, Mask, Noise
from retrace_tests.restoration.cases import hole, lopsided_kernel, picture

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    physics = pytest.importorskip("deepinv.physics")

SHAPE = (3, 12, 16)


def _blur(edges):
    kernel = lopsided_kernel()
    # Theirs correlates with "reflect", and pads by the kernel's half sides alike.
    theirs = physics.Blur(filter=kernel[None, None], padding={"reflect": "reflect", "circular": "circular"}[edges])
    return Blur(SHAPE, kernel, edges), theirs


def _mask():
    keep = hole(SHAPE).double()
    return Mask(SHAPE, keep), physics.Inpainting(SHAPE, mask=keep.expand(SHAPE))


PAIRS = {
    "mask": _mask,
    "blur": lambda: _blur("reflect"),
    "circular blur": lambda: _blur("circular"),
    "noise": lambda: (Noise(SHAPE), physics.Denoising()),
    "grey": lambda: (BlackWhite(SHAPE, (0.25, 0.5, 0.25)), physics.Decolorize(channels=3, srf=[0.25, 0.5, 0.25])),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    mine, theirs = PAIRS[request.param]()
    return request.param, mine, theirs.to(torch.float64)


def test_forward_and_adjoint(pair):
    name, mine, theirs = pair
    x, y = picture(mine), picture(mine, seed=1, out=True)
    with torch.no_grad():
        assert torch.allclose(mine.forward(x), theirs.A(x), atol=1e-5), name
        assert torch.allclose(mine.adjoint(y), theirs.A_adjoint(y), atol=1e-5), name


def test_prox(pair):
    """Theirs minimises gamma/2 |A z - y|^2 + 1/2 |z - x|^2."""
    name, mine, theirs = pair
    x, y = picture(mine), picture(mine, seed=1, out=True)
    found = mine.prox(x, y, 3.0)
    found = mine.solve(x, y, 3.0, tolerance=1e-12, iterations=200) if found is None else found
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The closed form of Decolorize drops all chroma, so the generic solve of its parent is asked.
        wanted = physics.LinearPhysics.prox_l2(theirs, x, y, 3.0, max_iter=500, tol=1e-10)
    assert torch.allclose(found, wanted, atol=2e-4), name


def test_a_blur_then_small():
    """Their Downsampling takes every second pixel of a blur; mine is the box of the same four pixels."""
    box = torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)
    theirs = physics.Downsampling(img_size=SHAPE, filter=box.float(), factor=2, padding="circular")
    mine = LowResolution(SHAPE, 2, "box")
    x = picture(mine).float()
    with torch.no_grad():
        difference = (theirs.A(x) - mine.forward(x)).abs().amax()
        shifted = min(
            float((theirs.A(torch.roll(x, (i, j), (-2, -1))) - mine.forward(x)).abs().amax())
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        )
    assert min(float(difference), shifted) < 1e-5
    gaussian = Combine([GaussianBlur(SHAPE, 1.0), mine])
    assert gaussian.forward(x).shape == (2, 3, 6, 8)
