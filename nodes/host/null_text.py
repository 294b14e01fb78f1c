"""Null-text optimisation on a model of the host."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from ...inversion import FitReport, Inversion, null_text, save, with_embeddings, work_dtype
from ...inversion.field import Field
from ...inversion.null_text import by_euler
from .bundle import Bundle, source_of
from .checks import check_cfg, refuse_skipping
from .field import Callback, reporter
from .files import new_record_path
from .gradients import deinference, differentiable, networks_of, with_backward
from .guider import SteadyGuider
from .negative import exchanged, unconditional_embedding
from .parametrisation import sigma_floor, space_of
from .runs import check_model_fits, drive, fingerprint_source, warn_of_other_source
from .samplers import on_device_precision

_logger = logging.getLogger(__name__)

# Options of the host that put another formula in the place of classifier-free guidance.
_OTHER_GUIDANCE = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")
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
    for option in _OTHER_GUIDANCE:
        if getattr(model, "model_options", {}).get(option):
            raise ValueError(
                f"model must be guided by plain cfg, got a patch of {option}; connect the MODEL from before that node."
            )
    source_mark = fingerprint_source(bundle.source, negative, settings.cfg)
    if record.embeddings:
        warn_of_other_source(record, bundle.source, negative, settings.cfg)
    else:
        warn_of_other_source(record, bundle.source, bundle.negative, bundle.cfg)
    latest: list[FitReport] = []

    def told(report: FitReport) -> None:
        latest[:] = [report]
        if tap is not None:
            tap(report)

    def marked(fitted: Inversion) -> Inversion:
        return replace(fitted, fingerprints={**fitted.fingerprints, "source": source_mark})

    sampler = _FitSampler(record, settings, told)
    try:
        guider = SteadyGuider(whole_model(model), bundle.source, negative, settings.cfg)
        drive(guider, sampler, source_of(model, bundle), record.falling)
    except BaseException:  # the host's interrupt is no Exception from 0.30 on
        if save_unfinished and latest and len(latest[0].embeddings) > len(record.embeddings or ()):
            _keep(marked(with_embeddings(by_euler(record), latest[0].embeddings, settings.cfg)))
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


def whole_model(model: Any) -> Any:
    """Return a MODEL whose weights stay in place: on hosts that stream them, a copy that does not."""
    # Streamed weights share buffers, which the next layer overwrites before the backward pass reads them.
    dynamic = getattr(model, "is_dynamic", None)
    return model.get_non_dynamic_delegate() if callable(dynamic) and dynamic() else model


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

        conds = guider.conds
        with differentiable(*networks_of(guider)):
            try:
                guider.conds = {name: deinference(cond) for name, cond in conds.items()}
                source, unconditional = branches(guider, extra_args, work_dtype(noise.device))
                start = unconditional_embedding(guider)
                self.result = null_text(
                    on_device_precision(self._record, work_dtype(noise.device)),
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
            finally:
                guider.conds = conds
        return torch.zeros_like(noise)


def branches(guider: SteadyGuider, extra_args: dict[str, Any], dtype: torch.dtype) -> tuple[Field, Field]:
    """The two sides of guidance as fields: the source, and the negative with its embedding exchangeable."""
    model_sampling = guider.inner_model.model_sampling
    space = space_of(model_sampling)
    floor = sigma_floor(model_sampling, space, dtype)
    options = with_backward(extra_args.get("model_options", {}))

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

    return Field(answer("positive"), space, floor), Field(answer("negative"), space, floor, rebind)


def _keep(record: Inversion) -> None:
    try:
        path, name = new_record_path(_UNFINISHED)
        save(record, path)
    except (ValueError, OSError) as error:  # why the fit stopped matters more than why its part could not be kept
        _logger.warning("Retrace: the finished part of the fit could not be kept: %s", error)
        return
    _logger.warning(
        "Retrace: the fit was stopped after %d of %d steps; they are kept in %s. "
        "Load that with LoadInversion and run NullTextOptimize on it to go on.",
        len(record.embeddings or ()),
        record.level,
        name,
    )
