"""Into the noise and back: invert a latent, replay the inversion."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.denoiser import Denoiser, work_dtype
from ..core.grid import check_index, check_sigmas
from ..core.settings import Scalar
from ..core.walk import AfterStep, OnStep
from .fingerprint import fingerprint
from .inversion import DTYPES, AnyInversion, Inversion, check_axes, keep
from .method import Method, SingleState
from .registry import get_method


class MisfitError(ValueError):
    """An inversion and what it is to be replayed with do not belong together."""


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    x0: Tensor,
    sigmas: Sequence[float],
    index: int,
    method: Method | str,
    keep_path: bool = False,
    on_step: OnStep | None = None,
    dtype: torch.dtype | None = None,
) -> Inversion:
    """Take a clean latent into the model's noise.

    Args:
        denoiser: The model under the source conditioning.
        x0: Clean latent (B, C, [T,] H, W), any floating dtype; the work is done on its device. Left untouched.
        sigmas: Ascending noise levels, N + 1 of them, the first that of x0 (usually 0).
        index: Index k to stop at, 1 .. N.
        method: A method, or the name of one with its defaults.
        keep_path: Whether to keep every state on the way, k + 1 latents.
        on_step: Told after every step; whatever it raises ends the inversion.
        dtype: Precision of the states, float32 or float64; None takes the best that the device has.

    Returns:
        The inversion, on the CPU; `marked` adds what the caller knows of the model and the conditioning.

    Raises:
        ValueError: If an argument is out of range, or the inversion leaves the finite numbers.
        TypeError: If an argument has the wrong type.
    """
    scheme = get_method(method) if isinstance(method, str) else method
    grid = check_sigmas(sigmas, denoiser.space)
    check_index(index, grid, scheme.min_index)
    check_axes(x0)
    if not x0.is_floating_point():
        raise TypeError(f"x0 must be a floating-point latent, got {x0.dtype}; encode the picture first.")
    precision = work_dtype(x0.device) if dtype is None else dtype
    if precision not in DTYPES:
        raise ValueError(f"dtype of the states must be float32 or float64, got {precision}; leave it out.")
    clean = x0.detach().to(precision)
    called, started = denoiser.evaluations, time.perf_counter()
    state = scheme.invert(denoiser, clean, grid, index, keep_path, on_step)
    remarks: dict[str, Scalar] = {
        **state.remarks,
        "evaluations": denoiser.evaluations - called,
        "seconds": time.perf_counter() - started,
    }
    return Inversion(
        space=denoiser.space,
        sigmas=grid,
        index=index,
        x0=keep(clean),
        x=keep(state.x),
        mate=None if state.mate is None else keep(state.mate),
        path=_keep_all(state.path),
        residuals=_keep_all(state.residuals),
        embeddings=_keep_all(state.embeddings),
        seed=state.seed,
        method=scheme.name,
        params=scheme.params,
        fingerprints={"solver": solver_fingerprint(scheme)},
        meta=remarks,
    )


@torch.no_grad()
def replay(
    inversion: Inversion,
    source: Denoiser,
    target: Denoiser | None = None,
    after_step: AfterStep | None = None,
    on_step: OnStep | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Come back from an inversion's noise: reconstruct the source, or sample towards a target.

    Args:
        inversion: The inversion; left untouched.
        source: The model under the source conditioning.
        target: The model under the target conditioning; None reconstructs.
        after_step: Maps each new state and its index in the grid to the one to go on from, such as a mask's blend.
        on_step: Told after every step; whatever it raises ends the replay.
        device: Where to compute.

    Returns:
        Latent at sigmas[0], shape and dtype of the inversion's, on the device.

    Raises:
        MisfitError: If a model is of another space, or the inversion's method is not of this version.
    """
    scheme = own_method(inversion)
    check_fit(inversion, source, target)
    return scheme.replay(inversion, source, target, after_step, on_step, device)


def check_fit(
    inversion: Inversion,
    source: Denoiser,
    target: Denoiser | None = None,
    *,
    fingerprints: Mapping[str, str] | None = None,
) -> None:
    """Refuse to play an inversion back with what it does not belong to, before any work is done.

    Args:
        inversion: The inversion.
        source: The model under the source conditioning.
        target: The model under the target conditioning; None reconstructs.
        fingerprints: Hashes of what is at hand now. Those that the inversion has too must agree; "source" is
            compared only for a reconstruction.

    Raises:
        MisfitError: If the inversion does not fit.
    """
    for role, denoiser in (("source", source), ("target", target)):
        if denoiser is not None and denoiser.space != inversion.space:
            raise MisfitError(
                f"The {role} model must be of the inversion's space {inversion.space!r}, got {denoiser.space!r}; "
                "load the kind of model that made the inversion, or invert again."
            )
    for kind, now in (fingerprints or {}).items():
        then = inversion.fingerprints.get(kind)
        if kind == "solver" or then is None or (kind == "source" and target is not None):
            continue
        if now != then:
            what = {"model": "model", "source": "source conditioning"}.get(kind, kind)
            raise MisfitError(
                f"The {what} must be the one that made the inversion ({then[:12]}), got {now[:12]}; "
                f"connect the same {what}, or invert again."
            )


def own_method(inversion: Inversion) -> Method:
    """The method that made an inversion, with its settings.

    Raises:
        MisfitError: If there is no such method, or it has changed since.
    """
    try:
        scheme = get_method(inversion.method, inversion.params)
    except (ValueError, TypeError) as error:
        raise MisfitError(
            f"The inversion must name a method of this version with its settings, got: {error}"
        ) from error
    then = inversion.fingerprints.get("solver")
    # Only the settings that it names: one that joined the method later has its default, which changes nothing.
    named = {name: scheme.params[name] for name in inversion.params}
    if then is not None and then != fingerprint(scheme.name, scheme.revision, named):
        raise MisfitError(
            f"The inversion must come from method {scheme.name} in revision {scheme.revision} with the settings "
            f"it names, got another one ({then[:12]}); invert again."
        )
    return scheme


def adopt(inversion: AnyInversion, method: Method | str) -> AnyInversion:
    """The same state, to be replayed by another solver: less exact, but sometimes what an edit wants.

    Args:
        inversion: Record of a method whose whole state is x_k.
        method: Another method of that kind.

    Returns:
        One that names the other method.

    Raises:
        MisfitError: If either method needs more than x_k, or embeddings were fitted to the inversion's own.
    """
    scheme = get_method(method) if isinstance(method, str) else method
    own = own_method(inversion)
    if inversion.embeddings:
        raise MisfitError(
            f"An inversion with fitted embeddings must be replayed by its own method {own.name}, got {scheme.name}; "
            "leave the method as it is."
        )
    for candidate in (own, scheme):
        if not isinstance(candidate, SingleState):
            raise MisfitError(
                f"A change of method must be between methods that keep one state, got {candidate.name}; "
                "invert again with the method wanted."
            )
    marks = {**inversion.fingerprints, "solver": solver_fingerprint(scheme)}
    return replace(inversion, method=scheme.name, params=scheme.params, fingerprints=marks)


def solver_fingerprint(method: Method) -> str:
    """Hash of a method's name, revision and settings."""
    return fingerprint(method.name, method.revision, method.params)


def _keep_all(tensors: Sequence[Tensor] | None) -> tuple[Tensor, ...] | None:
    return None if tensors is None else tuple(keep(tensor) for tensor in tensors)
