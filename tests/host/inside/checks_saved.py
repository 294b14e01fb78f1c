"""Files, reports and what the host is told about the nodes."""

import asyncio
import dataclasses
import math
from pathlib import Path

import folder_paths
import torch
from helpers import logged, refuses, relative
from running import STEPS, invert, play
from safetensors.torch import save_file


def _output():
    return Path(folder_paths.get_output_directory())


def check_files_keep_every_bit(pack):
    """A saved inversion comes back equal, in a subfolder, numbered, in the output folder, with the pack's version."""
    _, _, _, (inversion, *_) = invert(pack, "sd15", keep_path=True, batch=2)
    names = [pack.call("SaveInversion", inversion=inversion, filename_prefix="retrace/a b/cat")[0] for _ in range(2)]
    assert names == ["retrace/a b/cat_00001_.safetensors [output]", "retrace/a b/cat_00002_.safetensors [output]"]
    assert (_output() / "retrace/a b/cat_00001_.safetensors").is_file()
    (loaded,) = pack.call("LoadInversion", file=names[0])
    for name in ("x", "x0"):
        assert torch.equal(getattr(inversion, name), getattr(loaded, name)), name
    assert all(torch.equal(a, b) for a, b in zip(inversion.path, loaded.path)) and inversion.sigmas == loaded.sigmas
    assert inversion.fingerprints == loaded.fingerprints and dict(inversion.meta) == dict(loaded.meta)
    project = Path(pack.module("nodes").__file__).parents[1] / "pyproject.toml"
    assert f'version = "{loaded.meta["pack"]}"' in project.read_text(encoding="utf-8")
    (by_path,) = pack.call("LoadInversion", file="(nothing saved yet)", path=names[1])
    assert torch.equal(by_path.x, inversion.x)
    assert set(names) <= set(pack.module("nodes.host.files").list_saved())
    assert names[0] in pack.node("LoadInversion").define_schema().inputs[0].options
    (half,) = pack.call("SaveInversion", inversion=inversion, filename_prefix="half", half=True)
    (rounded,) = pack.call("LoadInversion", file=half)
    assert torch.equal(rounded.x0, inversion.x0) and 0 < relative(rounded.x, inversion.x) < 1e-3


def check_no_path_leaves_the_folders(pack):
    """Hostile names are refused in a sentence, on the way out and on the way in, and write nothing."""
    _, _, _, (inversion, *_) = invert(pack, "sd15")
    outside, node = _output().parent, pack.node("LoadInversion")
    before = sorted(str(path) for path in outside.rglob("*"))
    for name in ("../evil", "/tmp/evil", "a/../../evil", "..", "", "sub/", "..\\evil", "C:\\evil", "a\0b"):
        save = lambda name=name: pack.call("SaveInversion", inversion=inversion, filename_prefix=name)  # noqa: E731
        refuses(save, "filename_prefix must name a file within the output folder")
    assert sorted(str(path) for path in outside.rglob("*")) == before
    evil = outside / "evil.safetensors"
    evil.write_bytes(b"secret")
    for name, part in (
        *((each, "file must lie in the output or input") for each in ("../evil.safetensors", str(evil))),
        ("..\\evil.safetensors [output]", "file must lie in the output or input"),
        ("nothing.safetensors", "file must name a saved"),
        ("(nothing saved yet)", "file must name a saved"),
    ):
        refuses(lambda name=name: pack.call("LoadInversion", file=name), part)
        refuses(lambda name=name: pack.call("LoadInversion", file="(nothing saved yet)", path=name), part)
        assert part in node.validate_inputs(file=name)
    # A linked path is not known yet, and a linked path makes the list irrelevant.
    assert node.validate_inputs(file="(nothing saved yet)", path=None) is True
    evil.unlink()


def check_broken_files(pack):
    """Half a file, a foreign one and a changed one are refused; a saved file makes the node run again."""
    _, _, _, (inversion, *_) = invert(pack, "sd15")
    (name,) = pack.call("SaveInversion", inversion=inversion, filename_prefix="broken")
    path, node = _output() / name.removesuffix(" [output]"), pack.node("LoadInversion")
    mark, whole = node.fingerprint_inputs(file=name), path.read_bytes()
    assert node.fingerprint_inputs(file=name) == mark
    foreign = path.with_name("foreign.safetensors")
    save_file({"weight": torch.zeros(2)}, str(foreign))
    sizes = (len(whole) // 2, len(whole) - 1, 100, 4, 0)
    for broken in (*(whole[:size] for size in sizes), whole[:-8] + b"\1" * 8, foreign.read_bytes()):
        path.write_bytes(broken)
        refuses(lambda: pack.call("LoadInversion", file=name), path.name)
        assert node.fingerprint_inputs(file=name) != mark
    path.write_bytes(whole)
    pack.call("LoadInversion", file=name)
    # One of the standalone command is said to be one, not to be of another model.
    meta = {"retrace": "0.1.0", "model": "demo-eps", "source_prompt": "a", "source_cfg": 1.0}
    pack.module("inversion").save(dataclasses.replace(inversion, meta=meta), _output() / "of_the_command.safetensors")
    refuses(lambda: pack.call("LoadInversion", file="of_the_command.safetensors"), "must be made in ComfyUI")


class PixelVAE:
    """Decodes a latent to a picture by taking three channels; what a VAE of the host offers to nodes."""

    def decode(self, samples):
        return (samples[:, :3].movedim(1, -1) * 0.2 + 0.5).clamp(0, 1)


def check_report(pack):
    """Numbers agree with the inversion and the text; the plot is a picture; a given reconstruction is measured."""
    for kind in ("sd15", "wan"):
        latent = pack.tiny.latent(kind, batch=2, size=(16, 24))
        model, _, _, (inversion, *_) = invert(pack, kind, latent=latent, keep_path=True)

        def report(model=model, inversion=inversion, **changes):
            return pack.call("InversionReport", inversion=inversion, model=model, **changes)

        text, plot, error, psnr, ssim, deviation, calls, seconds = report(vae=PixelVAE())
        assert plot.ndim == 4 and plot.shape[0] == 1 and plot.shape[-1] == 3 and 0 <= plot.min() < plot.max() <= 1
        assert error > 0 and math.isfinite(psnr) and -1 <= ssim < 1 and calls == 2 * STEPS and seconds > 0
        assert f"{error:.3e}" in text and f"{psnr:.2f} dB" in text and f"{deviation:.4f}" in text
        assert text.count("\n  sigma") == STEPS, text
        assert report(reconstructed={"samples": play(pack, model, inversion)})[2] == error
        perfect = report(vae=PixelVAE(), reconstructed={"samples": latent["samples"]})
        assert perfect[2] == 0.0 and perfect[3] == math.inf and abs(perfect[4] - 1) < 1e-12
        x, x0, sigma = inversion.x, inversion.x0, inversion.sigma
        noise = x - x0 if inversion.space == "ve" else x - (1 - sigma) * x0
        assert abs(deviation - float((noise / sigma).std())) < 1e-6
        bare = report()
        assert math.isnan(bare[3]) and math.isnan(bare[4]) and "connect a VAE" in bare[0]


def check_taken_ids_are_named(pack):
    """A node of another pack keeps its id; the log names it, and the rest of this pack loads."""
    module, mapping = pack.module("nodes"), pack.host_nodes.NODE_CLASS_MAPPINGS
    ours = mapping["Invert"]

    class Other:
        RELATIVE_PYTHON_MODULE = "custom_nodes.other_pack"

    mapping["Invert"] = Other
    try:
        with logged() as records:
            nodes = asyncio.run(module.RetraceExtension().get_node_list())
    finally:
        mapping["Invert"] = ours
    assert ours not in nodes and len(nodes) == len(module.NODES) - 1
    messages = [each.getMessage() for each in records]
    assert any("'Invert'" in text and "custom_nodes.other_pack" in text for text in messages), messages
    assert len(asyncio.run(module.RetraceExtension().get_node_list())) == len(module.NODES)
