"""What an inversion is worth, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ...inversion import Inversion, StepReport, implied_noise, psnr, relative_error, ssim
from ..host.latents import into_model, source_samples
from ..host.parametrisation import model_sampling_of, noise_scale
from .link import LinkedInversion, source_samples_of
from .runs import check_model_fits, run_replay


@dataclass(frozen=True)
class Measurement:
    """Figures of one inversion.

    Attributes:
        latent_error: |reconstruction - source| / |source| in the model's space.
        pixel_psnr: dB between the two decoded, nan without a VAE.
        pixel_ssim: Structural similarity of the two decoded, nan without a VAE or below 11 pixels.
        noise_std: Deviation of the inverted noise over the expected one; 1 is wanted.
        evaluations: Model calls of the inversion.
        seconds: Time of the inversion.
        sigmas: Levels on the way down at which a path was recorded.
        step_errors: Relative error of the state at each.
        noise: The noise that the inverted state implies.
    """

    latent_error: float
    pixel_psnr: float
    pixel_ssim: float
    noise_std: float
    evaluations: int
    seconds: float
    sigmas: tuple[float, ...]
    step_errors: tuple[float, ...]
    noise: torch.Tensor


def measure(
    model: Any, inversion: LinkedInversion, vae: Any = None, reconstructed: dict[str, Any] | None = None
) -> Measurement:
    """Measure an inversion, reconstructing it where no reconstruction is given.

    Args:
        model: The MODEL that made it.
        inversion: The inversion.
        vae: VAE for figures in pixels. They compare decoded latents, so that the VAE's own loss is not in them.
        reconstructed: LATENT of a reconstruction made elsewhere.

    Returns:
        The figures.

    Raises:
        ValueError: If something does not fit the inversion.
    """
    check_model_fits(model, inversion)
    step_sigmas: list[float] = []
    step_errors: list[float] = []

    def compare(report: StepReport) -> None:
        if inversion.path is not None:
            step_sigmas.append(report.sigma_next)
            wanted = inversion.path[inversion.index - 1 - report.index]
            step_errors.append(relative_error(report.x.to("cpu"), wanted))

    if reconstructed is None:
        reconstructed = run_replay(model, inversion, tap=compare)
    samples = source_samples(model, reconstructed, "reconstructed")
    if tuple(samples.shape) != inversion.shape:
        raise ValueError(
            f"reconstructed must have the inversion's size {inversion.shape}, got {tuple(samples.shape)}; "
            "connect the LATENT of Resample."
        )
    pixels = (math.nan, math.nan)
    if vae is not None and samples.ndim == 3:
        raise ValueError("vae must be left out for sound, whose samples are no pixels, got one; disconnect it.")
    if vae is not None:
        pixels = _compare_pixels(vae, samples, source_samples_of(model, inversion))
    noise = implied_noise(inversion.x, inversion.x0, inversion.sigma, inversion.space, inversion.sigmas[0])
    noise = noise / noise_scale(model_sampling_of(model))
    return Measurement(
        latent_error=relative_error(into_model(model, samples), inversion.x0),
        pixel_psnr=pixels[0],
        pixel_ssim=pixels[1],
        noise_std=float(noise.double().std()),
        evaluations=int(inversion.meta.get("evaluations", 0)),
        seconds=float(inversion.meta.get("seconds", math.nan)),
        sigmas=tuple(step_sigmas),
        step_errors=tuple(step_errors),
        noise=noise,
    )


def describe(inversion: Inversion, found: Measurement) -> str:
    """Put the figures into words, one a line."""
    settings = ", ".join(f"{key} {value}" for key, value in inversion.params.items())
    lines = [
        f"method: {inversion.method}" + (f" ({settings})" if settings else ""),
        f"model: {inversion.fingerprints.get('model', 'unknown')} ({inversion.space})",
        f"steps: {inversion.index} of {inversion.steps}, sigma {inversion.sigma:.5g}; "
        f"cfg {inversion.meta.get('cfg', 1.0):g}",
        f"latent: {' x '.join(map(str, inversion.shape))}, {str(inversion.dtype).removeprefix('torch.')}",
        f"model calls: {found.evaluations} up, {found.seconds:.2f} s",
        f"noise std over expected: {found.noise_std:.4f} ({_judge(found.noise_std)})",
        f"round-trip error, latent: {found.latent_error:.3e} relative",
    ]
    lines += describe_residuals(inversion)
    if not math.isnan(found.pixel_psnr):
        similarity = "not defined below 11 pixels" if math.isnan(found.pixel_ssim) else f"{found.pixel_ssim:.4f}"
        lines.append(f"round-trip error, pixels: PSNR {found.pixel_psnr:.2f} dB, SSIM {similarity}")
    else:
        lines.append("round-trip error, pixels: connect a VAE to measure it")
    if found.step_errors:
        lines.append("error by step, from noise to clean:")
        pairs = zip(found.sigmas, found.step_errors, strict=True)
        lines += [f"  sigma {sigma:8.4f}  {error:.3e}" for sigma, error in pairs]
    else:
        lines.append("error by step: needs keep_path of Invert and no latent connected to reconstructed")
    return "\n".join(lines)


def describe_residuals(inversion: Inversion) -> list[str]:
    """Put into words what an iterative method left unsolved, one a line; nothing for the other methods."""
    meta = inversion.meta
    if "losses" in meta:
        return [
            f"gradient descent: largest loss {float(meta['loss']):.2e}, {meta['updates']} updates "
            f"in {inversion.index} steps",
            f"loss before > after, from clean to noise: {meta['losses']}",
        ]
    if "residuals" not in meta:
        return []
    return [
        f"fixed point: largest residual {float(meta['residual']):.2e}, "
        f"not shrinking in {meta['diverged']} of {inversion.index} steps",
        f"residuals, from clean to noise: {meta['residuals']}",
    ]


def _judge(deviation: float) -> str:
    # An edit starts from what the model takes for unit noise; beyond a third it visibly is not.
    if 0.75 <= deviation <= 1.33:
        return "fit for editing"
    return "too weak: use more steps" if deviation < 0.75 else "too strong: lower cfg or strength, or use more steps"


def _compare_pixels(vae: Any, samples: torch.Tensor, source: torch.Tensor) -> tuple[float, float]:
    ours, theirs = _pictures(vae.decode(samples)), _pictures(vae.decode(source))
    large = min(ours.shape[-2:]) >= 11
    return psnr(ours, theirs), ssim(ours, theirs) if large else math.nan


def _pictures(decoded: torch.Tensor) -> torch.Tensor:
    """Bring decoded pictures (B, H, W, C) or clips (B, T, H, W, C) to (N, C, H, W)."""
    return decoded.reshape(-1, *decoded.shape[-3:]).movedim(-1, 1).to("cpu", torch.float64)
