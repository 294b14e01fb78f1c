"""A VAE between the model's states and pictures in [-1, 1], without the host's clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch

from ..host.gradients import ordinary_format


class Autoencoder:
    """Decodes states of a model to pictures and encodes pictures to states.

    The host's own decode clips to [0, 1], which would bias every residual; this calls its networks directly.
    """

    def __init__(
        self, vae: Any, latent_format: Any, load_with: Any = None, state: tuple[int, ...] | None = None
    ) -> None:
        """Load the networks.

        Args:
            vae: The host's VAE.
            latent_format: The latent format of the model.
            load_with: The model that must stay loaded beside it.
            state: Shape of the states to come, for whose decoding memory is kept free.

        Raises:
            ValueError: If the VAE does not work on pictures.
        """
        probe = vae.process_input(torch.tensor([0.0, 0.5, 1.0]))
        if not torch.allclose(probe.float(), torch.tensor([-1.0, 0.0, 1.0])):
            raise ValueError("vae must encode pictures, got one with another range; connect the model's own VAE.")
        self._vae = vae
        self._format = ordinary_format(latent_format)
        models = [vae.patcher] if load_with is None else [load_with, vae.patcher]
        needed = 0 if state is None else vae.memory_used_decode((1, *state[1:]), vae.vae_dtype)
        comfy.model_management.load_models_gpu(models, memory_required=needed)

    def decode(self, state: torch.Tensor) -> torch.Tensor:
        """Pictures of states.

        Args:
            state: Shape (B, C, h, w) or (B, C, T, h, w).

        Returns:
            Shape (B, 3, H, W) or (B, T, 3, H, W), float32 on the state's device, not clipped.
        """
        latent = self._format.process_out(state)
        pictures = self._run(self._vae.first_stage_model.decode, latent, self._vae.memory_used_decode)
        return pictures.transpose(1, 2) if pictures.ndim == 5 else pictures

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """States of pictures; shapes as in decode."""
        clip = pictures.transpose(1, 2) if pictures.ndim == 5 else pictures
        latent = self._run(self._vae.first_stage_model.encode, clip, self._vae.memory_used_encode)
        state: torch.Tensor = self._format.process_in(latent)
        return state

    def _run(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        batch: torch.Tensor,
        memory_used: Callable[[Any, torch.dtype], float],
    ) -> torch.Tensor:
        one = memory_used((1, *batch.shape[1:]), self._vae.vae_dtype)
        rows = max(1, int(comfy.model_management.get_free_memory(self._vae.device) / max(1.0, one)))
        done = []
        for part in torch.split(batch, rows):
            comfy.model_management.throw_exception_if_processing_interrupted()
            answer = network(part.to(self._vae.vae_dtype).to(self._vae.device))
            done.append(answer.to(batch.device).float())
        return torch.cat(done)


class Pixels:
    """Stands in for an autoencoder where the model samples pictures themselves."""

    def __init__(self, latent_format: Any) -> None:
        """Take the model's latent format.

        Raises:
            ValueError: If the model samples latents.
        """
        channels = getattr(latent_format, "latent_channels", None)
        if channels != 3:
            raise ValueError(
                f"vae must be connected for a model of latents with {channels} channels, got none; "
                "connect the VAE of the model's loader."
            )
        self._format = latent_format

    def decode(self, state: torch.Tensor) -> torch.Tensor:
        """The picture."""
        picture: torch.Tensor = self._format.process_out(state)
        return picture

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """The state."""
        state: torch.Tensor = self._format.process_in(pictures)
        return state
