"""Motion between frames: found where it is known, followed by what moves, and left alone where there is none."""

import pytest
import torch

from retrace.restoration import Measurement, snap
from retrace.restoration.following import Ties, follow, gradient, gradient_adjoint, motions_of
from retrace.restoration.motion import Warp, velocity_of
from retrace.restoration.operators import DroppedFrames, LowResolution
from retrace_tests.restoration.problems import unit

FRAMES, SHAPE, NOISE = 4, (3, 32, 40), 0.08


def drawn(*shape, seed=0):
    return unit(*shape, seed=seed).float()


def textured(velocity, frames=FRAMES):
    """A picture of waves that moves as a whole: its exact value at any place."""
    down, right = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    clip = []
    for t in range(frames):
        y, x = down - velocity[0] * t, right - velocity[1] * t
        clip.append(torch.stack([torch.sin(0.4 * y + 0.1 * x), torch.sin(0.5 * x - 0.2 * y), torch.cos(0.3 * (x + y))]))
    return 0.6 * torch.stack(clip)


def square(step=1, frames=FRAMES, value=0.8):
    """A bright square on a dark ground that moves to the right, whole pixels a frame."""
    clip = torch.full((frames, *SHAPE), -0.6)
    for t in range(frames):
        clip[t, :, 10:22, 8 + step * t : 20 + step * t] = value
    return clip


def measured(truth, operator=None, seed=3):
    operator = operator or LowResolution(SHAPE, 2, "box")
    damaged = operator.forward(truth)
    return Measurement(operator, damaged + NOISE * drawn(*damaged.shape, seed=seed), NOISE)


def restored(truth, seed=4):
    """Soft, and off by the noise, as what comes out of an autoencoder is."""
    soft = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(truth, [1] * 4, mode="replicate"), 3, 1)
    return soft + NOISE * drawn(*truth.shape, seed=seed)


def flicker(x, truth):
    return float((x.diff(dim=0) - truth.diff(dim=0)).square().mean().sqrt())


def error(x, truth):
    return float((x - truth).square().mean().sqrt())


def test_a_warp_by_whole_pixels_is_a_shift_and_its_adjoint_is_one():
    x, y = drawn(2, 3, 7, 9), drawn(2, 3, 7, 9, seed=1)
    whole = torch.zeros(2, 2, 7, 9)
    whole[:, 0], whole[:, 1] = 2.0, -1.0
    assert torch.equal(Warp(whole).forward(x)[..., :5, 1:], x[..., 2:, :8])
    # Also beyond the border and between pixels.
    warp = Warp(3.0 * drawn(2, 2, 7, 9, seed=2))
    assert torch.isclose((warp.forward(x) * y).sum(), (x * warp.adjoint(y)).sum(), rtol=1e-4)


def test_the_adjoints_of_ties_and_gradient():
    x = drawn(5, 2, 6, 7)
    ties = Ties([2.0 * drawn(5 - k, 2, 6, 7, seed=k) for k in (1, 2, 3)])
    other = [drawn(5 - k, 2, 6, 7, seed=9 + k) for k in (1, 2, 3)]
    forward = sum((a * b).sum() for a, b in zip(ties.forward(x), other, strict=True))
    assert torch.isclose(forward, (x * ties.adjoint(other, x)).sum(), rtol=1e-4)
    down, right = drawn(5, 2, 6, 7, seed=20), drawn(5, 2, 6, 7, seed=21)
    forward = sum((a * b).sum() for a, b in zip(gradient(x), (down, right), strict=True))
    assert torch.isclose(forward, (x * gradient_adjoint(down, right)).sum(), rtol=1e-4)


@pytest.mark.parametrize("velocity", [(0.0, 0.0), (0.5, -1.25), (-2.0, 0.75), (3.0, 2.0)])
def test_motion_is_found_to_a_fraction_of_a_pixel_in_noise(velocity):
    clip = textured(velocity, 6)
    found = velocity_of(clip + NOISE * drawn(*clip.shape), 3, 2, NOISE)
    inside = (found - torch.tensor(velocity).reshape(1, 2, 1, 1))[..., 8:-8, 8:-8].abs()
    assert float(inside.median()) <= 0.07 and float(inside.mean()) < 0.15
    # What is plain stands.
    assert float(velocity_of(NOISE * drawn(6, *SHAPE), 2, 4, NOISE).abs().mean()) < 0.1


def test_following_takes_the_flicker_of_what_moves():
    truth = square()
    measurement, x = measured(truth), restored(square())
    still, moved = snap(measurement, x, 2.0), snap(measurement, x, 2.0, follow_motion=True)
    assert flicker(moved, truth) < 0.5 * min(flicker(still, truth), flicker(x, truth))
    assert error(moved, truth) < 0.6 * min(error(still, truth), error(x, truth))


def test_a_cut_is_not_smeared():
    """Frames on one side of a cut are what they are without the other side."""
    truth = torch.cat([square(1, 3), -square(1, 3).flip(-2) * 0.5])
    measurement, x = measured(truth), restored(truth)
    whole, around = follow(measurement, x, 2.0), slice(2, 4)
    assert error(whole, truth) < 0.6 * error(x, truth)
    assert error(whole[around], truth[around]) < 0.6 * error(x[around], truth[around])


def test_a_fade_and_what_jumps_too_far_are_left_to_their_frames():
    fading = torch.cat([square(0, 1, value) for value in torch.linspace(0.8, -0.6, FRAMES).tolist()])
    jumping = torch.cat([square(12, 2), square(12, 2).flip(0)])
    for truth in (fading, jumping):
        x = restored(truth)
        assert error(follow(measured(truth), x, 2.0), truth) < error(x, truth)


def test_few_frames_and_frames_that_are_missing():
    truth = square(1, 2)
    x = restored(truth)
    assert error(follow(measured(truth), x, 2.0), truth) < error(x, truth)
    dropped = follow(measured(truth, DroppedFrames((2, *SHAPE), 2)), x, 2.0)
    assert dropped.shape == truth.shape and error(dropped, truth) < error(x, truth)


def test_it_is_off_without_smoothing_and_told_of_its_rounds():
    truth = square(1, 2)
    measurement, x = measured(truth), restored(truth)
    assert torch.equal(snap(measurement, x, 0.0, follow_motion=True), snap(measurement, x))
    told = []
    snap(measurement, x, 1.0, True, lambda *done: told.append(done))
    rounds = told[-1][1]
    assert list(dict.fromkeys(told)) == [(number, rounds) for number in range(rounds + 1)]
    # Before each of both frames where the motion is looked for, and after each round: an interrupt waits for neither.
    assert told.count((0, rounds)) == 2 and told.count((rounds, rounds)) == 1

    def stop(*done):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        follow(measurement, x, 1.0, stop)


def test_the_motions_of_all_distances_belong_to_their_frames():
    motions = motions_of(textured((0.0, 1.0), 4), NOISE)
    assert [tuple(motion.shape[:2]) for motion in motions] == [(3, 2), (2, 2), (1, 2)]
    assert [round(float(motion[:, 1, 8:-8, 8:-8].median()), 1) for motion in motions] == [1.0, 2.0, 3.0]
