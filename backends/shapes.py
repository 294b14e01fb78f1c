"""The demo models of the Shapes world as a DiffusersModel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..demo import models
from .diffusers import Cond, DiffusersModel


def shapes_model(kind: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> DiffusersModel:
    """Load a demo model.

    Args:
        kind: "eps" (SD1.5 type) or "flow" (SD3 type).
        dtype: Type of the weights.
        device: Where to put the networks.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    loaded = models.load(kind, dtype)
    for part in (loaded.denoiser, loaded.text_encoder, loaded.vae):
        part.to(device)

    def encode(texts: Sequence[str]) -> Cond:
        return Cond(*models.encode_text(loaded, list(texts)))

    scheduler: DDIMScheduler | FlowMatchEulerDiscreteScheduler
    if kind == "eps":
        scheduler = DDIMScheduler(**models.EPS_SCHEDULE)
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=models.FLOW_SHIFT)
    return DiffusersModel(loaded.denoiser, loaded.vae, encode, scheduler, f"demo-{kind}")
