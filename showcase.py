"""The demo command: a bundled picture inverted, reconstructed and edited with both demo models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .backends.diffusers import DiffusersModel
from .backends.pictures import grid, read_picture, save_image, to_image
from .backends.shapes import shapes_model
from .core.denoiser import Denoiser
from .demo.reader import read
from .inversion import (
    Inversion,
    Method,
    OnStep,
    blend,
    implied_noise,
    invert,
    noise_std,
    psnr,
    relative_error,
    replay,
    save,
    ssim,
)
from .version import VERSION

PICTURE = Path(__file__).parent / "demo" / "picture.png"
# What the bundled picture shows, and what it is to become; the world keeps these from training.
SOURCE = "a big red cross on a blue background"
EDIT = "a big yellow star on a blue background"
# Trained on, but the mask holds everything outside the object.
RECOLOUR = "a big green cross on a blue background"

TITLES = {
    "eps": "demo-eps: UNet of SD1.5 type, predicts the noise",
    "flow": "demo-flow: MMDiT of SD3 type, rectified flow",
}


def showcase(
    output: str | os.PathLike[str],
    steps: int,
    method: Method,
    cfg: float,
    progress: Callable[[str], OnStep],
    device: str = "cpu",
) -> str:
    """Run the demo and write grid.png, report.txt and a record a model.

    Args:
        output: Folder to write into; made if missing.
        steps: Steps of the grid of noise levels, all of which are walked.
        method: How to invert.
        cfg: Guidance of the edits; the inversion runs at 1.
        progress: Makes the listener of one walk from its title.
        device: Where to compute.

    Returns:
        The report.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the file {folder}; name another one.")
    folder.mkdir(parents=True, exist_ok=True)
    rows, report = [], []
    for kind, title in TITLES.items():
        model = shapes_model(kind, device=device)
        with torch.no_grad():  # some methods differentiate the model, which inference mode forbids
            cells, lines, record = _one_model(model, kind, steps, method, cfg, progress)
        save(record, folder / f"demo-{kind}.safetensors")
        rows.append((title, cells))
        report += [title, *(f"  {line}" for line in lines), ""]
    save_image(grid(rows), folder / "grid.png")
    report.append(f"wrote {folder / 'grid.png'}")
    text = "\n".join(report)
    (folder / "report.txt").write_text(text + "\n", encoding="utf-8")
    return text


def _one_model(
    model: DiffusersModel, kind: str, steps: int, method: Method, cfg: float, progress: Callable[[str], OnStep]
) -> tuple[list[tuple[str, Image.Image]], list[str], Inversion]:
    picture = read_picture(PICTURE, model.multiple)
    x0 = model.encode(picture)
    sigmas = model.schedule(*x0.shape[2:]).grid(steps)
    negative = model.prompt("")

    def target(prompt: str) -> Denoiser:
        return model.denoiser(x0, model.prompt(prompt), negative, cfg)

    source = model.denoiser(x0, model.prompt(SOURCE))
    record = invert(
        source,
        x0,
        sigmas,
        steps,
        method,
        keep_path=True,
        on_step=progress(f"{kind}: inverting"),
    ).marked(
        {"model": model.fingerprint()},
        {
            "retrace": VERSION,
            "model": model.name,
            "source_prompt": SOURCE,
            "source_cfg": 1.0,
            "width": picture.shape[3],
            "height": picture.shape[2],
        },
    )
    back = replay(record, source, on_step=progress(f"{kind}: reconstructing"), device=model.device)
    edited = replay(record, source, target(EDIT), on_step=progress(f"{kind}: editing"), device=model.device)
    mask = _object_mask(picture, x0)
    recoloured = replay(
        record,
        source,
        target(RECOLOUR),
        after_step=blend(record, mask, model.device),
        on_step=progress(f"{kind}: editing inside a mask"),
        device=model.device,
    )
    # What the VAE alone makes of the picture is the best that a reconstruction can be compared with.
    through_vae = model.decode(x0)
    rebuilt = model.decode(back)
    pictures = {"edit": model.decode(edited), "edit inside a mask": model.decode(recoloured)}
    cells = [
        ("source", to_image(picture)),
        ("its noise", _noise_image(record)),
        ("reconstruction", to_image(rebuilt)),
        (f"edit:\n{_wrap(EDIT)}", to_image(pictures["edit"])),
        (f"edit inside a mask:\n{_wrap(RECOLOUR)}", to_image(pictures["edit inside a mask"])),
    ]
    kept = mask.expand_as(x0) == 0
    lines = [
        f"method: {method.label}, {steps} steps, {record.meta['evaluations']} model calls, "
        f"{record.meta['seconds']:.1f} s",
        f"noise: std {noise_std(record.x, record.x0, record.sigma, record.space):.3f} of the expected 1",
        f"round trip: latent error {relative_error(back.cpu(), record.x0):.2e}, against the VAE's own picture "
        f"PSNR {psnr(rebuilt, through_vae):.1f} dB, SSIM {ssim(rebuilt, through_vae):.4f}",
        f"source: {SOURCE}; the reader sees {_seen(picture)}",
        f"edit: {EDIT}; the reader sees {_seen(pictures['edit'])}",
        f"edit inside a mask: {RECOLOUR}; the reader sees {_seen(pictures['edit inside a mask'])}; latent outside "
        f"{'unchanged bit for bit' if torch.equal(recoloured[kept], x0[kept]) else 'CHANGED'}",
    ]
    return cells, lines, record


def _object_mask(picture: Tensor, x0: Tensor) -> Tensor:
    """The object that the reader finds, as a mask of latent cells that contain any of it."""
    found = torch.from_numpy(read(picture[0].permute(1, 2, 0).numpy()).mask).float()[None, None]
    return torch.nn.functional.adaptive_max_pool2d(found, x0.shape[2:])


def _noise_image(record: Inversion) -> Image.Image:
    """The first three channels of the noise that the last state implies, three standard deviations to each side."""
    noise = implied_noise(record.x, record.x0, record.sigma, record.space)[0, :3]
    return to_image(noise / 6.0 + 0.5)


def _seen(picture: Tensor) -> str:
    seen = read(picture[0].permute(1, 2, 0).cpu().numpy())
    if seen.shape is None:
        return f"nothing on {seen.background}"
    return f"{seen.size} {seen.colour} {seen.shape}, {seen.position}, on {seen.background}"


def _wrap(prompt: str) -> str:
    """Break a prompt in two lines that fit under a picture."""
    return prompt.replace(" on ", "\non ", 1)
