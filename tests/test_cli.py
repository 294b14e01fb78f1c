"""The command on a tiny pipeline saved to disk: what it writes, and what it says to misuse."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from retrace import cli
from retrace.backends.diffusers import DiffusersModel
from retrace.backends.pictures import read_mask, read_picture, save_image, write_picture
from retrace.inversion import load, relative_error
from retrace.version import VERSION
from retrace_tests.backends import tiny

SOURCE = "a small red square on a white background"
TARGET = "a small blue square on a white background"


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A folder with an SD1.5-type pipeline."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.save_pipeline(folder)
    return str(folder)


@pytest.fixture
def photo(tmp_path):
    """A picture whose sides are no multiples of anything."""
    pixels = np.random.default_rng(0).integers(0, 255, (37, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def run(capsys):
    """Run the command in this process; return the exit code, stdout and stderr."""

    def call(*arguments):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as left:
            code = left.code
        return code, *capsys.readouterr()

    return call


def refused(result):
    """Assert exit code 2 and one sentence on stderr, and return it."""
    code, _, said = result
    assert code == 2
    assert said.startswith("retrace: ") and said.endswith(".\n") and said.count("\n") == 1
    return said


# What works


def test_methods_lists_every_method(run):
    from retrace.inversion import METHODS

    code, said, _ = run("methods")
    assert code == 0
    for name, method in METHODS.items():
        assert f"{name}: {method.label}" in said
        for setting in method.parameters():
            assert f"--set {setting.name}=" in said


def test_help_explains_every_command(run):
    code, said, _ = run("--help")
    assert code == 0 and "examples:" in said
    for command in ("demo", "methods", "invert", "replay", "edit"):
        assert command in said
        code, details, _ = run(command, "--help")
        assert code == 0 and details.count("\n") > 5


def test_no_command_shows_the_help(run):
    code, said, _ = run()
    assert code == 0 and "usage: retrace" in said


def test_invert_then_replay_reconstructs_what_the_model_reconstructs(run, pipeline, photo, tmp_path):
    record_file, picture_file = tmp_path / "photo.safetensors", tmp_path / "back.png"
    code, said, _ = run(
        "invert", photo, "--model", pipeline, "--source", SOURCE, "--steps", 4, "--strength", 0.5, "-o", record_file
    )
    assert code == 0 and "round trip: relative error" in said and "noise std" in said
    record = load(record_file)
    assert record.index == 2 and record.steps == 4 and record.method == "midpoint"
    assert record.meta["source_prompt"] == SOURCE and record.meta["retrace"] == VERSION
    # 37 by 50 pixels, cropped to multiples of the VAE's 4.
    assert (record.meta["height"], record.meta["width"]) == (36, 48) and record.shape == (1, 4, 9, 12)
    assert record.x.dtype == torch.float64

    code, _, _ = run("replay", record_file, "--model", pipeline, "-o", picture_file)
    assert code == 0
    model = DiffusersModel.from_folder(pipeline)
    from retrace.inversion import replay

    denoiser = model.denoiser(record.x0, model.prompt(SOURCE))
    expected = model.decode(replay(record, denoiser))
    assert torch.allclose(read_picture(picture_file, 1), expected, atol=0.6 / 255)


def test_edit_is_invert_then_replay(run, pipeline, photo, tmp_path):
    common = ("--model", pipeline, "--source", SOURCE, "--steps", 3, "--method", "euler")
    record = tmp_path / "kept.safetensors"
    assert run("edit", photo, *common, "--target", TARGET, "--save", record, "-o", tmp_path / "one.png")[0] == 0
    assert run("replay", record, "--model", pipeline, "--target", TARGET, "-o", tmp_path / "two.png")[0] == 0
    one, two = (read_picture(tmp_path / name, 1) for name in ("one.png", "two.png"))
    assert torch.equal(one, two)
    # Another target or another guidance gives another picture.
    assert run("replay", record, "--model", pipeline, "--target", "a ring", "-o", tmp_path / "three.png")[0] == 0
    assert (
        run("replay", record, "--model", pipeline, "--target", TARGET, "--cfg", 1, "-o", tmp_path / "four.png")[0] == 0
    )
    assert not torch.equal(one, read_picture(tmp_path / "three.png", 1))
    assert not torch.equal(one, read_picture(tmp_path / "four.png", 1))


def test_same_command_twice_gives_the_same_bits(run, pipeline, photo, tmp_path):
    for name in ("one", "two"):
        assert (
            run(
                *("edit", photo, "--model", pipeline, "--source", SOURCE, "--target", TARGET, "--steps", 3),
                *("--save", tmp_path / f"{name}.safetensors", "-o", tmp_path / f"{name}.png"),
            )[0]
            == 0
        )
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    first, second = (load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert torch.equal(first.x, second.x)


def test_mask_keeps_what_is_black(run, pipeline, photo, tmp_path):
    pixels = {"black": np.zeros((37, 50), np.uint8), "white": np.full((37, 50), 255, np.uint8)}
    pixels["half"] = np.where(np.arange(50) < 25, pixels["black"], pixels["white"])
    common = ("--model", pipeline, "--source", SOURCE, "--target", TARGET, "--steps", 3)
    assert run("edit", photo, *common, "-o", tmp_path / "none.png")[0] == 0
    edited = {"none": read_picture(tmp_path / "none.png", 1)}
    for name, mask in pixels.items():
        Image.fromarray(mask).save(tmp_path / "mask.png")
        assert run("edit", photo, *common, "--mask", tmp_path / "mask.png", "-o", tmp_path / f"{name}.png")[0] == 0
        edited[name] = read_picture(tmp_path / f"{name}.png", 1)
    model = DiffusersModel.from_folder(pipeline)
    untouched = model.decode(model.encode(read_picture(photo, model.multiple)))
    assert torch.allclose(edited["black"], untouched, atol=0.51 / 255)
    assert torch.equal(edited["white"], edited["none"])
    assert not torch.equal(edited["half"], edited["white"]) and not torch.equal(edited["half"], edited["black"])


def test_mask_is_read_in_the_frame_of_the_picture(tmp_path):
    pixels = np.zeros((40, 60), np.uint8)
    pixels[8:16, 20:28] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", 4, None, (10, 15))
    expected = torch.zeros(1, 1, 10, 15)
    expected[..., 2:4, 5:7] = 1.0
    assert torch.equal(mask, expected)
    soft = read_mask(tmp_path / "mask.png", 4, None, (10, 15), feather=3.0)
    assert 0.0 < soft[0, 0, 2, 4] < 1.0 and 0.0 < soft[0, 0, 3, 6] < 1.0


def test_pictures_survive_a_round_trip(tmp_path):
    picture = torch.arange(3 * 8 * 12).reshape(1, 3, 8, 12) / 288
    write_picture(picture, tmp_path / "p.png")
    assert torch.allclose(read_picture(tmp_path / "p.png", 1), picture, atol=0.51 / 255)
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_a_picture_is_replaced_whole_or_not_at_all(tmp_path):
    older, kept = tmp_path / "p.jpg", tmp_path / "kept.jpg"
    older.write_bytes(b"older")
    # JPEG holds no transparency, so this fails after the file was opened.
    with pytest.raises(OSError, match="RGBA"):
        save_image(Image.new("RGBA", (4, 4)), older)
    assert older.read_bytes() == b"older" and [p.name for p in tmp_path.iterdir()] == ["p.jpg"]
    # A second name of the older file still holds it: the new one was written beside and moved in.
    kept.hardlink_to(older)
    save_image(Image.new("RGB", (4, 4)), older)
    assert kept.read_bytes() == b"older" and older.read_bytes() != b"older"


def test_size_covers_and_crops(tmp_path, photo):
    assert read_picture(photo, 8).shape == (1, 3, 32, 48)
    assert read_picture(photo, 8, (64, 32)).shape == (1, 3, 32, 64)


# What is refused, each in one sentence with exit code 2


def edit(pipeline, photo, tmp_path, **changed):
    options = {
        "--model": pipeline,
        "--source": SOURCE,
        "--target": TARGET,
        "--steps": 3,
        "-o": tmp_path / "out.png",
        **changed,
    }
    return ("edit", photo, *(x for pair in options.items() for x in pair))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"--model": "no/such/folder"}, "model must be a folder in the diffusers layout, got no/such/folder"),
        ({"--method": "magic"}, "got 'magic'; check the spelling"),
        ({"--set": "gamma=1"}, "got 'gamma'; remove it"),
        ({"--set": "gamma"}, "set must be NAME=VALUE, got 'gamma'; write it like"),
        ({"--steps": 1}, "steps must be between 2 and 1000, got 1"),
        ({"--steps": "many"}, "invalid int value: 'many'; see retrace edit --help"),
        ({"--strength": 0}, "strength must lie above 0 and not above 1, got 0.0"),
        ({"--size": "big"}, "size must be WIDTHxHEIGHT in pixels, got 'big'; write it like"),
        ({"--size": "99999x64"}, "size must be at most 16384 pixels a side, got '99999x64'; choose a smaller"),
        ({"--size": "2x2"}, "picture must be at least 4 pixels wide and high"),
        ({"--device": "abacus"}, "device must be one that torch finds here, got 'abacus'; use auto"),
        ({"-o": "no/such/folder/out.png"}, "output folder must exist, got no/such/folder; make it"),
        ({"-o": "out.txt"}, "output file must end in .png or"),
        ({"--save": "kept.pt"}, "output file must end in .safetensors, got kept.pt; rename it"),
        ({"--cfg": "nan"}, "cfg must be a finite number, got nan; 1 switches"),
        ({"--mask": "no-mask.png"}, "mask must be a file, got no-mask.png which does not exist"),
    ],
)
def test_misuse_is_refused(run, pipeline, photo, tmp_path, changed, sentence):
    before = set(tmp_path.iterdir())
    assert sentence in refused(run(*edit(pipeline, photo, tmp_path, **changed)))
    assert set(tmp_path.iterdir()) == before


def test_damaged_pipeline_is_refused(run, pipeline, photo, tmp_path):
    cut, resized = tmp_path / "cut", tmp_path / "resized"
    for copy in (cut, resized):
        shutil.copytree(pipeline, copy)
    file = cut / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    config = resized / "unet" / "config.json"
    widths = {**json.loads(config.read_text(encoding="utf-8")), "block_out_channels": [24, 32]}
    config.write_text(json.dumps(widths), encoding="utf-8")
    for copy in (cut, resized):
        said = refused(run(*edit(copy, photo, tmp_path)))
        assert f"model must be a complete pipeline, got {copy}; repair it: " in said


def test_pipeline_without_a_tokenizer_is_refused(run, pipeline, photo, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pipeline, broken)
    shutil.rmtree(broken / "tokenizer")
    code, _, error = run("edit", photo, "--model", broken, "--source", "a", "--target", "b", "-o", tmp_path / "out.png")
    assert code == 2 and "Traceback" not in error and error.count("\n") == 1


def test_missing_picture_is_refused(run, pipeline, tmp_path):
    said = refused(run(*edit(pipeline, "no-photo.png", tmp_path)))
    assert "picture must be a file, got no-photo.png which does not exist; correct the path" in said


def test_file_that_is_no_picture_is_refused(run, pipeline, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    assert "picture must be a picture that Pillow reads" in refused(
        run(*edit(pipeline, tmp_path / "text.png", tmp_path))
    )


def test_unknown_command_and_missing_options_are_refused(run):
    assert "invalid choice: 'conjure'" in refused(run("conjure"))
    assert "the following arguments are required" in refused(run("edit", "photo.png"))


def test_record_of_another_model_is_refused(run, pipeline, photo, tmp_path):
    record = tmp_path / "photo.safetensors"
    common = ("--source", SOURCE, "--steps", 3, "-o", record)
    assert run("invert", photo, "--model", pipeline, *common, "--no-check")[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    pipe = StableDiffusionPipeline.from_pretrained(pipeline, low_cpu_mem_usage=False)
    with torch.no_grad():
        pipe.unet.conv_out.weight.add_(0.01)
    pipe.save_pretrained(other)
    said = refused(run("replay", record, "--model", other, "-o", tmp_path / "out.png"))
    assert "The model must be the one that made the inversion" in said


def test_record_cut_in_half_is_refused(run, pipeline, photo, tmp_path):
    record = tmp_path / "photo.safetensors"
    assert run("invert", photo, "--model", pipeline, "--source", SOURCE, "--steps", 3, "-o", record)[0] == 0
    record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])
    refused(run("replay", record, "--model", pipeline, "-o", tmp_path / "out.png"))
    refused(run("replay", tmp_path / "none.safetensors", "--model", pipeline, "-o", tmp_path / "out.png"))


def test_mask_without_a_target_is_refused(run, pipeline, photo, tmp_path):
    record = tmp_path / "photo.safetensors"
    assert run("invert", photo, "--model", pipeline, "--source", SOURCE, "--steps", 3, "-o", record)[0] == 0
    said = refused(run("replay", record, "--model", pipeline, "--mask", photo, "-o", tmp_path / "out.png"))
    assert "target must be given with a mask, got none; say what" in said


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"--mask": "no-mask.png"}, "mask must be a file, got no-mask.png"),
        ({"--feather": -1}, "feather must be 0 or more pixels, got -1.0"),
    ],
)
def test_an_unusable_mask_is_refused_before_the_picture_is_inverted(run, pipeline, photo, tmp_path, changed, sentence):
    result = run(*edit(pipeline, photo, tmp_path, **{"--mask": photo, **changed}))
    assert sentence in refused(result)
    assert "inverted" not in result[1]


def test_negative_feather_is_refused(photo):
    with pytest.raises(ValueError, match="feather must be 0 or more pixels, got -1.0; 0 keeps"):
        read_mask(photo, 1, None, (4, 4), feather=-1.0)


@pytest.mark.parametrize("package", ["torch", "diffusers", "transformers", "PIL"])
def test_missing_package_is_named(root, photo, tmp_path, package):
    # None in sys.modules makes an import fail as if the package were not installed.
    code = (
        f"import runpy, sys; sys.modules[{package!r}] = None; "
        f"runpy.run_path({str(root / '_standalone.py')!r})['load_package'](); "
        "from retrace.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ("edit", photo, "--model", "demo-eps", "--source", "a", "--target", "b", "-o", tmp_path / "out.png")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    said = refused((done.returncode, done.stdout, done.stderr))
    assert f"needs the package {package}, which is not installed" in said and "pip install" in said


def test_traceback_shows_where(pipeline, photo, tmp_path):
    with pytest.raises(ValueError, match="steps must be"):
        cli.main([str(a) for a in (*edit(pipeline, photo, tmp_path, **{"--steps": 1}), "--traceback")])


def test_interrupt_leaves_older_files(monkeypatch, run, pipeline, photo, tmp_path):
    # Ctrl+C arrives as KeyboardInterrupt wherever the program is; here in the second step.
    (tmp_path / "out.png").write_bytes(b"older")

    def progress(what):
        def show(report):
            if report.index == 1:
                raise KeyboardInterrupt

        return show

    monkeypatch.setattr(cli, "_progress", progress)
    code, _, said = run(*edit(pipeline, photo, tmp_path))
    assert code == 130 and said == "retrace: interrupted.\n"
    assert (tmp_path / "out.png").read_bytes() == b"older"
    assert {p.name for p in tmp_path.iterdir()} == {"photo.png", "out.png"}


def test_header_of_a_record_is_plain_json(run, pipeline, photo, tmp_path):
    from safetensors import safe_open

    record = tmp_path / "photo.safetensors"
    assert run("invert", photo, "--model", pipeline, "--source", SOURCE, "--steps", 3, "--half", "-o", record)[0] == 0
    with safe_open(record, "pt") as file:
        texts = list(file.metadata().values())
    assert any(SOURCE in text and isinstance(json.loads(text), dict) for text in texts)
    assert relative_error(load(record).x0, load(record).x0) == 0.0


def test_an_edit_reads_from_its_source(run, pipeline, photo, tmp_path):
    common = ("--model", pipeline, "--steps", 3, "--method", "euler")
    record, white = tmp_path / "kept.safetensors", tmp_path / "white.png"
    Image.new("L", (50, 37), 255).save(white)
    plain, one, two, text = (tmp_path / f"{name}.png" for name in ("plain", "one", "two", "text"))
    edit = ("edit", photo, *common, "--source", SOURCE, "--target", TARGET)
    assert run(*edit, "-o", plain)[0] == 0
    mutual = ("--attention", "masactrl:union", "--attention-layers", "all", "--attention-steps", "0-1")
    assert run(*edit, *mutual, "--save", record, "-o", one)[0] == 0
    assert run("replay", record, "--model", pipeline, "--target", TARGET, *mutual, "-o", two)[0] == 0
    assert torch.equal(read_picture(one, 1), read_picture(two, 1))
    assert not torch.equal(read_picture(one, 1), read_picture(plain, 1))
    assert run(*edit, *mutual, "--attention-strength", 0, "-o", text)[0] == 0
    assert torch.equal(read_picture(text, 1), read_picture(plain, 1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--attention", "nonsense"), "attention must be one of"),
        (("--attention", "pnp"), "attention must be one of"),
        (("--attention", "kv_edit"), "kv_edit must have a mask"),
        (("--attention", "masactrl:nonsense"), "variant of masactrl must be one of"),
        (("--attention", "rf_edit", "--attention-steps", "some"), "attention-steps must be START-END"),
        (("--attention", "rf_edit", "--attention-layers", "double:3"), "layers of rf_edit must match"),
    ],
)
def test_attention_that_does_not_fit_is_refused(run, pipeline, photo, tmp_path, options, sentence):
    code, _, error = run(
        *("edit", photo, "--model", pipeline, "--source", SOURCE, "--target", TARGET, "--steps", 3),
        *(*options, "-o", tmp_path / "none.png"),
    )
    assert code == 2 and sentence in error and not (tmp_path / "none.png").exists()
    code, _, error = run("replay", "none.safetensors", "--model", pipeline, "--attention", "rf_edit", "-o", "none.png")
    assert code == 2
