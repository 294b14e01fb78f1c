"""The restoration benchmarks: their figures against known answers, and small runs of both."""

import dataclasses
import json

import pytest
import torch

from retrace_tests.benchmarks.modules import load


@pytest.fixture(scope="module")
def parts(root):
    return load(root, "restoration", "restoration_methods", "restoration_clip")


def test_batches_hold_every_picture_once_and_do_not_change_it(parts):
    truth = parts[0]._truth(0, 4)[1]
    assert torch.equal(truth[2:], parts[0]._truth(2, 2)[1])
    for damage in parts[1].DAMAGES.values():
        whole, half = damage.measured(truth, 0), damage.measured(truth[2:], 2)
        assert torch.equal(whole.y[2:], half.y) and whole.sigma == half.sigma
    found = parts[0].jobs(["eps"], ["mask"], ["first guess", "RED-diff", "bicubic"], 50, 30, 4)
    for name, held in (("first guess", [(0, 20), (20, 20), (40, 10)]), ("RED-diff", [(0, 20), (20, 10)])):
        assert [(job.first, job.count) for job in found if job.method == name] == held
    # Bicubic has no meaning for a missing area.
    assert not any(job.method == "bicubic" for job in found)


def test_the_noise_mask_of_the_host_keeps_what_is_outside(parts, monkeypatch):
    restoration, methods, _ = parts
    scenes, truth = restoration._truth(0, 2)
    measured = methods.DAMAGES["mask"].measured(truth, 0)
    for kind in methods.MODELS:
        for method in (methods._mask_euler, methods._mask_fresh):
            bench = methods.Bench(kind, [scene.caption for scene in scenes], 2)
            # What is decoded last is the result.
            seen = []
            monkeypatch.setattr(bench, "decode", lambda z, seen=seen: seen.append(z) or z)
            with torch.no_grad():
                method(bench, measured)
                kept = bench.encode(measured.initial())
            free = methods._free_cells().expand_as(kept) > 0
            assert torch.allclose(seen[-1][~free], kept[~free], atol=1e-5)
            assert not torch.allclose(seen[-1][free], kept[free], atol=0.1)


def test_guidance_is_measured_in_full_precision_on_both_models(parts):
    restoration, methods, _ = parts
    every = restoration.jobs(["eps", "flow"], ["mask"], ["PSLD", "STSL", methods.DDS], 4, 4, 4, True)
    for name, half in (("PSLD", False), ("STSL", False), (methods.DDS, True)):
        found = [job for job in every if job.method == name]
        assert [job.model for job in found] == ["eps", "flow"] and all(restoration._half(job) == half for job in found)
        assert not any(restoration._half(dataclasses.replace(job, half=False)) for job in found)


def planted(model, damage, method, first, psnr, chi2=1.0, gain=1.0):
    count = len(psnr)
    return {
        "job": {"model": model, "damage": damage, "method": method, "first": first, "count": count},
        **{key: [1.0] * count for key in ("ssim", "object", "background", "snapped_chi2")},
        "psnr": psnr,
        "snapped_psnr": [value + gain for value in psnr],
        "chi2": [chi2] * count,
        "seconds": 0.1,
        "calls": 2,
        "decode": 1,
        "encode": 1,
    }


def test_the_verdict_compares_the_same_pictures(parts):
    restoration, methods, _ = parts
    rows = [
        planted("eps", "mask", methods.DDS, 0, [30.0, 32.0]),
        planted("eps", "mask", methods.DDS, 2, [30.0, 10.0], chi2=3.0),
        planted("eps", "mask", "noise mask, euler", 0, [27.0, 30.0]),
        planted("eps", "mask", "first guess", 0, [20.0, 20.0]),
        planted("flow", "mask", methods.DDS, 0, [30.0, 30.0]),
        planted("flow", "mask", "first guess", 0, [29.0, 28.5], gain=0.25),
    ]
    groups = restoration.grouped(rows)
    ours = groups["eps", "mask", methods.DDS]
    assert ours.mean("psnr") == 25.5 and ours.mean("chi2") == 2.0
    assert ours.ahead(groups["eps", "mask", "noise mask, euler"]) == pytest.approx((2.5, 0.5, 2))
    assert restoration.verdict(groups).splitlines()[2:] == [
        "| eps, mask | first guess | +11.00 ± 1.00 dB | reached | +12.00 ± 1.00 dB | reached | +11.00 ± 1.00 dB "
        "| 2.00 | **not reached** |",
        "| eps, mask | noise mask, euler | +2.50 ± 0.50 dB | reached | +3.50 ± 0.50 dB | reached | +2.50 ± 0.50 dB "
        "|  |  |",
        "| flow, mask | first guess | +1.25 ± 0.25 dB | **not reached** | +2.25 ± 0.25 dB | reached "
        "| +2.00 ± 0.25 dB | 1.00 | reached |",
    ]


def test_a_small_run_writes_everything_and_is_resumed(parts, tmp_path, capsys):
    restoration, methods, _ = parts
    command = ["--pictures", "2", "--fewer", "1", "--steps", "2", "--workers", "0", "--kinds", "eps"]
    command += ["--damages", "small", "--methods", "bicubic", methods.DDS, "RED-diff", "PSLD"]
    command += ["--output", str(tmp_path)]
    restoration.main(command)
    found = json.loads((tmp_path / "restoration.json").read_text())
    rows = {row["method"]: row for row in found["rows"]}
    assert set(rows) == {"bicubic", methods.DDS, "RED-diff", "PSLD", restoration.CEILING}
    ours = rows[methods.DDS]
    # Two decodes and three encodes a step, one of each for the loss of the autoencoder, and the result.
    assert (ours["calls"], ours["decode"], ours["encode"]) == (2, 2 * 2 + 2, 3 * 2 + 1)
    assert ours["pictures"] == 2 and rows["RED-diff"]["pictures"] == 1
    # Gradients through denoiser and autoencoder hold what a step without them lets go.
    assert found["memory"]["eps"]["PSLD"] > found["memory"]["eps"][methods.DDS] > 0
    text = (tmp_path / "restoration.md").read_text()
    assert "## eps: 4 times smaller, bicubic, noise of 10 grey levels" in text and "| bicubic | 2 |" in text
    capsys.readouterr()
    # What is there is taken, and a collection measures nothing.
    jobs = restoration.jobs(["eps"], ["small"], ["bicubic", "RED-diff"], 2, 1, 2)
    assert len(restoration.run_all(jobs, 0, tmp_path / "parts")) == 3
    assert ", 0 to measure" in capsys.readouterr().err
    next((tmp_path / "parts").glob("*RED*")).unlink()
    assert len(restoration.run_all(jobs, 0, tmp_path / "parts", collect=True)) == 2


def test_clips_stand_or_move_under_a_grain_that_stands(parts):
    clips = parts[2]
    still, moving = clips.CLIPS["a square stands"].draw(3), clips.CLIPS["a circle, 1 pixel right"].draw(3)
    assert torch.equal(still[0], still[2]) and clips.flicker(moving, moving) == 0.0
    assert not torch.equal(moving[0], moving[1]) and torch.equal(moving[0, :, :4], moving[2, :, :4])
    # Frames that alternate by a level of 255 up and down differ by two.
    blinking = still + torch.tensor([1.0, -1.0, 1.0]).reshape(3, 1, 1, 1) / clips.GREY_LEVELS
    assert clips.flicker(blinking, still) == pytest.approx(2.0, rel=1e-4)


def test_an_error_that_moves_along_has_flicker_and_no_warping_error(parts):
    clips = parts[2]
    scene = clips.CLIPS["a circle, 1 pixel right"]
    truth = scene.draw(4)
    speckled = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    taken = torch.stack([speckled.roll(number, dims=1) for number in range(4)])[:, None]
    inside = scene.covered(4) == 1.0
    moved = torch.where(inside, truth + taken, truth)
    assert clips.flicker(moved, truth) > 10.0 and clips.warping_error(moved, truth, scene) < 1e-3
    # Noise of its own in each frame: the difference of two has twice the variance.
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)) / clips.GREY_LEVELS
    assert clips.warping_error(truth + noise, truth, scene) == pytest.approx(2**0.5, rel=0.03)
    # What stands while the object moves on is no error of the ground, and one of the object.
    stuck = torch.where(inside, truth + speckled, truth)
    assert clips.warping_error(stuck, truth, scene) > 10.0


def test_a_small_run_of_clips_writes_a_verdict(parts, tmp_path):
    names = ["a square stands", "a circle, 1 pixel right"]
    command = ["--frames", "2", "--steps", "2", "--kinds", "flow", "--output", str(tmp_path)]
    parts[2].main([*command, "--clips", *names])
    rows = json.loads((tmp_path / "restoration_clip.json").read_text())["rows"]
    assert [row["clip"] for row in rows[:: len(rows) // 2]] == names
    first = {row["setting"]: row for row in rows[: len(rows) // 2]}
    assert first["share_noise, snapped with temporal_smoothing 2"]["flicker"] < first["share_noise, snapped"]["flicker"]
    # The same picture twice comes back from the autoencoder twice the same.
    assert rows[0]["flicker"] == 0.0 and rows[len(rows) // 2]["flicker"] > 0.0
    text = (tmp_path / "restoration_clip.md").read_text()
    assert "| flow, moving | share_noise | 1 |" in text and "## flow: a square stands" in text
