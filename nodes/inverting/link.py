"""What travels on an INVERSION link."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from comfy_api.latest import io

from ...inversion import Inversion
from ..host.latents import into_model, out_of_model

InversionType = io.Custom("INVERSION")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A record with what this session knows beyond it.

    A record that comes from a file has no conditioning: embeddings belong to a text encoder and are not stored.

    Attributes:
        record: The inversion, complete in itself.
        source: CONDITIONING that the source was inverted under, None after loading.
        negative: Negative CONDITIONING of the inversion, None without one or after loading.
        samples: The source's own samples, None after loading.
        extras: The other entries of the source LATENT, such as batch_index and noise_mask.
    """

    record: Inversion
    source: Any = None
    negative: Any = None
    samples: torch.Tensor | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def cfg(self) -> float:
        """Guidance scale of the inversion."""
        return float(self.record.meta.get("cfg", 1.0))

    def with_conditioning(self, source: Any, negative: Any) -> Bundle:
        """Return the bundle with other conditionings where they are given."""
        return replace(
            self,
            source=self.source if source is None else source,
            negative=self.negative if negative is None else negative,
        )


def source_of(model: Any, bundle: Bundle) -> torch.Tensor:
    """Return the source's samples: its own, or as read back from the record.

    A value of exactly 0, common in padded latents, would come back as 1e-17 through a format with a shift; where the
    record's state is the one that 0 maps to, it is 0 again.

    Args:
        model: The MODEL.
        bundle: The inversion.

    Returns:
        Samples on the CPU, shape (B, C, *).
    """
    if bundle.samples is not None:
        return bundle.samples
    record = bundle.record
    dtype = getattr(torch, str(bundle.record.meta.get("latent_dtype", "float32")), torch.float32)
    samples = out_of_model(model, record.x0, dtype)
    zeros = into_model(model, torch.zeros_like(record.x0)).to(record.dtype)
    return torch.where(record.x0 == zeros, torch.zeros_like(samples), samples)
