"""Files, reports and what the host is told about the nodes."""

import dataclasses
import logging
import math
import os
from pathlib import Path

import torch
from helpers import STEPS, invert, refuses, relative


def check_files_keep_every_bit(pack):
    """A saved record comes back equal, in a subfolder, numbered, in the output folder."""
    import folder_paths

    _, _, _, (linked, *_) = invert(pack, "sd15", keep_path=True, batch=2)
    names = [
        pack.call("SaveInversion", inversion=linked, filename_prefix="retrace/a b/cat", half=False)[0] for _ in range(2)
    ]
    assert names == ["retrace/a b/cat_00001_.safetensors [output]", "retrace/a b/cat_00002_.safetensors [output]"]
    assert (Path(folder_paths.get_output_directory()) / "retrace/a b/cat_00001_.safetensors").is_file()
    (loaded,) = pack.call("LoadInversion", file=names[0])
    ours, theirs = linked, loaded
    assert torch.equal(ours.x, theirs.x) and torch.equal(ours.x0, theirs.x0) and ours.sigmas == theirs.sigmas
    assert all(torch.equal(a, b) for a, b in zip(ours.path, theirs.path))
    assert ours.fingerprints == theirs.fingerprints and dict(ours.meta) == dict(theirs.meta)
    (by_path,) = pack.call("LoadInversion", file="(nothing saved yet)", path=names[1])
    assert torch.equal(by_path.x, ours.x)
    assert set(names) <= set(pack.module("nodes.host.files").list_saved())
    assert names[0] in pack.node("LoadInversion").define_schema().inputs[0].options
    (half,) = pack.call("SaveInversion", inversion=linked, filename_prefix="half", half=True)
    (rounded,) = pack.call("LoadInversion", file=half)
    assert torch.equal(rounded.x0, ours.x0) and 0 < relative(rounded.x, ours.x) < 1e-3


def check_no_path_leaves_the_folders(pack):
    """Hostile names are refused in a sentence, on the way out and on the way in, and write nothing."""
    import folder_paths

    _, _, _, (linked, *_) = invert(pack, "sd15")
    outside = Path(folder_paths.get_output_directory()).parent
    before = sorted(str(path) for path in outside.rglob("*"))
    for name in ("../evil", "/tmp/evil", "a/../../evil", "..", "", "sub/", "..\\evil", "C:\\evil", "a\0b"):
        refuses(
            lambda name=name: pack.call("SaveInversion", inversion=linked, filename_prefix=name, half=False),
            "filename_prefix must name a file within the output folder",
        )
    assert sorted(str(path) for path in outside.rglob("*")) == before
    (outside / "evil.safetensors").write_bytes(b"secret")
    node = pack.node("LoadInversion")
    for name in ("../evil.safetensors", str(outside / "evil.safetensors"), "..\\evil.safetensors [output]"):
        refuses(lambda name=name: pack.call("LoadInversion", file=name), "file must lie in the output or input")
        assert "file must lie" in node.validate_inputs(file=name)
    refuses(lambda: pack.call("LoadInversion", file="nothing.safetensors"), "file must name a saved")
    assert "file must name a saved" in node.validate_inputs(file="(nothing saved yet)")
    # A linked path is not known yet, and a linked path makes the list irrelevant.
    assert node.validate_inputs(file="(nothing saved yet)", path=None) is True
    (outside / "evil.safetensors").unlink()


def check_broken_files(pack):
    """Half a file, a foreign one and a changed one are refused; a saved file makes the node run again."""
    import folder_paths
    from safetensors.torch import save_file

    _, _, _, (linked, *_) = invert(pack, "sd15")
    (name,) = pack.call("SaveInversion", inversion=linked, filename_prefix="broken", half=False)
    path = Path(folder_paths.get_output_directory()) / name.removesuffix(" [output]")
    node = pack.node("LoadInversion")
    mark = node.fingerprint_inputs(file=name)
    assert node.fingerprint_inputs(file=name) == mark
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuses(lambda: pack.call("LoadInversion", file=name))
    assert node.fingerprint_inputs(file=name) != mark
    path.write_bytes(whole[:-8] + b"\1" * 8)
    refuses(lambda: pack.call("LoadInversion", file=name))
    save_file({"weight": torch.zeros(2)}, str(path))
    refuses(lambda: pack.call("LoadInversion", file=name))
    path.write_bytes(whole)
    pack.call("LoadInversion", file=name)


def check_records_of_the_command_are_refused_by_name(pack):
    """A record of the standalone command is said to be one, not to be of another model."""
    import folder_paths

    _, _, _, (linked, *_) = invert(pack, "sd15")
    inversion = pack.module("inversion")
    meta = {"retrace": "0.1.0", "model": "demo-eps", "source_prompt": "a", "source_cfg": 1.0}
    record = dataclasses.replace(linked, meta=meta)
    inversion.save(record, Path(folder_paths.get_output_directory()) / "of_the_command.safetensors")
    refuses(lambda: pack.call("LoadInversion", file="of_the_command.safetensors"), "must be made in ComfyUI")


def check_failed_save_leaves_nothing(pack):
    """A folder that cannot be written is one sentence, and the older file stays."""
    if os.name != "posix" or os.geteuid() == 0:
        return  # root writes everywhere
    import folder_paths

    _, _, _, (linked, *_) = invert(pack, "sd15")
    folder = Path(folder_paths.get_output_directory()) / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        refuses(lambda: pack.call("SaveInversion", inversion=linked, filename_prefix="locked/x", half=False))
        assert not list(folder.iterdir())
    finally:
        folder.chmod(0o700)


class PixelVAE:
    """Decodes a latent to a picture by taking three channels; what a VAE of the host offers to nodes."""

    def decode(self, samples):
        pictures = samples[:, :3].movedim(1, -1)
        return (pictures * 0.2 + 0.5).clamp(0, 1)


def check_report(pack):
    """Numbers agree with the record and the text; the plot is a picture; a given reconstruction is measured."""
    for kind in ("sd15", "wan"):
        latent = pack.tiny.latent(kind, batch=2, size=(16, 24))
        model, _, _, (linked, *_) = invert(pack, kind, latent=latent, keep_path=True)
        text, plot, error, psnr, ssim, deviation, calls, seconds = pack.call(
            "InversionReport", inversion=linked, model=model, vae=PixelVAE()
        )
        assert plot.ndim == 4 and plot.shape[0] == 1 and plot.shape[-1] == 3 and 0 <= plot.min() < plot.max() <= 1
        assert error > 0 and math.isfinite(psnr) and -1 <= ssim < 1 and calls == 2 * STEPS and seconds > 0
        assert f"{error:.3e}" in text and f"{psnr:.2f} dB" in text and f"{deviation:.4f}" in text
        assert text.count("\n  sigma") == STEPS, text
        (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
        _, _, given, *_ = pack.call("InversionReport", inversion=linked, model=model, reconstructed=back)
        assert given == error
        perfect = pack.call(
            "InversionReport",
            inversion=linked,
            model=model,
            vae=PixelVAE(),
            reconstructed={"samples": latent["samples"]},
        )
        assert perfect[2] == 0.0 and perfect[3] == math.inf and abs(perfect[4] - 1) < 1e-12
        record = linked
        noise = record.x - record.x0 if record.space == "ve" else record.x - (1 - record.sigma) * record.x0
        assert abs(deviation - float((noise / record.sigma).std())) < 1e-6
        bare = pack.call("InversionReport", inversion=linked, model=model)
        assert math.isnan(bare[3]) and math.isnan(bare[4]) and "connect a VAE" in bare[0]


def check_taken_ids_are_named(pack):
    """A node of another pack keeps its id; the log names it, and the rest of this pack loads."""
    import asyncio

    module, mapping = pack.module("nodes"), pack.host_nodes.NODE_CLASS_MAPPINGS
    ours = mapping["Invert"]

    class Other:
        RELATIVE_PYTHON_MODULE = "custom_nodes.other_pack"

    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    mapping["Invert"] = Other
    try:
        nodes = asyncio.run(module.RetraceExtension().get_node_list())
    finally:
        mapping["Invert"] = ours
        logging.getLogger().removeHandler(handler)
    assert ours not in nodes and len(nodes) == len(module.NODES) - 1
    assert any("'Invert'" in text and "custom_nodes.other_pack" in text for text in messages), messages
    assert len(asyncio.run(module.RetraceExtension().get_node_list())) == len(module.NODES)


def check_versions_agree(pack):
    """The version that records carry is the package's."""
    root = Path(pack.module("nodes").__file__).parents[1]
    _, _, _, (linked, *_) = invert(pack, "sd15")
    version = linked.meta["pack"]
    assert f'version = "{version}"' in (root / "pyproject.toml").read_text(encoding="utf-8")
