"""Operators against those of DeepInverse, where it is installed (extra `oracle`). It has no JPEG and no frames."""

import warnings

import pytest
import torch

from retrace.restoration.operators import (
    BlackWhite,
    Blur,
    Combine,
    GaussianBlur,
    LowResolution,
    Mask,
    Noise,
    gaussian_kernel,
    motion_kernel,
)
from retrace_tests.restoration.cases import picture
from retrace_tests.restoration.problems import unit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    physics = pytest.importorskip("deepinv.physics")

SHAPE = (3, 12, 16)
LOPSIDED = unit(5, 3, seed=4).abs() / unit(5, 3, seed=4).abs().sum()


def _blur(kernel, edges):
    return Blur(SHAPE, kernel, edges), physics.Blur(filter=kernel[None, None], padding=edges)


def _gaussian(edges):
    kernel = torch.outer(gaussian_kernel(0.9), gaussian_kernel(0.9))
    return GaussianBlur(SHAPE, 0.9, edges), physics.Blur(filter=kernel[None, None], padding=edges)


def _mask(kept=0.0):
    keep = torch.ones(1, *SHAPE[1:], dtype=torch.float64)
    keep[:, 2:6, 3:8] = kept
    return Mask(SHAPE, keep), physics.Inpainting(SHAPE, mask=keep.expand(SHAPE))


def _box(factor, shape=SHAPE):
    """Theirs takes every n-th pixel of a blur; without padding that is the mean of the pixels that fall together."""
    box = torch.full((1, 1, factor, factor), factor**-2.0, dtype=torch.float64)
    theirs = physics.Downsampling(img_size=shape, filter=box, factor=factor, padding="valid")
    return LowResolution(shape, factor, "box"), theirs


def _chain():
    blur, box = _blur(LOPSIDED, "reflect"), _box(2)
    return Combine([blur[0], box[0]]), physics.forward.ComposedLinearPhysics(blur[1], box[1])


PAIRS = {
    "mask": _mask,
    "soft mask": lambda: _mask(0.3),
    "small": lambda: _box(2),
    "smaller": lambda: _box(4),
    "blur": lambda: _blur(LOPSIDED, "reflect"),
    "circular blur": lambda: _blur(LOPSIDED, "circular"),
    "motion": lambda: _blur(motion_kernel(5, 30), "reflect"),
    "gaussian": lambda: _gaussian("reflect"),
    "circular gaussian": lambda: _gaussian("circular"),
    "noise": lambda: (Noise(SHAPE), physics.Denoising()),
    "grey": lambda: (BlackWhite(SHAPE, (0.25, 0.5, 0.25)), physics.Decolorize(channels=3, srf=[0.25, 0.5, 0.25])),
    "blur, then small": _chain,
}


@pytest.fixture(params=PAIRS, ids=lambda name: name.replace(" ", "_"))
def pair(request):
    mine, theirs = PAIRS[request.param]()
    with warnings.catch_warnings():
        # Downsampling keeps spectra of its filter, which a module's `to` makes real; without padding it uses none.
        warnings.simplefilter("ignore")
        return mine, theirs.to(torch.float64)


def test_forward_and_adjoint(pair):
    mine, theirs = pair
    x, y = picture(mine), picture(mine, seed=1, out=True)
    with torch.no_grad():
        assert torch.allclose(mine.forward(x), theirs.A(x), atol=1e-6)
        assert torch.allclose(mine.adjoint(y), theirs.A_adjoint(y), atol=1e-6)


def test_prox(pair):
    """Theirs minimises gamma/2 |A z - y|^2 + 1/2 |z - x|^2."""
    mine, theirs = pair
    x, y = picture(mine), picture(mine, seed=1, out=True)
    found = mine.prox(x, y, 3.0)
    found = mine.solve(x, y, 3.0, tolerance=1e-12, iterations=200) if found is None else found
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The closed form of Decolorize drops all chroma, so the generic solve of its parent is asked.
        wanted = physics.LinearPhysics.prox_l2(theirs, x, y, 3.0, max_iter=500, tol=1e-10)
    assert torch.allclose(found, wanted, atol=2e-4)


def test_norm(pair):
    mine, theirs = pair
    with torch.no_grad():
        square = float(theirs.compute_sqnorm(picture(mine, batch=(1,)), max_iter=500, tol=1e-9, verbose=False))
    assert mine.norm == pytest.approx(square**0.5, rel=5e-3)


def test_bicubic_away_from_the_edge():
    """Theirs is MATLAB's imresize, which mirrors the picture where Pillow and this one weigh what is there."""
    shape = (3, 32, 48)
    mine, theirs = LowResolution(shape, 2, "bicubic"), physics.DownsamplingMatlab(factor=2)
    x, y = picture(mine).float(), picture(mine, seed=1, out=True).float()
    inner = slice(3, -3)
    # What stays away from the edge in the small picture does so in the large one.
    middle = torch.zeros_like(y)
    middle[..., inner, inner] = y[..., inner, inner]
    with torch.no_grad():
        assert torch.allclose(mine.forward(x)[..., inner, inner], theirs.A(x)[..., inner, inner], atol=1e-5)
    assert torch.allclose(mine.adjoint(middle), theirs.A_adjoint(middle), atol=1e-5)
