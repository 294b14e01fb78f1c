"""Null-text optimisation on a model of the host."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from ...core.denoiser import Denoiser
from ...inversion import FitReport, Inversion, null_text, with_embeddings, work_dtype
from ...inversion.null_text import by_euler
from ..host.checks import check_cfg, refuse_other_guidance, refuse_skipping
from ..host.denoiser import Callback, reporter
from ..host.gradients import differentiable_run, refuse_quantised, whole_model
from ..host.guider import SteadyGuider
from ..host.negative import exchanged, unconditional_embedding
from ..host.parametrisation import sigma_floor, space_of
from ..host.unfinished import keep_unfinished
from .link import Bundle, source_of
from .runs import check_model_fits, drive, fingerprint_source, warn_of_other_source

_logger = logging.getLogger(__name__)

_UNFINISHED = "retrace/null_text_unfinished"

Listener = Callable[[FitReport], None]


@dataclass(frozen=True)
class FitSettings:
    """Settings of a fit, as in inversion.null_text."""

    cfg: float
    inner_steps: int
    learning_rate: float
    stop: float
    stop_growth: float


def run_null_text(
    model: Any,
    bundle: Bundle,
    negative: Any,
    settings: FitSettings,
    save_unfinished: bool = True,
    tap: Listener | None = None,
) -> Bundle:
    """Fit the unconditional embeddings of an inversion.

    Args:
        model: The MODEL that made it; it is not changed.
        bundle: The inversion, with its path.
        negative: CONDITIONING of one prompt, usually the empty one, to start from.
        settings: Guidance and settings of the optimiser.
        save_unfinished: Whether a fit that is interrupted leaves what it has found as a record in the output folder.
        tap: Told after every step.

    Returns:
        The inversion with its embeddings, under this negative and the guidance of the fit.

    Raises:
        ValueError: If something does not fit.
    """
    refuse_skipping(model)
    refuse_distilled(model)
    refuse_quantised(model)
    record = bundle.record
    check_model_fits(model, record)
    if bundle.source is None:
        raise ValueError(
            "source must be connected to fit an inversion that was loaded from a file, got nothing; "
            "connect the conditioning that it was inverted with."
        )
    if settings.cfg == 1.0:
        raise ValueError("cfg must not be 1, where the negative does not act, got 1; the usual one is 7.5.")
    check_cfg(settings.cfg, negative)
    if record.path is None:
        raise ValueError("inversion must hold its path to fit embeddings, got none; set keep_path of Invert.")
    refuse_other_guidance(model)
    source_mark = fingerprint_source(bundle.source, negative, settings.cfg)
    if record.embeddings:
        warn_of_other_source(record, bundle.source, negative, settings.cfg)
    else:
        warn_of_other_source(record, bundle.source, bundle.negative, bundle.cfg)
        if bundle.cfg != 1.0:
            _logger.warning(
                "Retrace: this inversion was made at cfg %g; null-text fits to the path of one made at cfg 1, "
                "whose noise is sounder.",
                bundle.cfg,
            )
    latest: list[FitReport] = []

    def told(report: FitReport) -> None:
        latest[:] = [report]
        if tap is not None:
            tap(report)

    def marked(fitted: Inversion) -> Inversion:
        return replace(fitted, fingerprints={**fitted.fingerprints, "source": source_mark})

    sampler = _FitSampler(record, settings, told)
    try:
        guider = SteadyGuider(whole_model(model), bundle.source, negative, settings.cfg, "source")
        drive(guider, sampler, source_of(model, bundle), record.falling)
    except BaseException:  # the host's interrupt is no Exception from 0.30 on
        if save_unfinished and latest and len(latest[0].embeddings) > len(record.embeddings or ()):
            found = latest[0].embeddings
            keep_unfinished(
                marked(with_embeddings(by_euler(record), found, settings.cfg)),
                _UNFINISHED,
                f"{len(found)} of {record.index} steps",
                "Load that with LoadInversion and run NullTextOptimize on it to go on.",
            )
        raise
    assert sampler.result is not None
    return replace(bundle, record=marked(sampler.result), negative=negative)


def refuse_distilled(model: Any) -> None:
    """Refuse a MODEL whose guidance is a number that the network is told.

    Raises:
        ValueError: If it is guidance-distilled.
    """
    network = model.model.diffusion_model
    parameters = getattr(network, "params", None)
    if getattr(parameters, "guidance_embed", False) or getattr(network, "guidance_embed", False) is True:
        raise ValueError(
            "model must have an unconditional branch to fit an embedding for, "
            f"got the guidance-distilled {type(model.model).__name__}, which is told its guidance as a number; "
            "invert with belm or another exact method instead."
        )


class _FitSampler(comfy.samplers.Sampler):
    """Runs the fit on the branches of a guider; ``result`` is the fitted record."""

    def __init__(self, record: Inversion, settings: FitSettings, told: Listener) -> None:
        self._record = record
        self._settings = settings
        self._told = told
        self.result: Inversion | None = None

    def sample(
        self,
        guider: SteadyGuider,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Fit; called by the host when the model is loaded."""
        show = reporter(callback)

        def on_step(report: FitReport) -> None:
            self._told(report)
            show(report)

        with differentiable_run(guider, extra_args) as arguments:
            source, unconditional = branches(guider, arguments, work_dtype(noise.device))
            start = unconditional_embedding(guider)
            self.result = null_text(
                self._record.to_precision(work_dtype(noise.device)),
                source,
                unconditional,
                start,
                self._settings.cfg,
                self._settings.inner_steps,
                self._settings.learning_rate,
                self._settings.stop,
                self._settings.stop_growth,
                on_step,
                noise.device,
            )
        return torch.zeros_like(noise)


def branches(guider: SteadyGuider, extra_args: dict[str, Any], dtype: torch.dtype) -> tuple[Denoiser, Denoiser]:
    """The two sides of guidance as denoisers: the source, and the negative with its embedding exchangeable.

    ``extra_args`` are those of differentiable_run.
    """
    model_sampling = guider.inner_model.model_sampling
    space = space_of(model_sampling)
    floor = sigma_floor(model_sampling, space, dtype)
    options = extra_args["model_options"]

    def answer(branch: str) -> Callable[[torch.Tensor, float], torch.Tensor]:
        def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            rows = torch.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device)
            return guider.predict_branch(branch, x, rows, options)

        return denoise

    def rebind(embedding: torch.Tensor) -> Callable[[torch.Tensor, float], torch.Tensor]:
        def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
            with exchanged(guider, embedding):
                return answer("negative")(x, sigma)

        return denoise

    return Denoiser(answer("positive"), space, floor), Denoiser(answer("negative"), space, floor, rebind)
