"""An inversion: everything that a replay needs and nothing that it can recompute."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..core.grid import check_index, check_sigmas
from ..core.settings import Scalar
from ..core.space import Space, check_space, implied_noise, mix

# In the meta of an inversion whose x is no longer the state that its source reached.
MOVED = "noise_moved"

DTYPES = (torch.float32, torch.float64)
# What changes an inversion returns one of its class: a host's may know more than this one.
AnyInversion = TypeVar("AnyInversion", bound="Inversion")


@dataclass(frozen=True, eq=False)
class Inversion:
    """A picture or clip taken into a model's noise.

    Attributes:
        space: "ve" or "flow".
        sigmas: Ascending grid of N + 1 noise levels; the first, usually 0, is where x0 stands.
        index: Index k of the state x in the grid, 1 .. N; a replay starts here.
        x0: Clean latent (B, C, [T,] H, W).
        x: State x_k at sigmas[index], shape of x0.
        mate: Second state of pair methods, shape of x0.
        path: States x*_0 .. x*_k, where a method or a mask needs them.
        residuals: What each step of the source missed, one per step, for methods that store it.
        embeddings: Unconditional embeddings of the steps down, noisy end first, where they were fitted.
        seed: Seed of the noise that a method drew.
        method: Name of the method.
        params: Its parameters.
        fingerprints: Hashes that tell whether a replay fits: "model", "source", "solver".
        meta: Remarks for people and reports: versions, seconds, evaluations.

    All latents are float32 or float64, of one dtype, finite, on the CPU.

    Raises:
        ValueError: If a part does not fit the others.
        TypeError: If a part has the wrong type.
    """

    space: Space
    sigmas: tuple[float, ...]
    index: int
    x0: Tensor
    x: Tensor
    mate: Tensor | None = None
    path: tuple[Tensor, ...] | None = None
    residuals: tuple[Tensor, ...] | None = None
    embeddings: tuple[Tensor, ...] | None = None
    seed: int | None = None
    method: str = ""
    params: Mapping[str, Scalar] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_space(self.space)
        object.__setattr__(self, "sigmas", check_sigmas(self.sigmas, self.space))
        check_index(self.index, self.sigmas)
        _check_latent("x0", self.x0, self.x0)
        check_axes(self.x0)
        _check_latent("x", self.x, self.x0)
        if self.mate is not None:
            _check_latent("mate", self.mate, self.x0)
        for name, parts, count in (("path", self.path, self.index + 1), ("residuals", self.residuals, self.index)):
            if parts is None:
                continue
            if len(parts) != count:
                raise ValueError(f"{name} must hold {count} latents for index {self.index}, got {len(parts)}.")
            for part in parts:
                _check_latent(name, part, self.x0)
        for part in self.embeddings or ():
            _check_tensor("embeddings", part)
        if self.seed is not None and type(self.seed) is not int:
            raise TypeError(f"seed must be a whole number, got {self.seed!r}.")
        if not isinstance(self.method, str):
            raise TypeError(f"method must be a name, got {self.method!r}.")
        for name in ("params", "fingerprints", "meta"):
            object.__setattr__(self, name, _check_mapping(name, getattr(self, name), name == "fingerprints"))

    @property
    def steps(self) -> int:
        """Steps N of the grid."""
        return len(self.sigmas) - 1

    @property
    def sigma(self) -> float:
        """Noise level of the state x."""
        return self.sigmas[self.index]

    @property
    def climb(self) -> tuple[float, ...]:
        """Sigmas from the clean end to the state, ascending."""
        return self.sigmas[: self.index + 1]

    @property
    def falling(self) -> tuple[float, ...]:
        """Sigmas from the state to the clean end, for the way down."""
        return self.climb[::-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the latent."""
        return tuple(self.x0.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the states."""
        return self.x0.dtype

    @property
    def reached(self) -> Tensor:
        """The state that the source itself reached: x_k, or the end of its path where x was moved since.

        Raises:
            ValueError: If it was moved (`with_noise`) and there is no path.
        """
        if not self.meta.get(MOVED):
            return self.x
        if self.path is None:
            raise ValueError(
                "inversion must hold its path to tell where its source was before its noise was moved, got none; "
                "set keep_path when you invert, or use the inversion whose noise was not moved."
            )
        return self.path[-1]

    def state_at(self, sigma: float, device: torch.device | str = "cpu") -> Tensor:
        """The source's state at a noise level, for whatever looks at the source while something else is sampled.

        Between two sigmas of a recorded path it is linear in sigma, which is exact for an Euler path. Without a path
        it is x0 mixed with the noise that x_k implies. At both ends it is x0 and x_k themselves; above sigma_k, x_k.
        Where the noise was moved since (`with_noise`), the path still tells where the source was, and x does not.

        Args:
            sigma: Noise level.
            device: Where the state is wanted.

        Returns:
            State of the shape and dtype of x0.

        Raises:
            ValueError: If the noise was moved and there is no path.
        """
        start = self.sigmas[0]
        if sigma <= start:
            return self.x0.to(device)
        reached = self.reached
        if sigma >= self.sigma:
            return reached.to(device)
        if self.path is None:
            noise = implied_noise(self.x, self.x0, self.sigma, self.space, start)
            return mix(self.x0, noise, sigma, self.space, start).to(device)
        above = bisect_left(self.climb, sigma)
        low, high = self.sigmas[above - 1], self.sigmas[above]
        if sigma == high:
            return self.path[above].to(device)
        return torch.lerp(self.path[above - 1].to(device), self.path[above].to(device), (sigma - low) / (high - low))

    def map(self: AnyInversion, change: Callable[[Tensor], Tensor]) -> AnyInversion:
        """The inversion with every latent of it changed: x0, x, mate, path and residuals."""

        def each(latents: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
            return None if latents is None else tuple(change(latent) for latent in latents)

        return replace(
            self,
            x0=change(self.x0),
            x=change(self.x),
            mate=None if self.mate is None else change(self.mate),
            path=each(self.path),
            residuals=each(self.residuals),
        )

    def marked(
        self: AnyInversion, fingerprints: Mapping[str, str] | None = None, meta: Mapping[str, Scalar] | None = None
    ) -> AnyInversion:
        """The inversion with further fingerprints, such as "model" and "source", and remarks; these go first."""
        return replace(
            self,
            fingerprints={**self.fingerprints, **(fingerprints or {})},
            meta={**self.meta, **(meta or {})},
        )

    def to_precision(self: AnyInversion, dtype: torch.dtype) -> AnyInversion:
        """The inversion with latents no finer than a device's work_dtype; itself where they already are."""
        return self if dtype in (self.dtype, torch.float64) else self.map(lambda latent: latent.to(dtype))

    def of_rows(self: AnyInversion, rows: Sequence[int]) -> AnyInversion:
        """The inversion of some of its pictures, by number, in any order and as often as they are named."""
        return self.map(lambda latent: latent[list(rows)])

    def doubled(self: AnyInversion) -> AnyInversion:
        """The inversion with every picture twice, first all of them, then all again: two walks side by side.

        A replay of it whose denoiser answers the first half for the source and the second for a target reconstructs
        the source in lockstep with the edit: the first half starts where the source was, the second at x.

        Raises:
            ValueError: If the noise was moved and there is no path.
        """
        twice = self.map(lambda latent: torch.cat([latent, latent]))
        return replace(twice, x=torch.cat([self.reached, self.x]))


def check_axes(x0: Tensor) -> None:
    """Refuse what is no latent of pictures, clips or sound.

    Raises:
        ValueError: If it has not three to five axes, or nothing in it.
    """
    if x0.ndim not in (3, 4, 5) or x0.numel() == 0:
        raise ValueError(
            f"x0 must be a latent of shape (B, C, H, W), (B, C, T, H, W) or (B, C, T), got {tuple(x0.shape)}; "
            "encode the picture, clip or sound first."
        )


def keep(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of a tensor that an inversion may own: on the CPU, contiguous, detached, with gradients possible later."""
    # Outside inference mode, so that the copy can take part in a backward pass of a later fit.
    with torch.inference_mode(False):
        return tensor.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}.")
    if tensor.device.type != "cpu" or tensor.dtype not in DTYPES:
        raise ValueError(
            f"{name} must be float32 or float64 on the CPU, got {tensor.dtype} on {tensor.device}; convert it first."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name} must be finite, got inf or nan; use more steps, a lower cfg or a lower strength for the inversion."
        )


def _check_latent(name: str, tensor: Tensor, like: Tensor) -> None:
    _check_tensor(name, tensor)
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        raise ValueError(
            f"{name} must have the shape {tuple(like.shape)} and dtype {like.dtype} of x0, "
            f"got {tuple(tensor.shape)} and {tensor.dtype}; invert again."
        )


def _check_mapping(name: str, mapping: Mapping[str, Scalar], only_text: bool) -> dict[str, Scalar]:
    allowed = (str,) if only_text else (str, int, float, bool)
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{name} must map names to values, got {type(mapping).__name__}.")
    for key, value in mapping.items():
        fits = isinstance(key, str) and type(value) in allowed
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            raise TypeError(f"{name} must map names to plain texts and finite numbers, got {key!r}: {value!r}.")
    return dict(mapping)
