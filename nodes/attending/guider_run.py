"""Source and target as one GUIDER, for the samplers of the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ...attention import SOURCE, TARGET, AttentionPlan
from ..host.checks import check_state_fits
from ..host.session import Branch, Guider
from ..inverting.link import LinkedInversion, standing_at
from .attended import Attended
from .beside_sampler import check_first_sigma


class SourceBesideTarget(Guider):
    """A target that reads from a source while any sampler runs.

    With an inversion the source stands where that says, and the sampler sees the target alone. Without one, source and
    target start from the same noise and are sampled side by side; the sampler must draw no noise of its own.

    Args:
        model: The MODEL; it is not changed.
        source: The source.
        target: The edit.
        plan: What the target reads from the source.
        inversion: The inversion of the source, or None.
        both: Whether the result holds the source's pictures too, in front of the target's; without an inversion.
    """

    def __init__(
        self,
        model: Any,
        source: Branch,
        target: Branch,
        plan: AttentionPlan,
        inversion: LinkedInversion | None = None,
        both: bool = False,
    ) -> None:
        if inversion is not None:
            source = replace(source, at=standing_at(inversion))
        branches = {SOURCE: source, TARGET: target}
        super().__init__(model, branches, Attended(model, branches, plan))
        self._inversion = inversion
        self._both = both
        self.holds = 1 if inversion is not None else 2

    def sample(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: torch.Tensor | None = None,
        callback: Callable[..., None] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Sample; called by the host.

        Raises:
            ValueError: If the latent or the sigmas do not fit the inversion.
        """
        if self._inversion is not None:
            check_state_fits(self._inversion, latent_image.shape)
            check_first_sigma(self._inversion, float(sigmas[0]))
            return super().sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)

        def shown(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
            if callback is not None:
                callback(step, *(each if self._both else each.chunk(2)[1] for each in (x0, x)), total)

        noise, latent_image = torch.cat([noise, noise]), torch.cat([latent_image, latent_image])
        if denoise_mask is not None and denoise_mask.shape[0] > 1:
            denoise_mask = torch.cat([denoise_mask, denoise_mask])
        sampled = super().sample(noise, latent_image, sampler, sigmas, denoise_mask, shown, *args, **kwargs)
        return sampled if self._both else sampled.chunk(2)[1]
