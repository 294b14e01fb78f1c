"""The JPEG cells: against Pillow's coder, and the projection on them."""

import io

import numpy as np
import pytest
import torch

from retrace.demo.world import Scene, render
from retrace.restoration.operators import JPEG, DamageJPEG, SavedAs, quality_tables
from retrace_tests.restoration.problems import unit

SHAPE = (3, 32, 48)


def pictures(batch=2, seed=0, shape=SHAPE):
    """Smooth colours with an edge, in [-1, 1]."""
    coarse = unit(batch, shape[0], 5, 7, seed=seed)
    smooth = torch.nn.functional.interpolate(coarse, size=shape[-2:], mode="bicubic", align_corners=True)
    smooth[..., 9:20, 13:31] *= -1
    return (0.4 * smooth).clamp(-0.9, 0.9)


def test_tables_are_those_of_pillow():
    from PIL import Image

    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (200, 30, 60)).save(file, "JPEG", quality=quality)
        stored = Image.open(file).quantization
        for table, kept in zip(quality_tables(quality), (stored[0], stored[1]), strict=True):
            assert [value for row in table for value in row] == list(kept)
    # Grey levels are counted from 128: the mean of a block of the level after is 8 times 1.
    coder = JPEG((1, 8, 8), quality_tables(100))
    middle = [coder.coefficients(torch.full((1, 8, 8), grey / 127.5 - 1))[0][..., 0, 0] for grey in (128.0, 129.0)]
    assert [float(value) for value in middle] == [0.0, 8.0]


@pytest.mark.parametrize(("half", "subsampling"), [(False, 0), (True, 2)])
def test_the_decoded_picture_is_that_of_pillow(half, subsampling):
    """Within the rounding of an 8-bit coder; with half colour in brightness, as decoders smooth colour differently."""
    from PIL import Image

    drawn, _ = render([Scene("big", "red", "star", "left", "cyan")], 3)
    x = torch.from_numpy(drawn).double().permute(0, 3, 1, 2) / 127.5 - 1
    file = io.BytesIO()
    Image.fromarray(drawn[0]).save(file, "JPEG", quality=30, subsampling=subsampling)
    decoded = np.asarray(Image.open(file).convert("RGB"), dtype=np.float64)
    mine = ((JPEG(x.shape[1:], quality_tables(30), half).forward(x) + 1) * 127.5).clamp(0, 255)[0].permute(1, 2, 0)
    difference = mine.numpy() - decoded
    if half:
        difference = difference @ np.array([0.299, 0.587, 0.114])
    assert np.sqrt((difference**2).mean()) < 1.5
    # The cells that Pillow's picture lies in are those of the original.
    if not half:
        coder = JPEG(x.shape[1:], quality_tables(30), half)
        reread = torch.from_numpy(decoded).permute(2, 0, 1)[None] / 127.5 - 1
        pairs = zip(coder.coefficients(x), coder.coefficients(reread), strict=True)
        assert all(float((a == b).double().mean()) > 0.99 for a, b in pairs)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("quality", [5, 30, 90])
def test_projection(half, quality):
    """Its coefficients are those of y, twice is once, and nothing nearer gives y."""
    coder = JPEG(SHAPE, quality_tables(quality), half)
    x, y = pictures(seed=1), coder.forward(pictures())
    found = coder.project(x, y)
    assert [tuple(plane.shape[1:3]) for plane in coder.coefficients(x)] == [(4, 6), *[(2, 3) if half else (4, 6)] * 2]
    for nearest in (found, coder.project(x.float(), y.float())):
        pairs = zip(coder.coefficients(pictures()), coder.coefficients(nearest), strict=True)
        assert all(torch.equal(wanted, again.double()) for wanted, again in pairs)
    assert torch.allclose(coder.project(found, y), found, atol=1e-9)
    assert torch.allclose(coder.forward(found), y, atol=1e-9)
    # In luminance and colour difference: <x - P x, z - P x> <= 0 for every z that gives y.
    ycc = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]).double()
    for z in (y, pictures(), coder.project(pictures(seed=2), y)):
        a, b = (torch.einsum("ij,njhw->nihw", ycc, value) for value in (x - found, z - found))
        angle = (a * b).flatten(1).sum(1) / (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1)).clamp_min(1e-12)
        assert float(angle.max()) < 1e-3
    # Of what lies in the cells only coefficients on a very border are moved, by a thousandth of a step.
    assert float(coder.residual(pictures(), y).abs().max()) < 6e-3 and torch.equal(coder.residual(x, y), x - found)


def test_broken_sides_are_padded():
    shape = (3, 21, 30)
    coder, x, other = JPEG(shape, quality_tables(40)), pictures(shape=shape), pictures(seed=1, shape=shape)
    y = coder.forward(x)
    assert y.shape == x.shape and float((y - x).square().mean()) < 0.05
    assert float((coder.project(other, y) - x).square().mean()) < 0.5 * float((other - x).square().mean())


def test_grey_pictures_clips_and_files():
    grey, x = JPEG((1, 16, 16), quality_tables(30)), pictures(shape=(1, 16, 16))
    y = grey.forward(x)
    assert torch.allclose(grey.forward(grey.project(pictures(seed=1, shape=(1, 16, 16)), y)), y)
    whole = JPEG(SHAPE, quality_tables(30)).forward(pictures())
    assert torch.allclose(JPEG((2, *SHAPE), quality_tables(30)).forward(pictures()[None])[0], whole)
    # A file says it all, whatever the settings beside it.
    saved = DamageJPEG(quality=90, half_colour=False, saved=SavedAs("photo.jpg", quality_tables(30), True))
    assert saved.label == "JPEG as photo.jpg" and torch.equal(saved.build(SHAPE).forward(pictures()), whole)
    assert torch.equal(DamageJPEG(quality=30).build(SHAPE).forward(pictures()), whole)
