"""Source and target as one GUIDER, for the samplers of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...attention import AttentionPlan
from ...inversion import Inversion
from ..host.checks import check_state_fits
from .branches import Branch, BranchGuider
from .replay import SOURCE, TARGET, with_pinned_source

# SIGMAS are float32: a level this little above the record's is the record's.
_SIGMA_TOLERANCE = 1e-5


class AttendedGuider(BranchGuider):
    """A target that reads from a source while any sampler runs.

    With a record the source is pinned to it and the sampler sees the target alone. Without one, source and target
    start from the same noise and are sampled side by side; the sampler must draw no noise of its own.
    """

    def __init__(
        self,
        model: Any,
        source: Branch,
        target: Branch,
        plan: AttentionPlan,
        record: Inversion | None = None,
        both: bool = False,
        together: bool | None = None,
    ) -> None:
        """Set up the branches.

        Args:
            model: The MODEL; it is not changed.
            source: The source.
            target: The edit.
            plan: What the target reads from the source.
            record: The inversion of the source, for a pinned one.
            both: Whether the result holds the source's pictures too, in front of the target's; without a record.
            together: As in BranchGuider.
        """
        super().__init__(model, {SOURCE: source, TARGET: target}, plan, together)
        self._record = record
        self._both = both

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
            ValueError: If the latent or the levels do not fit the record.
        """
        record = self._record
        if record is not None:
            check_state_fits(record, latent_image.shape)
            start = float(sigmas[0])
            if start > record.sigma * (1.0 + _SIGMA_TOLERANCE):
                raise ValueError(
                    f"sigmas must start at or below the record's level {record.sigma:.6g}, got {start:.6g}; "
                    "connect the SIGMAS output of Invert."
                )
            return super().sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)

        def shown(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
            if callback is not None:
                callback(step, *(each if self._both else each.chunk(2)[1] for each in (x0, x)), total)

        noise, latent_image = torch.cat([noise, noise]), torch.cat([latent_image, latent_image])
        if denoise_mask is not None and denoise_mask.shape[0] > 1:
            denoise_mask = torch.cat([denoise_mask, denoise_mask])
        found = super().sample(noise, latent_image, sampler, sigmas, denoise_mask, shown, *args, **kwargs)
        return found if self._both else found.chunk(2)[1]

    def _pictures(self, shape: torch.Size) -> torch.Size:
        """Shape of the target's latent: without a record the run holds the source's pictures too."""
        return shape if self._record is not None else torch.Size((shape[0] // 2, *shape[1:]))

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Return the guided denoised of what the sampler sees."""
        if self._record is None:
            return super().predict_noise(x, timestep, model_options, seed)
        rows, levels, options = with_pinned_source(self, self._record, x, timestep, model_options)
        return super().predict_noise(rows, levels, options, seed)[-x.shape[0] :]
