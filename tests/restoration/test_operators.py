"""Operators against their dense matrices: adjoint, norm, prox, first guess, and what each is for."""

import pytest
import torch

from retrace.restoration.operators import (
    AveragedFrames,
    BlackWhite,
    Blur,
    Combine,
    DroppedFrames,
    GaussianBlur,
    InterlacedFrames,
    LowResolution,
    Mask,
    Noise,
    PerFrame,
    gaussian_kernel,
    motion_kernel,
    picture_kernel,
)
from retrace_tests.restoration.cases import CLIP, LINEAR, PICTURE, TWINS, hole, matrix_of, picture, two_dimensional


@pytest.fixture(params=LINEAR, ids=lambda name: name.replace(" ", "_"))
def operator(request):
    return LINEAR[request.param]()


def inner(a, b, operator_shape):
    return (a * b).flatten(-len(operator_shape)).sum(-1)


def test_the_adjoint_is_the_transpose(operator):
    x, y = picture(operator), picture(operator, seed=1, out=True)
    forward, adjoint = operator.forward(x), operator.adjoint(y)
    assert forward.shape == y.shape and adjoint.shape == x.shape
    left, right = inner(forward, y, operator.out_shape), inner(x, adjoint, operator.shape)
    assert torch.allclose(left, right, rtol=0, atol=1e-10 * float(x.norm() * y.norm()))


def test_it_is_linear_and_takes_float32_and_any_batch(operator):
    x, other = picture(operator), picture(operator, seed=3)
    both = operator.forward(2.0 * x - 0.5 * other)
    assert torch.allclose(both, 2.0 * operator.forward(x) - 0.5 * operator.forward(other))
    assert torch.allclose(operator.forward(x.float()).double(), operator.forward(x), atol=1e-5)
    assert operator.forward(x.float()).dtype == operator.adjoint(operator.forward(x.float())).dtype == torch.float32
    assert torch.allclose(operator.forward(x[0]), operator.forward(x)[0])
    nested = torch.stack([x, other])
    assert torch.allclose(operator.forward(nested)[1], operator.forward(other))


def test_the_norm_is_the_largest_singular_value(operator):
    values = torch.linalg.svdvals(matrix_of(operator))
    assert operator.norm == pytest.approx(float(values[0]), rel=2e-3)


@pytest.mark.parametrize("weight", [0.3, 40.0, 1e4])
def test_the_prox_is_the_dense_solve(operator, weight):
    x, y = picture(operator), picture(operator, seed=1, out=True)
    found = operator.prox(x, y, weight)
    dense = matrix_of(operator)
    system = torch.eye(len(dense.T), dtype=torch.float64) + weight * dense.T @ dense
    right = x.flatten(1) + weight * y.flatten(1) @ dense
    wanted = torch.linalg.solve(system, right.T).T.reshape(x.shape)
    if found is None:
        found = operator.solve(x, y, weight, iterations=400, tolerance=1e-12)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_closed_forms_are_there():
    without = {name for name, make in LINEAR.items() if make().prox(*_pair(make()), 1.0) is None}
    assert without == {"motion", "kernel", "per frame", "combination", "clip combination"}


def _pair(operator):
    return picture(operator), picture(operator, seed=1, out=True)


def test_the_first_guess_is_tikhonovs(operator):
    y = picture(operator, seed=1, out=True)
    dense = matrix_of(operator)
    system = dense @ dense.T + 0.05 * operator.norm**2 * torch.eye(len(dense), dtype=torch.float64)
    wanted = (torch.linalg.solve(system, y.flatten(1).T).T @ dense).reshape(-1, *operator.shape)
    assert torch.allclose(operator.initial(y), wanted, atol=2e-3)


def test_the_inner_solve_survives_an_exact_start_and_a_huge_weight(operator):
    x = picture(operator)
    y = operator.forward(x)
    assert torch.allclose(operator.solve(x, y, 1.0), x)
    for weight in (1e10, 1e30):
        assert bool(torch.isfinite(operator.solve(picture(operator, seed=5), y, weight)).all())
    assert bool(torch.isfinite(operator.solve(torch.zeros_like(x), torch.zeros_like(y), 1.0)).all())


def test_a_picture_of_one_value_stays(operator):
    """All that blurs or scales keeps brightness; a mask and colour weights are their own case."""
    if isinstance(operator, Mask) or "mask" in repr(type(operator)).lower():
        return
    ones = torch.ones(operator.shape, dtype=torch.float64)
    out = operator.forward(ones)
    assert torch.allclose(out[out != 0], torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("name", TWINS)
def test_the_same_blur_made_twice(name):
    one, other = LINEAR[name](), TWINS[name]()
    x, y = picture(one), picture(one, seed=1)
    assert torch.allclose(one.forward(x), other.forward(x))
    assert torch.allclose(one.prox(x, y, 7.0), other.prox(x, y, 7.0))


def test_reflected_blur_is_torchs():
    kernel = motion_kernel(5, 30)
    operator = Blur(PICTURE, kernel)
    x = picture(operator)
    reach = [kernel.shape[1] // 2] * 2 + [kernel.shape[0] // 2] * 2
    padded = torch.nn.functional.pad(x, reach, mode="reflect")
    wanted = torch.nn.functional.conv2d(padded.reshape(-1, 1, *padded.shape[-2:]), kernel.flip(0, 1)[None, None])
    assert torch.allclose(operator.forward(x), wanted.reshape(x.shape))
    gaussian = gaussian_kernel(1.3)
    separable, whole = GaussianBlur((1, 24, 24), 1.3), Blur((1, 24, 24), two_dimensional(gaussian))
    x = picture(whole)
    assert torch.allclose(separable.forward(x), whole.forward(x))


def test_the_preconditioner_saves_steps():
    """g = 400, as at a noise of 0.05: the FFT of the kernel leaves the mirrored edges to the iteration."""
    operator = Blur((1, 128, 128), motion_kernel(9, 30))
    smooth = torch.nn.functional.interpolate(picture(Noise((1, 16, 16))), size=(128, 128), mode="bicubic")
    y = operator.forward(smooth) + 0.05 * picture(operator, seed=1)
    x = smooth + 0.1 * picture(operator, seed=2)

    def residual(found):
        return float((found - x + 400.0 * operator.adjoint(operator.forward(found) - y)).norm())

    preconditioned = residual(operator.solve(x, y, 400.0))
    operator.precondition = lambda r, weight: r
    assert preconditioned < 0.35 * residual(operator.solve(x, y, 400.0))


def test_low_resolution_of_whole_boxes_is_the_mean():
    operator = LowResolution((3, 8, 12), 4, "box")
    x = picture(operator)
    assert torch.allclose(operator.forward(x), torch.nn.functional.avg_pool2d(x, 4))


@pytest.mark.parametrize(("kernel", "mode"), [("bicubic", "BICUBIC"), ("lanczos", "LANCZOS")])
@pytest.mark.parametrize("size", [(24, 36), (25, 31)])
def test_low_resolution_is_pillows(kernel, mode, size):
    from PIL import Image

    operator = LowResolution((1, *size), 2.5, kernel)
    x = picture(operator)[0, 0].float()
    small = operator.out_shape[-1], operator.out_shape[-2]
    wanted = torch.tensor(list(Image.fromarray(x.numpy()).resize(small, getattr(Image.Resampling, mode)).getdata()))
    assert torch.allclose(operator.forward(x[None])[0].flatten(), wanted.float(), atol=1e-5)


def test_a_broken_box_covers_parts_of_pixels():
    operator = LowResolution((1, 10, 15), 2.5, "box")
    x = picture(operator)
    halves = x.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    assert torch.allclose(operator.forward(x), torch.nn.functional.avg_pool2d(halves, 5))


def test_motion_goes_where_it_should():
    across, up = motion_kernel(7, 0), motion_kernel(7, 90)
    assert torch.allclose(across.T, up, atol=1e-9)
    assert float(across.sum()) == pytest.approx(1.0) and float(across.sum(dim=1).max()) == pytest.approx(1.0)
    assert int((across.sum(dim=0) > 0.02).sum()) == 7
    slanted = motion_kernel(9, 45)
    # Upwards to the right: the upper right corner, not the upper left one.
    assert float(slanted[:5, -5:].sum()) > 0.3 > 1e-9 > float(slanted[:5, :5].sum())


def test_frames():
    dropped, averaged, laced = DroppedFrames(CLIP, 4), AveragedFrames(CLIP, 3), InterlacedFrames(CLIP)
    x = picture(dropped)
    assert torch.equal(dropped.forward(x), x[:, [0, 4]])
    assert torch.allclose(averaged.forward(x)[:, 1], x[:, 3:].mean(dim=1))
    assert torch.equal(laced.forward(x)[:, 2], x[:, 2, :, 0::2]) and torch.equal(
        laced.forward(x)[:, 3], x[:, 3, :, 1::2]
    )
    first, second = Mask(CLIP[1:], hole(CLIP)), Noise(CLIP[1:])
    each = PerFrame([first, second], 6)
    assert torch.equal(each.forward(x)[:, 2], first.forward(x[:, 2]))
    assert torch.equal(each.forward(x)[:, 3], x[:, 3])
    assert each.measured == 3 * first.measured + 3 * second.measured


def test_a_combination_is_in_the_order_it_happened():
    blur, small = GaussianBlur((1, 8, 8), 1.0), LowResolution((1, 8, 8), 2)
    x = picture(blur)
    assert torch.allclose(Combine([blur, small]).forward(x), small.forward(blur.forward(x)))


def test_masks_count_what_they_keep():
    operator = Mask(PICTURE, hole())
    assert operator.measured == 3 * (9 * 12 - 4 * 5)
    each = Mask(PICTURE, torch.stack([hole(), torch.ones(1, 9, 12)])).measured
    assert each.flatten().tolist() == [3 * (9 * 12 - 4 * 5), 3 * 9 * 12] and each.shape == (2, 1, 1, 1)
    frames = torch.ones(CLIP[0], 1, *CLIP[-2:])
    frames[2:] = 0.0
    assert Mask(CLIP, frames).measured == 2 * 3 * 8 * 6 and Mask(CLIP, frames[:1]).measured == 6 * 3 * 8 * 6


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Mask(PICTURE, torch.ones(1, 4, 4)), "12 x 9"),
        (lambda: Mask(PICTURE, torch.zeros(1, 9, 12)), "covers all"),
        (lambda: Mask(CLIP, torch.ones(4, 1, 8, 6)), "must hold 1 or 6 pictures for a clip of 6 frames, got 4"),
        (lambda: Mask(PICTURE, torch.full((1, 9, 12), 2.0)), "between 0 and 1"),
        (lambda: LowResolution(PICTURE, 0.5), "at least 1"),
        (lambda: LowResolution(PICTURE, 40), "leave a pixel"),
        (lambda: LowResolution(PICTURE, 2, "sinc"), "filter must be one of"),
        (lambda: GaussianBlur(PICTURE, 0.0), "radius must be above 0"),
        (lambda: GaussianBlur(PICTURE, 1.0, "mirror"), "edges must be"),
        (lambda: Blur(PICTURE, torch.ones(2, 3)), "odd sides"),
        (lambda: Blur(PICTURE, torch.ones(41, 41)), "must fit the picture"),
        (lambda: picture_kernel(torch.tensor([[1.0, -1.0, 0.0]])), "must not add up to zero"),
        (lambda: picture_kernel(torch.zeros(3, 3)), "must not add up to zero"),
        (lambda: picture_kernel(torch.ones(3, 3, 3)), "one finite picture"),
        (lambda: motion_kernel(0.5, 0), "length must be at least 1"),
        (lambda: BlackWhite((1, 4, 4)), "3 channels"),
        (lambda: BlackWhite(PICTURE, (0, 0, 0)), "not all zero"),
        (lambda: DroppedFrames(PICTURE, 2), "must have frames"),
        (lambda: DroppedFrames((1, 3, 8, 6), 2), "two frames at least, got 1"),
        (lambda: InterlacedFrames((1, 3, 8, 6)), "two frames at least, got 1"),
        (lambda: DroppedFrames(CLIP, 0), "at least 1"),
        (lambda: AveragedFrames(CLIP, 4), "multiple of every"),
        (lambda: InterlacedFrames((2, 3, 5, 4)), "must be even"),
        (lambda: PerFrame([], 2), "a damage and a frame"),
        (lambda: PerFrame([Noise((3, 4, 4)), Noise((3, 4, 6))], 2), "leave one size"),
        (lambda: Combine([]), "got none"),
        (lambda: Combine([LowResolution(PICTURE, 3), Noise(PICTURE)]), "follow in size"),
        (lambda: Noise((0, 4, 4)), "height and width"),
        (lambda: LowResolution(PICTURE, 3).check_damaged(torch.zeros(1, 3, 9, 12)), "must be 4 x 3 pixels"),
    ],
)
def test_refusals_are_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
