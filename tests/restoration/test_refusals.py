"""What restoration refuses, each in one sentence that says what to do."""

import pytest
import torch

from retrace.restoration import Measurement, TemporalConsistency, dds, noise_deviation, red_diff, snap
from retrace.restoration import operators as ops
from retrace.restoration.solvers.temporal import TimeSmoothing
from retrace_tests.restoration.problems import CLIP, PICTURE, hole, white_prior

ZERO = torch.zeros(1, *PICTURE)
GREY = [[[1.0] * 8] * 8, [[0.0] * 8] * 8]
PLAIN = Measurement(ops.Noise(PICTURE), ZERO, 0.1)


def masks(count):
    return ops.DamageMask(mask=hole(count))


def sample(solver, *sigmas, space="ve"):
    return solver(white_prior().denoiser(space), ZERO, sigmas, lambda d, *_: d, lambda: ZERO)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.Mask(PICTURE, torch.ones(1, 4, 4)), "12 x 9"),
        (lambda: ops.Mask(PICTURE, torch.zeros(1, 9, 12)), "covers all"),
        (lambda: ops.Mask(CLIP, torch.ones(4, 1, 8, 6)), "must hold 1 or 6 pictures for a clip of 6 frames, got 4"),
        (lambda: ops.Mask(PICTURE, torch.full((1, 9, 12), 2.0)), "between 0 and 1"),
        (lambda: ops.DamageMask(mask=torch.zeros(1, 1, 9, 12)), "mask must be a picture or a stack"),
        (lambda: masks(3).on(9, 12, 2), "must hold 1 or 2 pictures here, got 3"),
        (lambda: ops.LowResolution(PICTURE, 0.5), "at least 1"),
        (lambda: ops.LowResolution(PICTURE, 40), "leave a pixel"),
        (lambda: ops.LowResolution(PICTURE, 2, "sinc"), "filter must be one of"),
        (lambda: ops.DamageLowResolution(filter="sinc"), "filter must be one of"),
        (lambda: ops.GaussianBlur(PICTURE, 0.0), "radius must be above 0"),
        (lambda: ops.GaussianBlur(PICTURE, 1.0, "mirror"), "edges must be"),
        (lambda: ops.Blur(PICTURE, torch.ones(2, 3)), "odd sides"),
        (lambda: ops.Blur(PICTURE, torch.ones(41, 41)), "must fit the picture"),
        (lambda: ops.DamageBlur(kind="kernel"), "kernel must be connected"),
        (lambda: ops.DamageBlur(kind="kernel", kernel=-torch.ones(1, 3, 5, 5)), "must not add up to zero"),
        (lambda: ops.picture_kernel(torch.tensor([[1.0, -1.0, 0.0]])), "must not add up to zero"),
        (lambda: ops.picture_kernel(torch.ones(3, 3, 3)), "one finite picture"),
        (lambda: ops.motion_kernel(0.5, 0), "length must be at least 1"),
        (lambda: ops.BlackWhite((1, 4, 4)), "3 channels"),
        (lambda: ops.BlackWhite(PICTURE, (0, 0, 0)), "not all zero"),
        (lambda: ops.DroppedFrames(PICTURE, 2), "must have frames"),
        (lambda: ops.DroppedFrames((1, 3, 8, 6), 2), "two frames at least, got 1"),
        (lambda: ops.InterlacedFrames((1, 3, 8, 6)), "two frames at least, got 1"),
        (lambda: ops.DroppedFrames(CLIP, 0), "at least 1"),
        (lambda: ops.AveragedFrames(CLIP, 4), "multiple of every"),
        (lambda: ops.InterlacedFrames((2, 3, 5, 4)), "must be even"),
        (lambda: ops.Combine([]), "got none"),
        (lambda: ops.Combine([ops.LowResolution(PICTURE, 3), ops.Noise(PICTURE)]), "follow in size"),
        (
            lambda: ops.DamageCombine(first=ops.DamageJPEG(), second=ops.DamageNoise()).on(16, 16, 1),
            "JPEG must be the last",
        ),
        (lambda: ops.DamageFrames(operator=ops.DamageJPEG()).on(16, 16, 2), "JPEG must be the last"),
        (lambda: ops.DamageCombine(first=masks(2), second=masks(3)), "masks must be equally many"),
        (lambda: ops.Noise((0, 4, 4)), "height and width"),
        (lambda: ops.LowResolution(PICTURE, 3).check_damaged(torch.zeros(1, 3, 9, 12)), "must be 4 x 3 pixels"),
        (lambda: ops.quality_tables(0), "quality must be from 1 to 100"),
        (lambda: ops.JPEG((4, 8, 8), ops.quality_tables(10)), "1 or 3 channels"),
        (lambda: ops.JPEG(PICTURE, GREY), "positive steps"),
        (lambda: ops.Noise(PICTURE).project(ZERO, ZERO), "must quantise"),
        (lambda: Measurement(ops.Noise(PICTURE), ZERO, 0.005), "noise must be at least 1.28 grey levels of 255"),
        (lambda: Measurement(ops.Noise(PICTURE), ZERO, float("inf")), "noise must be at least"),
        (lambda: Measurement(ops.BlackWhite(PICTURE), ZERO, 0.1), "must be 12 x 9 pixels with 1 channel, got .* 3"),
        (lambda: Measurement(ops.Noise(PICTURE), ZERO / 0.0, 0.1), "must be finite"),
        (lambda: noise_deviation(torch.zeros(1, 1, 1, 5)), "must show 2 x 2 pixels"),
        (lambda: sample(dds, 1.0, 2.0), "sigmas must be at least two that fall"),
        (lambda: sample(dds, 1.5, 0.0, space="flow"), "at most 1 for flow"),
        (lambda: sample(red_diff, 20.0, 0.0), "sigma_max must leave a sigma of the schedule, got 10"),
        (lambda: TemporalConsistency(PLAIN, -1.0), "temporal_smoothing must be 0 or more"),
        (lambda: TimeSmoothing(-1.0, 0), "temporal_smoothing must be 0 or more"),
        (lambda: TemporalConsistency(PLAIN, 1.0)(ZERO, 0.2), "two frames at least"),
        (lambda: TimeSmoothing(1.0, 2).prepare(torch.zeros(2, 3, 1, 4, 4), 0.2), "two frames at least"),
        (lambda: snap(PLAIN, ZERO, 1.0, follow_motion=True), "two frames at least for its motion"),
        (lambda: snap(PLAIN, ZERO[..., :1].repeat(2, 1, 1, 1), 1.0, follow_motion=True), "2 x 2 pixels at least"),
    ],
)
def test_refusals_are_one_sentence(call, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
