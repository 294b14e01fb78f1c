"""A NOISE for stock samplers that lands exactly on an inverted state."""

from __future__ import annotations

from typing import Any

import torch

from ..host.parametrisation import coefficients, model_sampling_of


class RecordedNoise:
    """The noise with which a stock sampler starts from an inverted state, whatever latent it is given.

    A stock sampler starts at ``a z + b n``; a and b are measured on the host's own noise_scaling at the first level
    (so its scaling at the top level and a model's noise scale are in them), and

        n = (x_k - a z) / b

    is solved when the sampler asks, with the z that it will use. At flow sigma 1 a is 0, so any latent of the right
    size will do; with the source latent the noise is also the one that a noise_mask needs.

    Attributes:
        seed: 0; the host hands it to nodes that want a seed.
    """

    def __init__(self, model: Any, state: torch.Tensor, sigma: float) -> None:
        """Measure the host's weights.

        Args:
            model: The MODEL that made the inversion.
            state: The inverted state x_k, shape (B, C, *).
            sigma: Its level.
        """
        self.seed = 0
        # Not the model itself: this object lives in the host's cache and must not keep weights alive.
        self._latent_format = model.get_model_object("latent_format")
        self._state = state
        self._latent_weight, self._noise_weight = coefficients(model_sampling_of(model), sigma)

    def generate_noise(self, input_latent: dict[str, Any]) -> torch.Tensor:
        """Solve for the noise, as a stock sampler asks for it.

        Args:
            input_latent: The LATENT that the sampler starts from, before the model's latent format is applied.

        Returns:
            Noise of the latent's shape on the CPU, float32 or the latent's own wider dtype.

        Raises:
            ValueError: If the latent has another size than the inverted one.
        """
        samples: torch.Tensor = input_latent["samples"]
        if tuple(samples.shape) != tuple(self._state.shape):
            raise ValueError(
                f"latent_image must have the size of the inverted latent {tuple(self._state.shape)}, "
                f"got {tuple(samples.shape)}; connect the LATENT output of Invert."
            )
        clean = samples.to("cpu", torch.float64)
        # The host does not map an all-zero latent, whose shift would otherwise be taken for a picture.
        if bool(torch.count_nonzero(clean) > 0):
            clean = self._latent_format.process_in(clean)
        noise = (self._state.to(torch.float64) - self._latent_weight * clean) / self._noise_weight
        return noise.to(samples.dtype if samples.dtype == torch.float64 else torch.float32)
