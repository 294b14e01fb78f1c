"""What travels on an INVERSION link."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from comfy_api.latest import io

from ...inversion import Inversion, work_dtype
from ..host.latents import into_model, out_of_model
from ..host.session import Branch, State

InversionType = io.Custom("INVERSION")


@dataclass(frozen=True, eq=False)
class LinkedInversion(Inversion):
    """An inversion with what this session knows beyond it.

    One that comes from a file has no conditioning: embeddings belong to a text encoder and are not stored.

    Attributes:
        source: CONDITIONING that the source was inverted under, None after loading.
        negative: Negative CONDITIONING of the inversion, None without one or after loading.
        samples: The source's own samples, None after loading.
        extras: The other entries of the source LATENT, such as batch_index and noise_mask.
    """

    source: Any = None
    negative: Any = None
    samples: torch.Tensor | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inversion: Inversion, **known: Any) -> LinkedInversion:
        """Return an inversion with what is known beyond it."""
        return cls(**{each.name: getattr(inversion, each.name) for each in fields(Inversion)}, **known)

    @property
    def cfg(self) -> float:
        """Guidance scale of the inversion."""
        return float(self.meta.get("cfg", 1.0))

    def with_conditioning(self, source: Any, negative: Any) -> LinkedInversion:
        """Return the inversion with other conditionings where they are given."""
        return replace(
            self,
            source=self.source if source is None else source,
            negative=self.negative if negative is None else negative,
        )

    def branch(self, purpose: str, standing: bool = False) -> Branch:
        """Return the source as a branch of a run.

        Args:
            purpose: What it is for, for the error.
            standing: Whether it stands where the inversion says, instead of walking along.

        Raises:
            ValueError: If its conditioning is not known.
        """
        if self.source is None:
            raise ValueError(
                f"source must be connected to {purpose} that was loaded from a file, got nothing; "
                "connect the conditioning that it was inverted with."
            )
        return Branch(self.source, self.negative, self.cfg, standing_at(self) if standing else None)


def standing_at(inversion: Inversion) -> State:
    """Return where an inversion's source stands at a sigma, in a precision that the device has."""
    cast: dict[torch.dtype, Inversion] = {}

    def state(sigma: float, device: torch.device) -> torch.Tensor:
        dtype = work_dtype(device)
        if dtype not in cast:
            cast[dtype] = inversion.to_precision(dtype)
        return cast[dtype].state_at(sigma, device)

    return state


def source_samples_of(model: Any, inversion: LinkedInversion) -> torch.Tensor:
    """Return the source's samples: its own, or as read back from the inversion.

    A value of exactly 0, common in padded latents, would come back as 1e-17 through a format with a shift; where the
    state is the one that 0 maps to, it is 0 again.

    Args:
        model: The MODEL.
        inversion: The inversion.

    Returns:
        Samples on the CPU, shape (B, C, *).
    """
    if inversion.samples is not None:
        return inversion.samples
    dtype = getattr(torch, str(inversion.meta.get("latent_dtype", "float32")), torch.float32)
    samples = out_of_model(model, inversion.x0, dtype)
    zeros = into_model(model, torch.zeros_like(inversion.x0)).to(inversion.dtype)
    return torch.where(inversion.x0 == zeros, torch.zeros_like(samples), samples)
