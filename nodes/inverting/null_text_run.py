"""Null-text optimisation on a model of the host."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...inversion import FitReport, NullText, null_text, with_embeddings
from ...inversion.null_text import by_euler
from ..host.checks import check_cfg, refuse_other_guidance, refuse_skipping
from ..host.compat import whole_model
from ..host.gradients import refuse_quantised
from ..host.negative import unconditional_embedding
from ..host.session import Branch, Guider, Session
from ..host.unfinished import keep_unfinished
from .link import LinkedInversion, source_samples_of
from .runs import SOURCE, check_model_fits, fingerprint_source, warn_of_other_source

_logger = logging.getLogger(__name__)

_UNFINISHED = "retrace/null_text_unfinished"

Listener = Callable[[FitReport], None]


def run_null_text(
    model: Any,
    inversion: LinkedInversion,
    negative: Any,
    settings: NullText,
    save_unfinished: bool = True,
    tap: Listener | None = None,
) -> LinkedInversion:
    """Fit the unconditional embeddings of an inversion.

    Args:
        model: The MODEL that made it; it is not changed.
        inversion: The inversion, with its path.
        negative: CONDITIONING of one prompt, usually the empty one, to start from.
        settings: Guidance and settings of the optimiser.
        save_unfinished: Whether a fit that is interrupted leaves what it has as a file in the output folder.
        tap: Told after every step.

    Returns:
        The inversion with its embeddings, under this negative and the guidance of the fit.

    Raises:
        ValueError: If something does not fit.
    """
    refuse_skipping(model)
    refuse_distilled(model)
    refuse_quantised(model)
    check_model_fits(model, inversion)
    own = inversion.branch("fit an inversion")
    check_cfg(settings.cfg, negative)
    if inversion.path is None:
        raise ValueError("inversion must hold its path to fit embeddings, got none; set keep_path of Invert.")
    refuse_other_guidance(model)
    fitted = Branch(own.positive, negative, settings.cfg)
    if inversion.embeddings:
        warn_of_other_source(inversion, fitted)
    else:
        warn_of_other_source(inversion, own)
        if own.cfg != 1.0:
            _logger.warning(
                "Retrace: this inversion was made at cfg %g; null-text fits to the path of one made at cfg 1, "
                "whose noise is sounder.",
                own.cfg,
            )
    latest: list[FitReport] = []

    def script(session: Session) -> LinkedInversion:
        def told(report: FitReport) -> None:
            latest[:] = [report]
            if tap is not None:
                tap(report)
            session.tell(report)

        return null_text(
            inversion.to_precision(session.dtype),
            session.denoiser(SOURCE, chunk="cond"),
            session.denoiser(SOURCE, chunk="uncond"),
            unconditional_embedding(session.guider),
            settings,
            told,
            session.device,
        )

    def marked(result: LinkedInversion) -> LinkedInversion:
        return result.marked({"source": fingerprint_source(fitted)})

    try:
        guider = Guider(whole_model(model), {SOURCE: fitted})
        result = guider.run(source_samples_of(model, inversion), inversion.falling, script, gradients=True)
    except BaseException:  # the host's interrupt is no Exception from 0.30 on
        if save_unfinished and latest and len(latest[0].embeddings) > len(inversion.embeddings or ()):
            embeddings = latest[0].embeddings
            keep_unfinished(
                marked(with_embeddings(by_euler(inversion), embeddings, settings.cfg)),
                _UNFINISHED,
                f"{len(embeddings)} of {inversion.index} steps",
                "Load that with LoadInversion and run NullTextOptimize on it to go on.",
            )
        raise
    return replace(marked(result), negative=negative)


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
