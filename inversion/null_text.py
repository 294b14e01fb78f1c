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

from ..core.denoiser import Denoiser
from ..core.settings import Scalar
from ..core.steps import Euler, Step
from ..core.walk import StepReport
from .adam import EPSILON, Adam, beside
from .api import MisfitError, adopt, own_method
from .embeddings import with_embeddings
from .inversion import Inversion
from .method import SingleState

# Settings of the published code, for its 50 steps at guidance 7.5.
CFG = 7.5
INNER_STEPS = 10
LEARNING_RATE = 1e-2
STOP = 1e-5
STOP_GROWTH = 2e-5
# There the rate of step i is multiplied by 1 - i / 100. That ends at 0.51; longer walks stay at this value, where the
# formula would reach 0.
DECAY_STEPS = 100
LOWEST_DECAY = 0.5


@dataclass(frozen=True, eq=False)
class FitReport(StepReport):
    """What a fitted step tells its listener, beside what every step tells.

    Attributes:
        first_loss: Loss with the embedding of the step before, one for each batch row.
        loss: Loss with the embedding that was kept, one for each row; never above first_loss.
        inner_steps: Updates that were made, 0 for a step that the record brought along.
        embeddings: All that have been found so far, noisy end first: what an interrupted fit should keep.
    """

    first_loss: tuple[float, ...]
    loss: tuple[float, ...]
    inner_steps: int
    embeddings: tuple[Tensor, ...]


OnFit = Callable[[FitReport], None]


def null_text(
    inversion: Inversion,
    source: Denoiser,
    unconditional: Denoiser,
    embedding: Tensor,
    cfg: float = CFG,
    inner_steps: int = INNER_STEPS,
    learning_rate: float = LEARNING_RATE,
    stop: float = STOP,
    stop_growth: float = STOP_GROWTH,
    on_step: OnFit | None = None,
    device: torch.device | str = "cpu",
) -> Inversion:
    """Fit one unconditional embedding for each step on the way down.

    The loop is the published one, with two differences. Batch rows are fitted each for itself: every row has its own
    loss, its own early stop and its own embedding. And of the embeddings that a step has tried it keeps the best,
    which is the last one unless Adam has overshot; so no step ends worse than it starts.

    A record that has embeddings for its first steps already, from a fit that was interrupted, goes on after them.

    Args:
        inversion: A record with its path, of a method whose whole state is one latent; made at cfg 1.
        source: The model under the source conditioning, unguided.
        unconditional: The model under an unconditional embedding that can be exchanged, unguided. Gradients of its
            answer must reach the embedding.
        embedding: The unconditional embedding to start from, shape (1 or B, ...), such as that of an empty prompt.
        cfg: Guidance scale w that the way down will have, not 1.
        inner_steps: Most updates of one step.
        learning_rate: Adam's rate in the first step.
        stop: Loss below which a row of the first step is done.
        stop_growth: What is added to that in each further step.
        on_step: Told after every step; whatever it raises ends the fit.
        device: Where to compute.

    Returns:
        The record with its embeddings (float32 or float64, shape (B, ...)), noisy end first. Its method is the
        record's own where that comes down by Euler steps, else "euler". "cfg" in its meta is the guidance of the fit.

    Raises:
        ValueError: If an argument is out of range, the record does not fit, gradients do not reach the embedding, or
            the loss leaves the finite numbers.
        MisfitError: If the record's method keeps more than one latent.
    """
    _check_settings(cfg, inner_steps, learning_rate, stop, stop_growth)
    record = by_euler(inversion)
    path = record.path
    if path is None:
        raise ValueError("inversion must hold its path to fit embeddings, got none; set keep_path when you invert.")
    for name, denoiser in (("source", source), ("unconditional", unconditional)):
        if denoiser.space != record.space:
            raise MisfitError(
                f"The {name} model must be of the record's space {record.space!r}, got {denoiser.space!r}."
            )
    known = record.embeddings or ()
    if known and record.meta.get("cfg") != cfg:
        raise ValueError(
            f"cfg must be that of the embeddings that the record already has, {record.meta.get('cfg')}, got {cfg:g}; "
            "set it back, or start from the record of the inversion."
        )
    started = time.perf_counter()
    called = source.evaluations + unconditional.evaluations
    found: list[Tensor] = []
    total = record.index
    # Whatever the caller's mode: an embedding made in inference mode could not carry a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        x = record.x.to(device)
        current = _one_per_row(embedding.detach().clone().to(device), len(x))
        for index, (sigma, sigma_next) in enumerate(pairwise(record.falling)):
            problem = _StepProblem(
                source, unconditional, x, path[total - 1 - index].to(device), sigma, sigma_next, float(cfg)
            )
            if index < len(known):
                current = known[index].to(device, current.dtype)
                result = problem.recall(current)
            else:
                rate = learning_rate * max(1.0 - index / DECAY_STEPS, LOWEST_DECAY)
                result = problem.fit(current, rate, inner_steps, stop + index * stop_growth)
            x, current = result.x, result.embedding
            found.append(current.to("cpu", torch.promote_types(current.dtype, torch.float32)))
            if on_step is not None:
                with torch.no_grad():
                    on_step(
                        FitReport(
                            index,
                            total,
                            sigma,
                            sigma_next,
                            x,
                            result.denoised,
                            tuple(result.first_loss.tolist()),
                            tuple(result.loss.tolist()),
                            result.inner_steps,
                            tuple(found),
                        )
                    )
    remarks: dict[str, Scalar] = {
        "null_text_evaluations": source.evaluations + unconditional.evaluations - called,
        "null_text_seconds": time.perf_counter() - started,
    }
    return with_embeddings(record, found, cfg, remarks)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Outcome of one step: state, prediction, embedding, and the losses of the rows before and after."""

    x: Tensor
    denoised: Tensor
    embedding: Tensor
    first_loss: Tensor
    loss: Tensor
    inner_steps: int


class _StepProblem:
    """One step down whose end is to meet the path; the conditional prediction is asked for once."""

    def __init__(
        self,
        source: Denoiser,
        unconditional: Denoiser,
        x: Tensor,
        wanted: Tensor,
        sigma: float,
        sigma_next: float,
        cfg: float,
    ) -> None:
        self._unconditional = unconditional
        self._x, self._wanted = x, wanted
        self._sigma, self._sigma_next, self._cfg = sigma, sigma_next, cfg
        self._scale = 1.0 / math.sqrt(1.0 + sigma_next**2) if source.space == "ve" else 1.0
        self._floor = source.sigma_floor
        with torch.no_grad():
            self._conditional = source(x, sigma)

    def step(self, embedding: Tensor) -> Step:
        """The guided Euler step under an embedding."""
        unguided = self._unconditional.with_embedding(embedding)

        def guided(x: Tensor, sigma: float) -> Tensor:
            answer = unguided(x, sigma)
            return answer + self._cfg * (self._conditional - answer)

        return Euler()(Denoiser(guided, unguided.space, self._floor), self._x, self._sigma, self._sigma_next)

    def losses(self, step: Step) -> Tensor:
        """Mean squared distance of every row from the path, in variance-preserving units."""
        rows = (self._scale * (step.x - self._wanted)).square().flatten(1).mean(1)
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(
                f"The loss must stay finite, got {rows.tolist()} at sigma {self._sigma:.5g}; "
                "lower the learning rate, or run the network in float32 or bfloat16."
            )
        return rows

    @torch.no_grad()
    def recall(self, embedding: Tensor) -> _Fitted:
        """The step under an embedding that is there already."""
        step = self.step(embedding)
        loss = self.losses(step)
        return _Fitted(step.x, step.denoised, embedding, loss, loss, 0)

    def fit(self, embedding: Tensor, rate: float, most: int, threshold: float) -> _Fitted:
        """Adam from an embedding, until every row's loss was below the threshold; the best of each row is kept."""
        best = first = None
        adam = Adam(rate)
        open_rows = torch.ones(len(self._x), dtype=torch.bool, device=embedding.device)
        while adam.made < most and bool(open_rows.any()):
            leaf = embedding.detach().requires_grad_(True)
            step = self.step(leaf)
            rows = self.losses(step)
            gradient = self._gradient(rows, leaf)
            with torch.no_grad():
                best = _better(best, step, leaf, rows)
                first = rows if first is None else first
                # As published: the row that has met its threshold makes this last update.
                embedding = torch.where(beside(open_rows, embedding), adam.step(leaf, gradient), leaf).detach()
                open_rows = open_rows & (rows.to(open_rows.device) >= threshold)
        with torch.no_grad():
            step = self.step(embedding)
            rows = self.losses(step)
            x, denoised, kept, loss = _better(best, step, embedding, rows)
        return _Fitted(x, denoised, kept, rows if first is None else first.detach(), loss, adam.made)

    def _gradient(self, rows: Tensor, leaf: Tensor) -> Tensor:
        if not rows.requires_grad:
            raise ValueError(
                "The model must let gradients reach its unconditional embedding, got an answer without any; "
                "use a model that is guided by a negative prompt."
            )
        # The loss is a mean over many entries, so its gradient at one of them lies below what float16 can hold. It
        # is sent through the network as if the error there were of size 1, and scaled back after.
        scale = self._wanted[0].numel() / rows.detach().sqrt().clamp_min(EPSILON)
        (gradient,) = torch.autograd.grad((rows * scale).sum(), leaf, allow_unused=True)
        if gradient is None or not bool(torch.isfinite(gradient).all()):
            got = "none" if gradient is None else "inf or nan"
            raise ValueError(
                f"The gradient at the unconditional embedding must be finite, got {got}; "
                "use a model that is guided by a negative prompt, in float32 or bfloat16."
            )
        return gradient / beside(scale, gradient).to(gradient.dtype)


_Best = tuple[Tensor, Tensor, Tensor, Tensor]


def _better(best: _Best | None, step: Step, embedding: Tensor, rows: Tensor) -> _Best:
    """The best of every row so far: state, prediction, embedding, loss."""
    now = (step.x.detach(), step.denoised.detach(), embedding.detach(), rows.detach())
    if best is None:
        return now
    ahead = now[3] < best[3]
    x, denoised, kept, loss = (torch.where(beside(ahead, new), new, old) for new, old in zip(now, best, strict=True))
    return x, denoised, kept, loss


def _one_per_row(embedding: Tensor, rows: int) -> Tensor:
    if not embedding.is_floating_point() or embedding.ndim < 2 or len(embedding) not in (1, rows):
        raise ValueError(
            f"embedding must be floating-point with 1 or {rows} rows, got {embedding.dtype} of shape "
            f"{tuple(embedding.shape)}; give the embedding of one empty prompt."
        )
    wide = torch.promote_types(embedding.dtype, torch.float32)
    return embedding.to(wide).expand(rows, *embedding.shape[1:]).clone()


def by_euler(inversion: Inversion) -> Inversion:
    """The record, to come down by Euler steps: as it is where its method does so, else under the name "euler".

    Raises:
        MisfitError: If its method keeps more than one latent.
    """
    method = own_method(inversion)
    if not isinstance(method, SingleState):
        raise MisfitError(
            f"inversion must come from a method that keeps one latent, got {method.name}; "
            "invert with ddim, euler, fixed_point or midpoint, or replay this record as it is."
        )
    return inversion if type(method.down()) is Euler else adopt(inversion, "euler")


def _check_settings(cfg: float, inner_steps: int, learning_rate: float, stop: float, stop_growth: float) -> None:
    if not math.isfinite(cfg) or cfg == 1.0:
        raise ValueError(f"cfg must be finite and not 1, where no embedding acts, got {cfg:g}; the usual one is {CFG}.")
    if type(inner_steps) is not int or inner_steps < 0:
        raise ValueError(f"inner_steps must be a whole number, 0 or more, got {inner_steps!r}; the usual one is 10.")
    for name, value, usual in (
        ("learning_rate", learning_rate, LEARNING_RATE),
        ("stop", stop, STOP),
        ("stop_growth", stop_growth, STOP_GROWTH),
    ):
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"{name} must be finite and not negative, got {value!r}; the usual one is {usual:g}.")
