"""What inversion and restoration stand on: the denoiser, spaces and grids, the one walk, and the registry of files."""

from .denoiser import SIGMA_FLOOR, Denoise, Denoiser, Evaluation, work_dtype
from .grid import check_falling, check_index, check_sigmas, shorten, strength_to_index
from .noise import LARGEST_SEED, Noises, generator
from .registry import all_classes, classes_by_name
from .space import SPACES, Space, check_space, clean_variance, implied_noise, mix, noise_std, vp_scale, weights
from .steps import DDIMPredictor, Euler, FireFlow, Midpoint, Step, Stepper
from .walk import AfterStep, OnStep, StepReport, walk

__all__ = [
    "LARGEST_SEED",
    "SIGMA_FLOOR",
    "SPACES",
    "AfterStep",
    "DDIMPredictor",
    "Denoise",
    "Denoiser",
    "Euler",
    "Evaluation",
    "FireFlow",
    "Midpoint",
    "Noises",
    "OnStep",
    "Space",
    "Step",
    "StepReport",
    "Stepper",
    "all_classes",
    "check_falling",
    "check_index",
    "check_sigmas",
    "check_space",
    "classes_by_name",
    "clean_variance",
    "generator",
    "implied_noise",
    "mix",
    "noise_std",
    "shorten",
    "strength_to_index",
    "vp_scale",
    "walk",
    "weights",
    "work_dtype",
]
