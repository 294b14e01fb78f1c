"""Restoration of damaged pictures and clips with any diffusion or flow model as the prior; torch only.

    operator = Mask((3, 64, 64), keep)                     how the picture was damaged
    measurement = Measurement(operator, damaged, sigma)    what is left of it, and how noisy
    x = dds(denoise, start, sigmas, "ve", PixelConsistency(measurement), fresh_noise(start, seed))

``denoise(x, sigma)`` is the model's prediction of the clean picture or latent. Latent models take EncoderAdjoint in
place of PixelConsistency.
"""

from .levels import Denoise, Report, Space
from .measurement import NOISE_FLOOR, Measurement
from .noise_level import noise_level
from .snap import snap
from .solvers.dds import Consistency, PixelConsistency, dds
from .solvers.fresh import fresh_noise
from .solvers.guided import Energy, guided
from .solvers.latent import DecodeCorrectEncode, DecoderGradient, EncoderAdjoint, autoencoder_noise
from .solvers.red_diff import red_diff
from .solvers.temporal import TemporalConsistency

__all__ = [
    "NOISE_FLOOR",
    "Consistency",
    "DecodeCorrectEncode",
    "DecoderGradient",
    "Denoise",
    "EncoderAdjoint",
    "Energy",
    "Measurement",
    "PixelConsistency",
    "Report",
    "Space",
    "TemporalConsistency",
    "autoencoder_noise",
    "dds",
    "fresh_noise",
    "guided",
    "noise_level",
    "red_diff",
    "snap",
]
