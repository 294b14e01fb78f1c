"""The contract of every damage and its operator, found by file, and what each of the operators is for."""

import inspect

import pytest
import torch

from retrace.core.registry import all_classes
from retrace.restoration import DAMAGES
from retrace.restoration import operators as ops
from retrace_tests.restoration.problems import CLIP, PICTURE, hole, matrix_of, picture

OPERATORS = {
    name: made.build(shape) for damage in DAMAGES.values() for name, (made, shape) in damage.examples().items()
}
OPERATORS["soft mask"] = ops.Mask(PICTURE, 1.0 - 0.7 * hole())  # no node makes one
LINEAR = [name for name, operator in OPERATORS.items() if operator.linear]


@pytest.fixture(params=LINEAR, ids=lambda name: name.replace(" ", "_"))
def operator(request):
    return OPERATORS[request.param]


@pytest.fixture(params=[n for n in OPERATORS if n not in LINEAR], ids=lambda name: name.replace(" ", "_"))
def rounding(request):
    return OPERATORS[request.param]


def inner(a, b, shape):
    return (a * b).flatten(-len(shape)).sum(-1)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damage_says_what_it_is(damage):
    assert damage.title and damage.description.endswith(".") and damage.aliases and inspect.getdoc(damage)
    assert all(setting.tooltip.endswith(".") for setting in damage.parameters())
    assert damage.examples(), "examples are what the contract is tested on"
    for made, shape in damage.examples().values():
        assert made.label and (len(shape) == 4 or not made.over_time)
        built = made.build(shape)
        assert made.keeps_size == (built.out_shape[-2:] == shape[-2:]) or made.over_time


def test_every_operator_is_an_example():
    """An operator that no damage makes would be tested by nobody."""
    missed = [cls for cls in all_classes(ops, ops.Operator) if not any(isinstance(o, cls) for o in OPERATORS.values())]
    assert missed == []


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


def test_a_picture_of_one_value_stays(operator):
    """All that blurs, scales or weighs keeps brightness; a mask lowers it, and a frame of y is one of x."""
    out = operator.forward(torch.ones(operator.shape, dtype=torch.float64))
    assert isinstance(operator, ops.Mask) or torch.allclose(out, torch.ones_like(out))


def test_the_norm_is_the_largest_singular_value(operator):
    assert operator.norm == pytest.approx(float(torch.linalg.matrix_norm(matrix_of(operator), 2)), rel=2e-3)


def test_a_row_that_holds_one_pixel_says_its_energy(operator):
    energy, rows = operator.row_energy(), matrix_of(operator).square().sum(dim=1)
    if energy is not None:
        assert torch.allclose(energy.double().expand(1, *operator.out_shape).flatten(), rows)
    assert operator.measured == int((rows > 0).sum())


@pytest.mark.parametrize("weight", [0.3, 1e4])
def test_the_prox_is_the_dense_solve(operator, weight):
    x, y = picture(operator), picture(operator, seed=1, out=True)
    solved = operator.prox(x, y, weight)
    dense = matrix_of(operator)
    system = torch.eye(len(dense.T), dtype=torch.float64) + weight * dense.T @ dense
    wanted = torch.linalg.solve(system, (x.flatten(1) + weight * y.flatten(1) @ dense).T).T.reshape(x.shape)
    if solved is None:
        solved = operator.solve(x, y, weight, iterations=400, tolerance=1e-12)
    assert torch.allclose(solved, wanted, atol=1e-5)


def test_the_closed_forms_are_there():
    """Losing one would go unseen: the inner solve comes to the same end, only later."""
    weighed = {n: OPERATORS[n].prox(picture(OPERATORS[n]), picture(OPERATORS[n], out=True), 1.0) for n in LINEAR}
    closed = ["mask", "soft mask", "noise", "black and white, mean", "box, 3.0", "lanczos, 2.0", "reflect gaussian"]
    closed += ["circular motion", "dropped", "averaged", "interlaced"]
    assert all(weighed[name] is not None for name in closed)


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


def test_rounding_is_projected_on(rounding):
    """What rounds has no adjoint: residual, batch and precision are those of the nearest picture that gives y."""
    x, y = 0.3 * picture(rounding), rounding.forward(0.3 * picture(rounding, seed=1))
    with pytest.raises(TypeError, match="through its projection"):
        rounding.adjoint(y)
    nearer = x
    for _ in range(40):
        nearer = rounding.prox(nearer, y, 100.0)
    assert float(rounding.residual(nearer, y).abs().max()) < 5e-3 < float(rounding.residual(x, y).abs().max())
    assert rounding.linear_part.linear and rounding.linear_part.shape == rounding.shape
    assert rounding.norm == pytest.approx(rounding.linear_part.norm)
    assert rounding.initial(y).shape == x.shape
    assert torch.allclose(rounding.prox(x, y, 1.0)[1], rounding.prox(x[1], y[1], 1.0))
    assert torch.allclose(rounding.prox(x[None], y[None], 1.0)[0], rounding.prox(x, y, 1.0))
    assert rounding.prox(x.float(), y.float(), 1.0).dtype == torch.float32


@pytest.mark.parametrize("name", ["mask", "reflect motion", "JPEG"])
def test_a_combination_of_one_is_that_one(name):
    one = OPERATORS[name]
    alone = ops.Combine([one])
    x, y = 0.3 * picture(one), one.forward(0.3 * picture(one, seed=1))
    for call in (
        lambda operator: operator.forward(x),
        lambda operator: operator.initial(y),
        lambda operator: operator.residual(x, y),
        lambda operator: operator.linear_part.forward(x),
        lambda operator: operator.prox(x, y, 2.0),
        lambda operator: operator.precondition(x, 2.0) if operator.linear else None,
        lambda operator: operator.row_energy(),
        lambda operator: operator.seen(y),
        lambda operator: operator.norm,
        lambda operator: operator.measured,
    ):
        wanted, got = call(one), call(alone)
        assert torch.equal(wanted, got) if isinstance(wanted, torch.Tensor) else wanted == got


def test_the_same_blur_made_twice():
    """A Gaussian by rows and columns, and by the FFT; the reflected edge as torch pads it."""
    # So broad that the kernel wraps around.
    kernel = ops.gaussian_kernel(1.9)
    assert float((kernel * torch.arange(-9, 10).square()).sum()) == pytest.approx(1.9**2, rel=1e-3)
    one, other = ops.GaussianBlur(PICTURE, 1.9, "circular"), ops.Blur(PICTURE, torch.outer(kernel, kernel), "circular")
    x, y = picture(one), picture(one, seed=1)
    assert torch.allclose(one.forward(x), other.forward(x))
    assert torch.allclose(one.prox(x, y, 7.0), other.prox(x, y, 7.0))
    kernel = ops.motion_kernel(5, 30)
    operator, x = OPERATORS["reflect motion"], picture(one)
    reach = [kernel.shape[1] // 2] * 2 + [kernel.shape[0] // 2] * 2
    padded = torch.nn.functional.pad(x, reach, mode="reflect")
    wanted = torch.nn.functional.conv2d(padded.reshape(-1, 1, *padded.shape[-2:]), kernel.flip(0, 1)[None, None])
    assert torch.allclose(operator.forward(x), wanted.reshape(x.shape))
    outer = torch.outer(*[ops.gaussian_kernel(1.3)] * 2)
    separable, whole = ops.GaussianBlur((1, 24, 24), 1.3), ops.Blur((1, 24, 24), outer)
    assert torch.allclose(separable.forward(picture(whole)), whole.forward(picture(whole)))


def test_the_preconditioner_saves_steps():
    """g = 400, as at a noise of 0.05: the FFT of the kernel leaves the mirrored edges to the iteration."""
    operator = ops.Blur((1, 128, 128), ops.motion_kernel(9, 30))
    smooth = torch.nn.functional.interpolate(picture(ops.Noise((1, 16, 16))), size=(128, 128), mode="bicubic")
    y = operator.forward(smooth) + 0.05 * picture(operator, seed=1)
    x = smooth + 0.1 * picture(operator, seed=2)

    def residual(solved):
        return float((solved - x + 400.0 * operator.adjoint(operator.forward(solved) - y)).norm())

    preconditioned = residual(operator.solve(x, y, 400.0))
    operator.precondition = lambda r, weight: r
    assert preconditioned < 0.35 * residual(operator.solve(x, y, 400.0))


@pytest.mark.parametrize(("kernel", "mode"), [("bicubic", "BICUBIC"), ("lanczos", "LANCZOS")])
@pytest.mark.parametrize("size", [(24, 36), (25, 31)])
def test_low_resolution_is_pillows(kernel, mode, size):
    from PIL import Image

    operator = ops.LowResolution((1, *size), 2.5, kernel)
    x = picture(operator)[0, 0].float()
    small = operator.out_shape[-1], operator.out_shape[-2]
    wanted = torch.tensor(list(Image.fromarray(x.numpy()).resize(small, getattr(Image.Resampling, mode)).getdata()))
    assert torch.allclose(operator.forward(x[None])[0].flatten(), wanted.float(), atol=1e-5)


def test_boxes_are_means_also_of_parts_of_pixels():
    x = picture(ops.Noise((1, 10, 15)))
    halves = x.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    broken, whole = ops.LowResolution((1, 10, 15), 2.5, "box"), ops.LowResolution((1, 10, 15), 5, "box")
    assert torch.allclose(broken.forward(x), torch.nn.functional.avg_pool2d(halves, 5))
    assert torch.allclose(whole.forward(x), torch.nn.functional.avg_pool2d(x, 5))


def test_motion_goes_where_it_should():
    across, up = ops.motion_kernel(7, 0), ops.motion_kernel(7, 90)
    assert torch.allclose(across.T, up, atol=1e-9)
    assert float(across.sum()) == pytest.approx(1.0) and float(across.sum(dim=1).max()) == pytest.approx(1.0)
    assert int((across.sum(dim=0) > 0.02).sum()) == 7
    slanted = ops.motion_kernel(9, 45)
    # Upwards to the right: the upper right corner, not the upper left one.
    assert float(slanted[:5, -5:].sum()) > 0.3 > 1e-9 > float(slanted[:5, :5].sum())


def test_frames_and_orders():
    x = picture(OPERATORS["dropped"])
    assert torch.equal(OPERATORS["dropped"].forward(x), x[:, [0, 4]])
    assert torch.allclose(OPERATORS["averaged"].forward(x)[:, 1], x[:, 3:].mean(dim=1))
    laced = OPERATORS["interlaced"].forward(x)
    assert torch.equal(laced[:, 2], x[:, 2, :, 0::2]) and torch.equal(laced[:, 3], x[:, 3, :, 1::2])
    # What happened to each frame came first, and what stands first in a combination too.
    small = ops.LowResolution(CLIP, 2, "box").forward(x)
    wanted = torch.stack([small[:, i : i + 2].mean(dim=1) for i in (0, 2, 4)], dim=1)
    assert torch.allclose(OPERATORS["small, averaged"].forward(x), wanted)
    blur, small = ops.DamageBlur(radius=1.0), ops.DamageLowResolution(scale=2.0)
    chain, x = ops.DamageCombine(first=blur, second=small), picture(ops.Noise((1, 8, 8)))
    wanted = ops.LowResolution((1, 8, 8), 2).forward(ops.GaussianBlur((1, 8, 8), 1.0).forward(x))
    assert torch.allclose(chain.build((1, 8, 8)).forward(x), wanted)
    assert chain.label == "blur of radius 1, then 2 times smaller (bicubic)"


def test_masks_count_what_they_keep_and_are_grown_from_any_grey():
    assert ops.Mask(PICTURE, 1.0 - hole()).measured == 3 * (9 * 12 - 4 * 5)
    each = ops.Mask(PICTURE, torch.stack([1.0 - hole(), torch.ones(1, 9, 12)])).measured
    assert each.flatten().tolist() == [3 * (9 * 12 - 4 * 5), 3 * 9 * 12] and each.shape == (2, 1, 1, 1)
    missing = torch.zeros(9, 12)
    missing[3, 4] = 0.1
    grown = 1.0 - ops.DamageMask(mask=missing, grow=2).build(PICTURE).row_energy()
    wanted = torch.zeros(9, 12)
    wanted[1:6, 2:7] = 1.0
    assert torch.equal(grown.reshape(9, 12), wanted)
    # Only what is kept was measured, whatever a photo shows in the hole.
    assert torch.equal(ops.Mask(PICTURE, 1.0 - hole()).seen(torch.ones(PICTURE)), (1.0 - hole()).expand(PICTURE))
