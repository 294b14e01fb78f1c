"""Samplers of the pack: they start from a stored tensor, never from the host's noise_scaling.

The stock KSAMPLER multiplies the latent by the levels' weights on entry and divides on exit, in float32; at flow
sigma 1 that is 0 and infinity. A plain Sampler is called with everything in place and left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, Generic, TypeVar

import comfy.samplers
import torch

from ...core.walk import walk
from ...inversion import AfterStep, Denoiser, Inversion, SingleState, Stepper, implied_noise, replay, work_dtype
from ...inversion.api import check_fit, own_method
from ...inversion.registry import get_method
from ..host.checks import check_state_fits, refuse_skipping
from ..host.denoiser import Callback, denoiser_of, reporter
from ..host.fingerprint import fingerprint_model
from ..host.gradients import differentiable_run
from ..host.misfits import explained
from ..host.parametrisation import PURE_NOISE, space_of
from ..host.schedule import FLIPPED_ZERO, without_repeats

Result = TypeVar("Result")
Run = Callable[[Denoiser, torch.device, Callable[..., None]], Result]
# From the levels of a walk to what follows each of its steps.
Blends = Callable[[Sequence[float]], AfterStep]

# SIGMAS are float32: two of them that mean one level differ by less than this.
_SIGMA_TOLERANCE = 1e-5


class ScriptedSampler(comfy.samplers.Sampler, Generic[Result]):
    """Runs a function on the denoiser of a guider; what it returns leaves by ``result``, in full precision.

    The host maps and rounds what ``sample`` returns, so that is only a finite stand-in.
    """

    def __init__(self, run: Run[Result], gradients: bool = False) -> None:
        """Set the script.

        Args:
            run: Called once with (denoiser, device, on_step).
            gradients: Whether gradients are to pass through the denoiser.
        """
        self._run = run
        self._gradients = gradients
        self.result: Result | None = None

    def sample(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Run the script; called by the host."""
        model_sampling = guider.inner_model.model_sampling
        with differentiable_run(guider, extra_args) if self._gradients else nullcontext(extra_args) as arguments:
            denoiser = denoiser_of(guider, model_sampling, arguments, work_dtype(noise.device), guider)
            self.result = self._run(denoiser, noise.device, reporter(callback))
        return torch.zeros_like(noise)


class SolverSampler(comfy.samplers.Sampler):
    """A solver of the registry as a SAMPLER for rising and falling SIGMAS.

    Falling, it starts as a stock sampler does. Rising, the latent is the clean end and noise is ignored. The latent
    that comes out follows the host's convention (x for ve, x / (1 - sigma) for flow), except at flow sigma 1, where
    no such latent exists: there x itself comes out, and a falling run from sigma 1 without noise takes it as x.
    """

    def __init__(self, solver: str, blends: Blends | None = None) -> None:
        """Choose the solver.

        Args:
            solver: Name of a method of the registry whose whole state is one latent.
            blends: What follows each step of a walk, or None.
        """
        self._solver = get_method(solver)
        self._blends = blends

    def sample(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Walk the SIGMAS; called by the host."""
        refuse_skipping(guider.model_patcher)
        levels = _walkable(sigmas)
        dtype = work_dtype(noise.device)
        rising = levels[-1] > levels[0]
        clean = torch.zeros_like(noise) if latent_image is None else latent_image
        model_sampling = guider.inner_model.model_sampling
        model, arguments = guider, extra_args
        # Rising, a mask would show the network the clean latent at every level, so it is dropped.
        if denoise_mask is not None and not rising:
            if not bool(torch.count_nonzero(noise) > 0):
                raise ValueError(
                    "noise must come with a noise_mask, got DisableNoise; "
                    "connect the NOISE of Invert, or use Resample with its mask."
                )
            model, arguments = _inside_mask(guider, sigmas, clean, noise, denoise_mask, extra_args)
        denoiser = denoiser_of(model, model_sampling, arguments, dtype)
        from_pure_noise = not rising and self.max_denoise(guider, sigmas)
        start = _entry(model_sampling, levels[0], clean.to(dtype), None if rising else noise.to(dtype), from_pure_noise)
        stepper = self._solver.up() if rising else self._solver.down()
        after = self._blends and self._blends(levels)
        if model is not guider:
            mask = _last_mask(guider, sigmas, arguments, denoiser)
            after = _keeping(mask, start, clean.to(dtype), denoiser, levels, self._solver.down(), after)
        with explained(guider, noise.shape[1]):
            x = walk(denoiser, start, levels, stepper, reporter(callback), after)
        if denoiser.space == "flow" and levels[-1] > PURE_NOISE:
            return x
        return model_sampling.inverse_noise_scaling(torch.tensor(levels[-1], dtype=dtype, device=x.device), x)


class ResumeSampler(comfy.samplers.Sampler):
    """Plays a record back from its stored state under any guider.

    With the record's own solver the walk is the record's, in float64; with a stock sampler it is that sampler's, in
    float32, from the stored state rounded once. The noise that the host hands over is ignored. A noise_mask keeps
    the latent outside it, re-noised with the noise that the record implies.
    """

    def __init__(self, record: Inversion, stock: str | None = None, blends: Blends | None = None) -> None:
        """Choose how to come down.

        Args:
            record: The record.
            stock: Name of a stock sampler of the host; None for the record's own solver.
            blends: What follows each step, or None; only with the record's own solver.

        Raises:
            ValueError: If a stock sampler is to blend.
        """
        if stock is not None and blends is not None:
            raise ValueError(
                f"sampler_name must be that of the inversion for a plan with a local blend, got {stock}; "
                "choose the first entry of the list."
            )
        self._record = record
        self._stock = stock
        self._blends = blends

    def sample(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Walk the SIGMAS down; called by the host."""
        record = self._record
        refuse_skipping(guider.model_patcher)
        check_state_fits(record, noise.shape)
        levels = [float(value) for value in sigmas.detach().cpu()]
        self._check_start(levels)
        dtype = work_dtype(noise.device)
        if record.embeddings and self._stock is not None:
            raise ValueError(
                f"sampler_name must be that of the inversion for one with fitted embeddings, got {self._stock}; "
                "choose the first entry of the list."
            )
        model_sampling = guider.inner_model.model_sampling
        model, arguments = guider, extra_args
        state = record.x.to(dtype).to(noise.device)
        clean = None
        if denoise_mask is not None:
            self._check_maskable()
            clean = record.x0.to(dtype).to(noise.device) if latent_image is None else latent_image
            implied = implied_noise(state, clean.to(dtype), record.sigma, record.space).to(noise.dtype)
            model, arguments = _inside_mask(guider, sigmas, clean, implied, denoise_mask, extra_args)
        denoiser = denoiser_of(model, model_sampling, arguments, dtype, guider)
        check_fit(record, denoiser, fingerprints={"model": fingerprint_model(guider.model_patcher)})
        with explained(guider, noise.shape[1]):
            if self._stock is None:
                levels = self._levels(levels)
                after = self._blends and self._blends(levels)
                method = own_method(record)
                if clean is not None and isinstance(method, SingleState):
                    mask = _last_mask(guider, sigmas, arguments, denoiser)
                    after = _keeping(mask, state, clean.to(dtype), denoiser, levels, method.down(), after)
                x = self._own(denoiser, levels, state, after, callback)
            else:
                x = self._by_stock(guider, sigmas, state.to(noise.dtype), model, arguments, callback, disable_pbar)
        return model_sampling.inverse_noise_scaling(torch.tensor(levels[-1], dtype=x.dtype, device=x.device), x)

    def _check_start(self, levels: list[float]) -> None:
        start = self._record.sigma
        if abs(levels[0] - start) > _SIGMA_TOLERANCE * max(1.0, start):
            raise ValueError(
                f"sigmas must start at the record's level {start:.6g}, got {levels[0]:.6g}; "
                "connect the SIGMAS output of Invert."
            )
        if len(levels) < 2 or any(not after < before for before, after in pairwise(levels)):
            raise ValueError(
                f"sigmas must fall, got {levels[0]:.6g} to {levels[-1]:.6g}; connect the SIGMAS output of Invert."
            )

    def _check_maskable(self) -> None:
        method = own_method(self._record)
        if self._stock is None and not isinstance(method, SingleState):
            raise ValueError(
                f"latent must come without a noise_mask for the solver of {method.name}, which carries more than a "
                "latent, got one; choose a stock sampler as sampler_name, or edit with Resample and its mask."
            )

    def _levels(self, levels: list[float]) -> list[float]:
        """The levels of the record where those given mean them, else those given from the record's own start."""
        record = self._record
        falling = record.falling
        same = len(levels) == len(falling) and all(
            abs(now - then) <= _SIGMA_TOLERANCE * max(1.0, then) for now, then in zip(levels, falling, strict=True)
        )
        return list(falling) if same else [record.sigma, *levels[1:]]

    def _own(
        self,
        denoiser: Denoiser,
        levels: list[float],
        state: torch.Tensor,
        after: AfterStep | None,
        callback: Callback | None,
    ) -> torch.Tensor:
        record = self._record
        if levels == list(record.falling):
            fitted = record.to_precision(state.dtype)
            return replay(fitted, denoiser, denoiser, after_step=after, on_step=reporter(callback), device=state.device)
        method = own_method(record)
        if not isinstance(method, SingleState) or record.embeddings:
            raise ValueError(
                f"sigmas must be the record's own for method {method.name}, got another grid; "
                "connect the SIGMAS output of Invert."
            )
        # Another grid from the same start: the state is all that such a method carries.
        return walk(denoiser, state, levels, method.down(), reporter(callback), after)

    def _by_stock(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        state: torch.Tensor,
        model: Any,
        arguments: dict[str, Any],
        callback: Callback | None,
        disable_pbar: bool,
    ) -> torch.Tensor:
        inner = comfy.samplers.sampler_object(self._stock)
        total = len(sigmas) - 1

        def told(step: dict[str, Any]) -> None:
            if callback is not None:
                callback(step["i"], step["denoised"], step["x"], total)

        if "denoise_mask" not in arguments:
            model, arguments = _inside_mask(guider, sigmas, None, None, None, arguments)
        return inner.sampler_function(
            model, state, sigmas, extra_args=arguments, callback=told, disable=disable_pbar, **inner.extra_options
        )


def _walkable(sigmas: torch.Tensor) -> list[float]:
    levels = without_repeats([float(value) for value in sigmas.detach().cpu()])
    if levels and levels[-1] > levels[0] and 0.0 < levels[0] <= FLIPPED_ZERO:
        levels[0] = 0.0
    return levels


def _entry(
    model_sampling: Any, sigma: float, clean: torch.Tensor, noise: torch.Tensor | None, from_pure_noise: bool
) -> torch.Tensor:
    """Return the state at the first level of a walk, from what the host hands over; noise None when rising."""
    if noise is None or not bool(torch.count_nonzero(noise) > 0):
        if space_of(model_sampling) == "flow" and sigma > PURE_NOISE:
            return clean
        noise = torch.zeros_like(clean)
    level = torch.tensor(sigma, dtype=clean.dtype, device=clean.device)
    return model_sampling.noise_scaling(level, noise, clean, from_pure_noise)


def _inside_mask(
    guider: Any,
    sigmas: torch.Tensor,
    clean: torch.Tensor | None,
    noise: torch.Tensor | None,
    mask: torch.Tensor | None,
    extra_args: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Wrap the model in the host's own inpainting, which keeps the re-noised latent outside the mask."""
    model = comfy.samplers.KSamplerX0Inpaint(guider, sigmas)
    model.latent_image, model.noise = clean, noise
    return model, {**extra_args, "denoise_mask": mask}


def _last_mask(guider: Any, sigmas: torch.Tensor, arguments: dict[str, Any], denoiser: Denoiser) -> torch.Tensor:
    """Return the denoise mask of the last evaluation, which a patch of the model may let depend on the level."""
    mask: torch.Tensor = arguments["denoise_mask"]
    change = arguments.get("model_options", {}).get("denoise_mask_function")
    if change is None:
        return mask
    rows = mask.new_full((mask.shape[0],), max(float(sigmas[-1]), denoiser.sigma_floor))
    changed: torch.Tensor = change(rows, mask, extra_options={"model": guider, "sigmas": sigmas})
    return changed


def _keeping(
    mask: torch.Tensor,
    start: torch.Tensor,
    clean: torch.Tensor,
    denoiser: Denoiser,
    levels: Sequence[float],
    stepper: Stepper,
    then: AfterStep | None,
) -> AfterStep:
    """Return what follows the steps of a walk under a denoise mask, for the kept part to end where it belongs.

    Under the mask m the model answers m D + (1 - m) clean, so a walk is m times one of its own and 1 - m times one
    along the straight line from start to clean. A solver that asks below the floor of the denoiser ends off that line:
    half a step of midpoint from the lowest level leaves half of its noise. Solvers are linear in the derivative, so
    the walk of a single number tells how far off.

    Args:
        mask: 1 where the model acts, broadcastable to the states.
        start: First state of the walk.
        clean: What is kept.
        denoiser: The denoiser of the walk.
        levels: Its levels.
        stepper: A fresh stepper of its solver.
        then: What follows the steps after that, or None.
    """
    straight = Denoiser(lambda one, sigma: torch.zeros_like(one), denoiser.space, denoiser.sigma_floor)
    left = float(walk(straight, torch.ones(1, 1, 1, 1, dtype=torch.float64), levels, stepper))
    off = levels[-1] / levels[0] - left

    def hook(x: torch.Tensor, level: int) -> torch.Tensor:
        if level == 0:
            x = x + (1.0 - mask.to(x)) * (off * (start - clean))
        return x if then is None else then(x, level)

    return hook
