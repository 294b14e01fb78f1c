"""The demo command on the trained demo models."""

import re

import numpy as np
import pytest
from PIL import Image

from retrace import cli, showcase
from retrace.demo.reader import read
from retrace.demo.world import parse, render
from retrace.inversion import load

LINE = "PSNR ([0-9.]+) dB, SSIM ([0-9.]+)"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Run the demo as the README does; return its folder and its report by model."""
    folder = tmp_path_factory.mktemp("demo")
    assert cli.main(["demo", "-o", str(folder)]) == 0
    report = (folder / "report.txt").read_text(encoding="utf-8")
    eps, flow = re.split(r"^demo-flow", report, flags=re.MULTILINE)
    return folder, {"eps": eps, "flow": flow}


def test_bundled_picture_shows_what_it_is_said_to_show():
    with Image.open(showcase.PICTURE) as file:
        picture = file.convert("RGB")
    scene = parse(showcase.SOURCE)
    assert scene.held_out and parse(showcase.EDIT).held_out
    seen = read(render([scene], seed=0)[0][0])
    assert (seen.shape, seen.colour, seen.background) == (scene.shape, scene.colour, scene.background)
    assert picture.size == (64, 64) and picture.tobytes() == render([scene], seed=0)[0][0].tobytes()


def test_demo_writes_grid_report_and_records(shown):
    folder, _ = shown
    assert {p.name for p in folder.iterdir()} == {
        *("grid.png", "report.txt", "demo-eps.safetensors", "demo-flow.safetensors")
    }
    with Image.open(folder / "grid.png") as grid:
        assert grid.width > 5 * 192 and grid.height > 2 * 192


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_reconstruction_is_visibly_the_source(shown, kind):
    psnr, ssim = map(float, re.search(LINE, shown[1][kind]).groups())
    # 30 dB is where pictures of this kind stop being told apart by eye.
    assert psnr > 30 and ssim > 0.9


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_edits_follow_their_prompts(shown, kind):
    report = shown[1][kind]
    assert re.search(r"edit: .*; the reader sees \w+ yellow star, \w+, on blue", report)
    assert re.search(r"edit inside a mask: .*; the reader sees \w+ green cross, \w+, on blue", report)
    assert "latent outside unchanged bit for bit" in report


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_records_of_the_demo_can_be_replayed(shown, kind, tmp_path, capsys):
    record = shown[0] / f"demo-{kind}.safetensors"
    assert load(record).index == load(record).steps == 25
    assert cli.main(["replay", str(record), "--model", f"demo-{kind}", "-o", str(tmp_path / "back.png")]) == 0
    with Image.open(tmp_path / "back.png") as picture:
        seen = read(np.array(picture))
    assert (seen.shape, seen.colour, seen.background) == ("cross", "red", "blue")
    other = {"eps": "flow", "flow": "eps"}[kind]
    capsys.readouterr()
    assert cli.main(["replay", str(record), "--model", f"demo-{other}", "-o", str(tmp_path / "other.png")]) == 2
    assert "must be of the inversion's space" in capsys.readouterr().err


def test_misuse_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("older")
    assert cli.main(["demo", "-o", str(tmp_path / "file")]) == 2
    assert "output must be a folder, got the file" in capsys.readouterr().err
    assert cli.main(["demo", "-o", str(tmp_path / "out"), "--method", "magic"]) == 2
    assert "method must be one of" in capsys.readouterr().err
    assert cli.main(["demo", "-o", str(tmp_path / "out"), "--steps", "1"]) == 2
    assert "steps must be between 2 and 1000" in capsys.readouterr().err
