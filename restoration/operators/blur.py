"""Blur by a kernel, with reflected or with wrapped edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.settings import link, parameter
from .damage import Damage
from .kernels import gaussian_kernel, motion_kernel, picture_kernel
from .operator import Operator, Shape
from .separable import Separable

EDGES = ("reflect", "circular")
KINDS = ("gaussian", "motion", "kernel")


def reflected(size: int, reach: int) -> Tensor:
    """Indices -reach .. size - 1 + reach of a row that is mirrored at its end pixels, which are not repeated."""
    period = max(1, 2 * (size - 1))
    place = torch.arange(-reach, size + reach) % period
    return torch.where(place < size, place, period - place)


def _check_edges(edges: str) -> None:
    if edges not in EDGES:
        raise ValueError(f"edges must be reflect or circular, got {edges!r}; choose one of these.")


class GaussianBlur(Separable):
    """Blur by a Gaussian of the given standard deviation; the prox is exact for both kinds of edges."""

    def __init__(self, shape: Shape, radius: float, edges: str = "reflect") -> None:
        """Set the blur.

        Args:
            shape: Shape of a sample, ending in (H, W).
            radius: Standard deviation in pixels, positive.
            edges: "reflect" or "circular".

        Raises:
            ValueError: If the radius is not positive or the edges are unknown.
        """
        _check_edges(edges)
        kernel = gaussian_kernel(radius)
        super().__init__(shape, *(_blur_matrix(side, kernel, edges) for side in shape[-2:]))


def _blur_matrix(size: int, kernel: Tensor, edges: str) -> Tensor:
    reach = len(kernel) // 2
    matrix = torch.zeros(size, size, dtype=torch.float64)
    source = reflected(size, reach) if edges == "reflect" else torch.arange(-reach, size + reach) % size
    for offset, weight in enumerate(kernel):
        matrix[torch.arange(size), source[offset : offset + size]] += weight
    return matrix


class Blur(Operator):
    """Blur by any kernel: y = k * x.

    Both kinds of edges are computed by FFT. With circular edges the prox is closed, (X + g K* Y) / (1 + g |K|^2); with
    reflected ones the same expression preconditions the conjugate gradients.
    """

    def __init__(self, shape: Shape, kernel: Tensor, edges: str = "reflect") -> None:
        """Set the blur.

        Args:
            shape: Shape of a sample, ending in (H, W).
            kernel: Odd sides (h, w); its sum should be 1.
            edges: "reflect" or "circular".

        Raises:
            ValueError: If the kernel has even sides or is larger than twice the picture, or the edges are unknown.
        """
        super().__init__(shape, shape)
        _check_edges(edges)
        if kernel.ndim != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
            raise ValueError(f"kernel must have odd sides, got {tuple(kernel.shape)}; cut a row or column off.")
        if any(k > 2 * side + 1 for k, side in zip(kernel.shape, shape[-2:], strict=True)):
            raise ValueError(
                f"kernel must fit the picture of {shape[-1]} x {shape[-2]} pixels, "
                f"got {kernel.shape[1]} x {kernel.shape[0]}; use a smaller one."
            )
        self._edges = edges
        self._reach = (kernel.shape[0] // 2, kernel.shape[1] // 2)
        self._kernel = kernel.to("cpu", torch.float64)
        self._spectra: dict[tuple[int, int], Tensor] = {}

    def _spectrum(self, size: tuple[int, int], like: Tensor) -> Tensor:
        """Fourier transform of the kernel, its middle at the origin, on a torus of the given size."""
        if size not in self._spectra:
            torus = torch.zeros(size, dtype=torch.float64)
            rows = (torch.arange(self._kernel.shape[0]) - self._reach[0]) % size[0]
            columns = (torch.arange(self._kernel.shape[1]) - self._reach[1]) % size[1]
            torus.index_put_((rows[:, None], columns[None, :]), self._kernel, accumulate=True)
            self._spectra[size] = torch.fft.rfft2(torus)
        complex_dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
        return self._spectra[size].to(device=like.device, dtype=complex_dtype)

    def _convolve(self, x: Tensor, conjugate: bool = False) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        spectrum = self._spectrum(size, x)
        blurred: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * (spectrum.conj() if conjugate else spectrum), s=size)
        return blurred

    def _indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        rows, columns = (reflected(n, r) for n, r in zip(self.shape[-2:], self._reach, strict=True))
        return rows.to(device), columns.to(device)

    def forward(self, x: Tensor) -> Tensor:
        """Convolution k * x."""
        if self._edges == "circular":
            return self._convolve(x)
        rows, columns = self._indices(x.device)
        wide = self._convolve(x[..., rows, :][..., columns])
        return wide[
            ..., self._reach[0] : rows.numel() - self._reach[0], self._reach[1] : columns.numel() - self._reach[1]
        ]

    def adjoint(self, y: Tensor) -> Tensor:
        """Correlation with k; what the mirrored edge saw is added to the pixels that it mirrors."""
        if self._edges == "circular":
            return self._convolve(y, conjugate=True)
        rows, columns = self._indices(y.device)
        pad = (self._reach[1], self._reach[1], self._reach[0], self._reach[0])
        wide = self._convolve(torch.nn.functional.pad(y, pad), conjugate=True)
        folded = wide.new_zeros(*wide.shape[:-2], self.shape[-2], wide.shape[-1]).index_add_(-2, rows, wide)
        return folded.new_zeros(*folded.shape[:-1], self.shape[-1]).index_add_(-1, columns, folded)

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor | None:
        """Closed with circular edges, none with reflected ones."""
        if self._edges != "circular":
            return None
        return self.precondition(x + weight * self.adjoint(y), weight)

    def precondition(self, r: Tensor, weight: Tensor | float) -> Tensor:
        """F^-1 [F r / (1 + g |K|^2)], exact with circular edges."""
        size = (r.shape[-2], r.shape[-1])
        power = self._spectrum(size, r).abs().square()
        solved: Tensor = torch.fft.irfft2(torch.fft.rfft2(r) / (1.0 + weight * power), s=size)
        return solved

    def _measure_norm(self) -> float:
        if self._edges == "circular":
            size = (self.shape[-2], self.shape[-1])
            return float(self._spectrum(size, self._kernel).abs().max())
        # On one channel: all are blurred alike.
        one = Blur((1, *self.shape[-2:]), self._kernel, self._edges)
        return Operator._measure_norm(one)


@dataclass(frozen=True, eq=False, kw_only=True)
class DamageBlur(Damage):
    """The picture was blurred."""

    title = "Blur"
    description = "Says that the picture was blurred: out of focus, by a moving camera, or by any kernel."
    aliases = ("deblur operator", "motion blur", "point spread function", "PSF")

    kind: str = parameter(
        "gaussian",
        "gaussian: soft focus, by radius. motion: a straight move of the camera, by length and angle. kernel: the "
        "picture connected below.",
        options=KINDS,
    )
    radius: float = parameter(
        3.0, "gaussian: its standard deviation in pixels of the restored picture.", 0.1, 64.0, 0.1
    )
    length: float = parameter(
        15.0, "motion: how far the camera moved, in pixels of the restored picture.", 1.0, 255.0, 0.5
    )
    angle: float = parameter(
        0.0, "motion: its direction in degrees, 0 to the right and 90 upwards.", -180.0, 180.0, 1.0
    )
    edges: str = parameter(
        "reflect",
        "What lay beyond the edge: reflect mirrors the picture and suits photos, circular wraps it around and suits "
        "textures.",
        options=EDGES,
        advanced=True,
    )
    kernel: Tensor | None = link(
        "image",
        "kernel: a small picture of what a single point became, white on black. Even sides lose a row or column.",
        optional=True,
    )

    @property
    def label(self) -> str:
        """See Damage."""
        if self.kind == "gaussian":
            return f"blur of radius {self.radius:g}"
        return f"motion over {self.length:g} pixels" if self.kind == "motion" else "blur by a kernel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "gaussian":
            # What is no kernel is refused here, before anything is blurred.
            self._kernel()

    def build(self, shape: Shape) -> Operator:
        """See Damage."""
        if self.kind == "gaussian":
            return GaussianBlur(shape, self.radius, self.edges)
        return Blur(shape, self._kernel(), self.edges)

    def _kernel(self) -> Tensor:
        if self.kind == "motion":
            return motion_kernel(self.length, self.angle)
        if self.kernel is None:
            raise ValueError("kernel must be connected for this kind of blur, got nothing; choose gaussian or motion.")
        return picture_kernel((self.kernel[0].mean(dim=0) + 1.0) / 2.0)

    @classmethod
    def examples(cls) -> Mapping[str, tuple[Damage, Shape]]:
        """See Damage."""
        lopsided = torch.rand(1, 1, 5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        kinds = {
            "gaussian": {"radius": 1.3},
            "motion": {"length": 5.0, "angle": 30.0},
            "kernel": {"kernel": 2.0 * lopsided - 1.0},
        }
        return {
            f"{edges} {kind}": (cls(kind=kind, edges=edges, **settings), (3, 9, 12))  # type: ignore[arg-type]
            for kind, settings in kinds.items()
            for edges in EDGES
        }
