"""Inversion of a latent into a model's noise, and the way back. Needs torch and safetensors, knows no host."""

from ..core.denoiser import SIGMA_FLOOR, Denoiser, Evaluation, work_dtype
from ..core.grid import check_index, check_sigmas, strength_to_index
from ..core.noise import Noises
from ..core.settings import Parameter, parameter
from ..core.space import Space, implied_noise, mix, noise_std
from ..core.steps import DDIMPredictor, Euler, FireFlow, Midpoint, Step, Stepper
from ..core.walk import AfterStep, OnStep, StepReport, walk
from .api import MisfitError, adopt, check_fit, invert, own_method, replay, solver_fingerprint
from .coupled import Coupled, Descent, Shear, TwoStep, two_step
from .dry_run import sigmas_asked
from .embeddings import EmbeddingPerStep, with_embeddings
from .fingerprint import fingerprint
from .fixed_point import ImplicitEuler, solve
from .flowedit import FlowEdit
from .gradient import WalkGradient, walk_gradient
from .gradual import drawn, moved
from .infedit import InfEdit
from .inversion import Inversion
from .inversion_free import Blend, EditOptions, InversionFreeEdit
from .mask import blend
from .method import Method, MethodState, SingleState
from .metrics import psnr, relative_error, ssim
from .negative_prompt import PROX, NegativePrompt, proximal, slerp
from .noise_optimize import NoiseDescent, NoiseReport, meet, noise_optimize, with_noise
from .null_text import FitReport, NullText, null_text
from .registry import METHODS, all_settings, get_method
from .reversible import CoupledGradient, coupled_gradient
from .storage import StorageError, load, save

__all__ = [
    "METHODS",
    "PROX",
    "SIGMA_FLOOR",
    "AfterStep",
    "Blend",
    "Coupled",
    "CoupledGradient",
    "DDIMPredictor",
    "Denoiser",
    "Descent",
    "EditOptions",
    "EmbeddingPerStep",
    "Euler",
    "Evaluation",
    "FireFlow",
    "FitReport",
    "FlowEdit",
    "ImplicitEuler",
    "InfEdit",
    "Inversion",
    "InversionFreeEdit",
    "Method",
    "MethodState",
    "Midpoint",
    "MisfitError",
    "NegativePrompt",
    "NoiseDescent",
    "NoiseReport",
    "Noises",
    "NullText",
    "OnStep",
    "Parameter",
    "Shear",
    "SingleState",
    "Space",
    "Step",
    "StepReport",
    "Stepper",
    "StorageError",
    "TwoStep",
    "WalkGradient",
    "adopt",
    "all_settings",
    "blend",
    "check_fit",
    "check_index",
    "check_sigmas",
    "coupled_gradient",
    "drawn",
    "fingerprint",
    "get_method",
    "implied_noise",
    "invert",
    "load",
    "meet",
    "mix",
    "moved",
    "noise_optimize",
    "noise_std",
    "null_text",
    "own_method",
    "parameter",
    "proximal",
    "psnr",
    "relative_error",
    "replay",
    "save",
    "sigmas_asked",
    "slerp",
    "solve",
    "solver_fingerprint",
    "ssim",
    "strength_to_index",
    "two_step",
    "walk",
    "walk_gradient",
    "with_embeddings",
    "with_noise",
    "work_dtype",
]
