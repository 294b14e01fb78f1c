"""Restoration of damaged pictures and clips with any diffusion or flow model as the prior; torch only.

    operator = Mask((3, 64, 64), keep)                     how the picture was damaged
    measurement = Measurement(operator, damaged, sigma)    what is left of it, and how noisy
    x = dds(denoiser, start, sigmas, PixelConsistency(measurement), Noises(seed, start).draw)

``denoiser(x, sigma)`` is the model's prediction of the clean picture or latent. Latent models take EncoderAdjoint in
place of PixelConsistency.
"""

from .measurement import NOISE_FLOOR, Measurement
from .noise_deviation import noise_deviation
from .operators.operator import GREY_LEVELS
from .registry import DAMAGES
from .snap import snap
from .solvers.dds import Consistency, DDSSettings, PixelConsistency, dds
from .solvers.guided import Energy, GuidedSettings, guided
from .solvers.latent import (
    Coder,
    DecodeCorrectEncode,
    DecoderGradient,
    EncoderAdjoint,
    InPixels,
    autoencoder_noise,
    data_gradient,
    latent_consistency,
)
from .solvers.red_diff import REDDiffSettings, red_diff
from .solvers.temporal import TemporalConsistency

__all__ = [
    "DAMAGES",
    "GREY_LEVELS",
    "NOISE_FLOOR",
    "Coder",
    "Consistency",
    "DDSSettings",
    "DecodeCorrectEncode",
    "DecoderGradient",
    "EncoderAdjoint",
    "Energy",
    "GuidedSettings",
    "InPixels",
    "Measurement",
    "PixelConsistency",
    "REDDiffSettings",
    "TemporalConsistency",
    "autoencoder_noise",
    "data_gradient",
    "dds",
    "guided",
    "latent_consistency",
    "noise_deviation",
    "red_diff",
    "snap",
]
