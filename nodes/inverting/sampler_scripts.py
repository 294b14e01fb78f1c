"""What the SAMPLERs of this room run: a solver over any SIGMAS, and an inversion resumed from its stored state.

Both start from a stored tensor, never from the host's noise_scaling, and both obey a noise_mask: outside it the host's
inpainting shows the network the kept latent, re-noised, at every sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import comfy.samplers
import torch

from ...core import Denoiser, implied_noise
from ...core.steps import Stepper
from ...core.walk import AfterStep, walk
from ...inversion import Inversion, SingleState, get_method, own_method, replay
from ...inversion.api import check_fit
from ..host.checks import check_state_fits, refuse_skipping
from ..host.fingerprint import fingerprint_model
from ..host.parametrisation import PURE_NOISE, noise_scale, reads_preserved, space_of
from ..host.schedule import FLIPPED_ZERO, without_repeats
from ..host.session import Session

Script = Callable[[Session], torch.Tensor]
# From the sigmas of a walk to what follows each of its steps.
Blends = Callable[[Sequence[float]], AfterStep | None]

# SIGMAS are float32: two of them that mean one sigma differ by less than this.
SIGMA_TOLERANCE = 1e-5


def solver_script(solver: str, blends: Blends | None = None) -> Script:
    """Return a solver of the registry for rising and falling SIGMAS.

    Falling, it starts as a stock sampler does. Rising, the latent is the clean end and noise is ignored. The latent
    that comes out follows the host's convention (x for ve, x / (1 - sigma) for flow), except at flow sigma 1, where
    no such latent exists: there x itself comes out, and a falling run from sigma 1 without noise takes it as x.

    Args:
        solver: Name of a method whose whole state is one latent.
        blends: What follows each step of a walk, or None.
    """
    method = get_method(solver)
    assert isinstance(method, SingleState)

    def script(session: Session) -> torch.Tensor:
        refuse_skipping(session.guider.model_patcher)
        noise, sampling, dtype = session.noise, session.model_sampling, session.dtype
        sigmas = _walkable(session.sigmas)
        rising = sigmas[-1] > sigmas[0]
        clean = torch.zeros_like(noise) if session.latent_image is None else session.latent_image
        # Rising, a mask would show the network the clean latent at every sigma, so it is dropped.
        masked = session.denoise_mask is not None and not rising
        if masked and not bool(torch.count_nonzero(noise) > 0):
            raise ValueError(
                "noise must come with a noise_mask, got DisableNoise; "
                "connect the NOISE of Invert, or use Resample with its mask."
            )
        asked = _inside_mask(session, clean, noise) if masked else session
        denoiser = asked.denoiser()
        from_pure_noise = not rising and comfy.samplers.Sampler().max_denoise(session.guider, session.sigmas)
        start = _entry(sampling, sigmas[0], clean.to(dtype), None if rising else noise.to(dtype), from_pure_noise)
        after = blends and blends(sigmas)
        if masked:
            mask = _last_mask(asked, denoiser)
            after = _keeping(mask, start, clean.to(dtype), denoiser, sigmas, method.down(), after)
        x = walk(denoiser, start, sigmas, method.up() if rising else method.down(), session.tell, after)
        return x if denoiser.space == "flow" and sigmas[-1] > PURE_NOISE else _leaving(sampling, sigmas[-1], x)

    return script


def resume_script(inversion: Inversion, stock: str | None = None, blends: Blends | None = None) -> Script:
    """Return an inversion played back from its stored state under any guider.

    With its own solver the walk is the inversion's, in float64; with a stock sampler it is that sampler's, in
    float32, from the stored state rounded once. The noise that the host hands over is ignored. A noise_mask keeps
    the latent outside it, re-noised with the noise that the inversion implies.

    Args:
        inversion: The inversion.
        stock: Name of a stock sampler of the host; None for the inversion's own solver.
        blends: What follows each step, or None; only with the inversion's own solver.

    Raises:
        ValueError: If a stock sampler is to blend. The script, if something does not fit the inversion.
    """
    if stock is not None and blends is not None:
        raise ValueError(
            f"sampler_name must be that of the inversion for a plan with a local blend, got {stock}; "
            "choose the first entry of the list."
        )
    method = own_method(inversion)

    def script(session: Session) -> torch.Tensor:
        patcher, dtype = session.guider.model_patcher, session.dtype
        refuse_skipping(patcher)
        check_state_fits(inversion, session.noise.shape)
        sigmas = [float(value) for value in session.sigmas.detach().cpu()]
        _check_start(inversion, sigmas)
        if inversion.embeddings and stock is not None:
            raise ValueError(
                f"sampler_name must be that of the inversion for one with fitted embeddings, got {stock}; "
                "choose the first entry of the list."
            )
        state = inversion.x.to(dtype).to(session.device)
        asked, clean = session, None
        if session.denoise_mask is not None:
            if stock is None and not isinstance(method, SingleState):
                raise ValueError(
                    f"latent must come without a noise_mask for the solver of {method.name}, which carries more than "
                    "a latent, got one; choose a stock sampler as sampler_name, or edit with Resample and its mask."
                )
            latent = session.latent_image
            clean = inversion.x0.to(dtype).to(session.device) if latent is None else latent
            # Of unit size, as the host mixes it.
            implied = implied_noise(state, clean.to(dtype), inversion.sigma, inversion.space)
            implied = implied / noise_scale(session.model_sampling)
            asked = _inside_mask(session, clean, implied.to(session.noise.dtype))
        denoiser = asked.denoiser()
        check_fit(inversion, denoiser, fingerprints={"model": fingerprint_model(patcher)})
        if stock is not None:
            if reads_preserved(session.model_sampling):
                raise ValueError(
                    "sampler_name must be that of the inversion for a model that reads states of variance 1, "
                    f"got {stock}; choose the first entry of the list."
                )
            x = _by_stock(asked, stock, state.to(session.noise.dtype))
            return _leaving(session.model_sampling, sigmas[-1], x)
        sigmas = _own_sigmas(inversion, sigmas)
        after = blends and blends(sigmas)
        if clean is not None and isinstance(method, SingleState):
            mask = _last_mask(asked, denoiser)
            after = _keeping(mask, state, clean.to(dtype), denoiser, sigmas, method.down(), after)
        if sigmas == list(inversion.falling):
            own = inversion.to_precision(dtype)
            x = replay(own, denoiser, denoiser, after_step=after, on_step=session.tell, device=session.device)
        elif isinstance(method, SingleState) and not inversion.embeddings:
            # Other sigmas from the same start: the state is all that such a method carries.
            x = walk(denoiser, state, sigmas, method.down(), session.tell, after)
        else:
            raise ValueError(
                f"sigmas must be the inversion's own for method {method.name}, got others; "
                "connect the SIGMAS output of Invert."
            )
        return _leaving(session.model_sampling, sigmas[-1], x)

    return script


def _keeping(
    mask: torch.Tensor,
    start: torch.Tensor,
    clean: torch.Tensor,
    denoiser: Denoiser,
    sigmas: Sequence[float],
    stepper: Stepper,
    then: AfterStep | None,
) -> AfterStep:
    """Return what follows the steps of a walk under a denoise mask, for the kept part to end where it belongs.

    Under the mask m the model answers m D + (1 - m) clean, so a walk is m times one of its own and 1 - m times one
    along the straight line from start to clean. A solver that asks below the floor of the denoiser ends off that line:
    half a step of midpoint from the lowest sigma leaves half of its noise. Solvers are linear in the derivative, so
    the walk of a single number tells how far off.

    Args:
        mask: 1 where the model acts, broadcastable to the states.
        start: First state of the walk.
        clean: What is kept.
        denoiser: The denoiser of the walk.
        sigmas: Its sigmas.
        stepper: A fresh stepper of its solver.
        then: What follows the steps after that, or None.
    """
    straight = Denoiser(lambda one, sigma: torch.zeros_like(one), denoiser.space, denoiser.sigma_floor)
    left = float(walk(straight, torch.ones(1, 1, 1, 1, dtype=torch.float64), sigmas, stepper))
    off = sigmas[-1] / sigmas[0] - left

    def hook(x: torch.Tensor, index: int) -> torch.Tensor:
        if index == 0:
            x = x + (1.0 - mask.to(x)) * (off * (start - clean))
        return x if then is None else then(x, index)

    return hook


def _inside_mask(session: Session, clean: torch.Tensor | None, noise: torch.Tensor | None) -> Session:
    """Wrap the model in the host's own inpainting, which keeps the re-noised latent outside the mask."""
    model = comfy.samplers.KSamplerX0Inpaint(session.guider, session.sigmas)
    model.latent_image, model.noise = clean, noise
    mask = None if clean is None else session.denoise_mask
    return replace(session, model=model, extra_args={**session.extra_args, "denoise_mask": mask})


def _by_stock(session: Session, stock: str, state: torch.Tensor) -> torch.Tensor:
    """Let a stock sampler of the host walk down from a state."""
    sampler = comfy.samplers.sampler_object(stock)
    asked = _inside_mask(session, None, None) if session.model is None else session
    total = len(session.sigmas) - 1

    def told(step: dict[str, Any]) -> None:
        if session.callback is not None:
            session.callback(step["i"], step["denoised"], step["x"], total)

    walked: torch.Tensor = sampler.sampler_function(
        asked.model,
        state,
        session.sigmas,
        extra_args=asked.extra_args,
        callback=told,
        disable=session.disable_pbar,
        **sampler.extra_options,
    )
    return walked


def _leaving(model_sampling: Any, sigma: float, x: torch.Tensor) -> torch.Tensor:
    """The latent of a state by the host's convention."""
    latent: torch.Tensor = model_sampling.inverse_noise_scaling(torch.tensor(sigma, dtype=x.dtype, device=x.device), x)
    return latent


def _walkable(sigmas: torch.Tensor) -> list[float]:
    values = without_repeats([float(value) for value in sigmas.detach().cpu()])
    if values and values[-1] > values[0] and 0.0 < values[0] <= FLIPPED_ZERO:
        values[0] = 0.0
    return values


def _entry(
    model_sampling: Any, sigma: float, clean: torch.Tensor, noise: torch.Tensor | None, from_pure_noise: bool
) -> torch.Tensor:
    """Return the state at the first sigma of a walk, from what the host hands over; noise None when rising."""
    if noise is None or not bool(torch.count_nonzero(noise) > 0):
        if space_of(model_sampling) == "flow" and sigma > PURE_NOISE:
            return clean
        noise = torch.zeros_like(clean)
    first = torch.tensor(sigma, dtype=clean.dtype, device=clean.device)
    state: torch.Tensor = model_sampling.noise_scaling(first, noise, clean, from_pure_noise)
    return state


def _last_mask(session: Session, denoiser: Denoiser) -> torch.Tensor:
    """Return the denoise mask of the last evaluation, which a patch of the model may let depend on sigma."""
    mask = session.denoise_mask
    assert mask is not None
    change = session.extra_args.get("model_options", {}).get("denoise_mask_function")
    if change is None:
        return mask
    rows = mask.new_full((mask.shape[0],), max(float(session.sigmas[-1]), denoiser.sigma_floor))
    changed: torch.Tensor = change(rows, mask, extra_options={"model": session.guider, "sigmas": session.sigmas})
    return changed


def _check_start(inversion: Inversion, sigmas: list[float]) -> None:
    start = inversion.sigma
    if abs(sigmas[0] - start) > SIGMA_TOLERANCE * max(1.0, start):
        raise ValueError(
            f"sigmas must start at the inversion's sigma {start:.6g}, got {sigmas[0]:.6g}; "
            "connect the SIGMAS output of Invert."
        )
    if len(sigmas) < 2 or any(not after < before for before, after in pairwise(sigmas)):
        raise ValueError(
            f"sigmas must fall, got {sigmas[0]:.6g} to {sigmas[-1]:.6g}; connect the SIGMAS output of Invert."
        )


def _own_sigmas(inversion: Inversion, sigmas: list[float]) -> list[float]:
    """The sigmas of the inversion where those given mean them, else those given from the inversion's own start."""
    falling = inversion.falling
    same = len(sigmas) == len(falling) and all(
        abs(now - then) <= SIGMA_TOLERANCE * max(1.0, then) for now, then in zip(sigmas, falling, strict=True)
    )
    return list(falling) if same else [inversion.sigma, *sigmas[1:]]
