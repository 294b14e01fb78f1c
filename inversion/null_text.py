"""Null-text optimisation: one unconditional embedding per step, so that guided sampling comes back to the source.

Guidance amplifies the error of an inversion: at cfg 7.5 the way down leaves the path x*_0 .. x*_k that the way up at
cfg 1 took. From the noisy end on, the unconditional embedding e of each step is fitted so that the Euler step under
guidance w lands on the path again:

    D     = D_u(e) + w (D_c - D_u(e))                      D_c: source prompt, D_u: unconditional
    x'    = x + (s' - s) (x - D) / s
    loss  = mean (a (x' - x*'))^2                           a = 1 / sqrt(1 + s'^2) for "ve", 1 for "flow"

by Adam on e alone. The next step starts from the x' that was reached and from the e that was found. The scale a makes
the loss that of the variance-preserving latents of the paper, whose thresholds hold for them.

Source: Mokady et al. 2022, Null-text Inversion, arXiv:2211.09794, and the settings of its published code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..core.adam import EPSILON, Adam
from ..core.denoiser import Denoiser
from ..core.fitting import Attempt, fit, per_row
from ..core.settings import Scalar, Settings, parameter
from ..core.steps import Euler
from ..core.walk import StepReport
from .api import MisfitError, adopt, own_method
from .embeddings import with_embeddings
from .inversion import AnyInversion
from .method import SingleState

# In the published code the rate of step i is multiplied by 1 - i / 100. That ends at 0.51; longer walks stay at this
# value, where the formula would reach 0.
DECAY_STEPS = 100
LOWEST_DECAY = 0.5


@dataclass(frozen=True)
class NullText(Settings):
    """Settings of a fit; the defaults are those of the published code, for its 50 steps at guidance 7.5.

    Raises:
        ValueError: If one is out of range, or cfg is 1, where no embedding acts.
        TypeError: If one has the wrong type.
    """

    cfg: float = parameter(
        7.5,
        "Guidance to fit for, not 1. Edit at the same cfg in Resample.",
        minimum=0.0,
        maximum=100.0,
        step=0.1,
        round=0.01,
    )
    inner_steps: int = parameter(
        10, "Most updates in each step. Each takes a model call and its gradient.", minimum=0, maximum=500, step=1
    )
    learning_rate: float = parameter(
        1e-2,
        "How far an update may move the embedding. It falls by 1 % of itself with every step, down to a half.",
        minimum=0.0,
        maximum=1.0,
        step=0.001,
        round=0.000001,
    )
    stop: float = parameter(
        1e-5,
        "A step is done when its loss is below this. 0 always makes all updates.",
        minimum=0.0,
        maximum=1.0,
        step=1e-6,
        round=1e-9,
    )
    stop_growth: float = parameter(
        2e-5,
        "Added to stop with every step, because errors weigh less near the clean end.",
        minimum=0.0,
        maximum=1.0,
        step=1e-6,
        round=1e-9,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cfg == 1.0:
            raise ValueError("cfg must not be 1, where the negative does not act, got 1; the usual one is 7.5.")

    def of_step(self, number: int) -> tuple[float, float]:
        """Learning rate and threshold of a step."""
        return self.learning_rate * max(1.0 - number / DECAY_STEPS, LOWEST_DECAY), self.stop + number * self.stop_growth


@dataclass(frozen=True, eq=False)
class FitReport(StepReport):
    """What a fitted step tells its listener, beside what every step tells.

    Attributes:
        first_loss: Loss with the embedding of the step before, one for each batch row.
        loss: Loss with the embedding that was kept, one for each row; never above first_loss.
        inner_steps: Updates that were made, 0 for a step that was there already.
        embeddings: All that have been found so far, noisy end first: what an interrupted fit should keep.
    """

    first_loss: tuple[float, ...]
    loss: tuple[float, ...]
    inner_steps: int
    embeddings: tuple[Tensor, ...]


OnFit = Callable[[FitReport], None]


def null_text(
    inversion: AnyInversion,
    source: Denoiser,
    unconditional: Denoiser,
    embedding: Tensor,
    settings: NullText = NullText(),
    on_step: OnFit | None = None,
    device: torch.device | str = "cpu",
) -> AnyInversion:
    """Fit one unconditional embedding for each step on the way down.

    The loop is the published one, with two differences. Batch rows are fitted each for itself: every row has its own
    loss, its own early stop and its own embedding. And of the embeddings that a step has tried it keeps the best,
    which is the last one unless Adam has overshot; so no step ends worse than it starts.

    An inversion that has embeddings for its first steps already, from a fit that was interrupted, goes on after them.

    Args:
        inversion: One with its path, of a method whose whole state is one latent; made at cfg 1.
        source: The model under the source conditioning, unguided.
        unconditional: The model under an unconditional embedding that can be exchanged, unguided. Gradients of its
            answer must reach the embedding.
        embedding: The unconditional embedding to start from, shape (1 or B, ...), such as that of an empty prompt.
        settings: Guidance scale w that the way down will have, and how to fit for it.
        on_step: Told after every step; whatever it raises ends the fit.
        device: Where to compute.

    Returns:
        The inversion with its embeddings (float32 or float64, shape (B, ...)), noisy end first. Its method is its
        own where that comes down by Euler steps, else "euler". "cfg" in its meta is the guidance of the fit.

    Raises:
        ValueError: If an argument is out of range, the inversion does not fit, gradients do not reach the embedding, or
            the loss leaves the finite numbers.
        MisfitError: If its method keeps more than one latent.
    """
    cfg, inversion = settings.cfg, by_euler(inversion)
    path, known = inversion.path, inversion.embeddings or ()
    if path is None:
        raise ValueError("inversion must hold its path to fit embeddings, got none; set keep_path when you invert.")
    for name, denoiser in (("source", source), ("unconditional", unconditional)):
        if denoiser.space != inversion.space:
            raise MisfitError(
                f"The {name} model must be of the inversion's space {inversion.space!r}, got {denoiser.space!r}."
            )
    if known and inversion.meta.get("cfg") != cfg:
        raise ValueError(
            f"cfg must be that of the embeddings that are there already, {inversion.meta.get('cfg')}, got {cfg:g}; "
            "set it back, or start from an inversion without embeddings."
        )
    started = time.perf_counter()
    called = source.evaluations + unconditional.evaluations
    embeddings: list[Tensor] = []
    # Whatever the caller's mode: an embedding made in inference mode could not carry a gradient.
    with torch.inference_mode(False), torch.no_grad():
        x = inversion.x.to(device)
        current = _one_per_row(embedding.detach().clone().to(device), len(x))
        for number, (sigma, sigma_next) in enumerate(pairwise(inversion.falling)):
            on_path = path[inversion.index - 1 - number].to(device)
            step = _GuidedStep(source, unconditional, x, on_path, sigma, sigma_next, cfg)
            (rate, threshold), most = settings.of_step(number), settings.inner_steps
            if number < len(known):
                current, most = known[number].to(device, current.dtype), 0
            fitted = fit(current, step.attempt, Adam(rate).step, most, threshold)
            current, (x, denoised) = fitted.value, fitted.parts
            embeddings.append(current.to("cpu", torch.promote_types(current.dtype, torch.float32)))
            if on_step is not None:
                on_step(
                    FitReport(
                        number,
                        inversion.index,
                        sigma,
                        sigma_next,
                        x,
                        denoised,
                        tuple(fitted.first.tolist()),
                        tuple(fitted.score.tolist()),
                        fitted.updates,
                        tuple(embeddings),
                    )
                )
    remarks: dict[str, Scalar] = {
        "null_text_evaluations": source.evaluations + unconditional.evaluations - called,
        "null_text_seconds": time.perf_counter() - started,
    }
    return with_embeddings(inversion, embeddings, cfg, remarks)


class _GuidedStep:
    """One step down whose end is to meet the path; the conditional prediction is asked for once."""

    def __init__(
        self,
        source: Denoiser,
        unconditional: Denoiser,
        x: Tensor,
        on_path: Tensor,
        sigma: float,
        sigma_next: float,
        cfg: float,
    ) -> None:
        self._unconditional = unconditional
        self._x, self._on_path = x, on_path
        self._sigma, self._sigma_next, self._cfg = sigma, sigma_next, cfg
        self._scale = 1.0 / math.sqrt(1.0 + sigma_next**2) if source.space == "ve" else 1.0
        self._source = source
        with torch.no_grad():
            self._conditional = source(x, sigma)

    def attempt(self, embedding: Tensor, number: int, wanted: bool) -> Attempt:
        """The guided Euler step under an embedding, and its distance from the path in variance-preserving units."""
        leaf, gradient = embedding.detach().requires_grad_(wanted), None
        with torch.set_grad_enabled(wanted):
            unguided = self._unconditional.with_embedding(leaf)

            def guided(x: Tensor, sigma: float) -> Tensor:
                answer = unguided(x, sigma)
                return answer + self._cfg * (self._conditional - answer)

            denoiser = self._source.answering(guided)
            step = Euler()(denoiser, self._x, self._sigma, self._sigma_next)
            rows = (self._scale * (step.x - self._on_path)).square().flatten(1).mean(1)
            if not bool(torch.isfinite(rows).all()):
                raise ValueError(
                    f"The loss must stay finite, got {rows.tolist()} at sigma {self._sigma:.5g}; "
                    "lower the learning rate, or run the network in float32 or bfloat16."
                )
            if wanted:
                gradient = self._gradient(rows, leaf)
        return Attempt(rows.detach(), (step.x.detach(), step.denoised.detach()), gradient)

    def _gradient(self, rows: Tensor, leaf: Tensor) -> Tensor:
        if not rows.requires_grad:
            raise ValueError(
                "The model must let gradients reach its unconditional embedding, got an answer without any; "
                "use a model that is guided by a negative prompt."
            )
        # The loss is a mean over many entries, so its gradient at one of them lies below what float16 can hold. It
        # is sent through the network as if the error there were of size 1, and scaled back after.
        scale = self._on_path[0].numel() / rows.detach().sqrt().clamp_min(EPSILON)
        (gradient,) = torch.autograd.grad((rows * scale).sum(), leaf, allow_unused=True)
        if gradient is None or not bool(torch.isfinite(gradient).all()):
            got = "none" if gradient is None else "inf or nan"
            raise ValueError(
                f"The gradient at the unconditional embedding must be finite, got {got}; "
                "use a model that is guided by a negative prompt, in float32 or bfloat16."
            )
        return gradient / per_row(scale, gradient).to(gradient.dtype)


def _one_per_row(embedding: Tensor, rows: int) -> Tensor:
    if not embedding.is_floating_point() or embedding.ndim < 2 or len(embedding) not in (1, rows):
        raise ValueError(
            f"embedding must be floating-point with 1 or {rows} rows, got {embedding.dtype} of shape "
            f"{tuple(embedding.shape)}; give the embedding of one empty prompt."
        )
    wide = torch.promote_types(embedding.dtype, torch.float32)
    return embedding.to(wide).expand(rows, *embedding.shape[1:]).clone()


def by_euler(inversion: AnyInversion) -> AnyInversion:
    """The inversion, to come down by Euler steps: as it is where its method does so, else under the name "euler".

    Raises:
        MisfitError: If its method keeps more than one latent.
    """
    method = own_method(inversion)
    if not isinstance(method, SingleState):
        raise MisfitError(
            f"inversion must come from a method that keeps one latent, got {method.name}; "
            "invert with ddim, euler, fixed_point or midpoint, or replay this one as it is."
        )
    return inversion if type(method.down()) is Euler else adopt(inversion, "euler")
