"""Inversion of a latent into a model's noise, and the way back. Needs torch and safetensors, knows no host."""

from .api import MisfitError, adopt, check_fit, invert, own_method, replay, solver_fingerprint, strength_to_level
from .embeddings import EmbeddingPerStep, with_embeddings
from .field import SIGMA_FLOOR, Evaluation, Field, Space, implied_noise, mix, noise_std, work_dtype
from .fingerprint import fingerprint
from .fixed_point import ImplicitEuler, solve
from .flowedit import FlowEdit
from .infedit import InfEdit
from .mask import blend, keep_source, source_state
from .method import Method, MethodState, Parameter, SingleState, parameter
from .metrics import psnr, relative_error, ssim
from .null_text import FitReport, null_text
from .paired import Noises, PairedEdit
from .pairs import Pair, TwoStep, two_step
from .record import Inversion, check_level, check_sigmas
from .registry import METHODS, all_settings, get_method
from .steps import DDIMPredictor, Euler, FireFlow, Midpoint, Step, Stepper
from .storage import RecordError, load, save
from .trajectory import beside, state_at
from .walk import AfterStep, OnStep, StepReport, walk

__all__ = [
    "METHODS",
    "SIGMA_FLOOR",
    "AfterStep",
    "DDIMPredictor",
    "EmbeddingPerStep",
    "Euler",
    "Evaluation",
    "Field",
    "FireFlow",
    "FitReport",
    "FlowEdit",
    "ImplicitEuler",
    "InfEdit",
    "Inversion",
    "Method",
    "MethodState",
    "Midpoint",
    "MisfitError",
    "Noises",
    "OnStep",
    "Pair",
    "PairedEdit",
    "Parameter",
    "RecordError",
    "SingleState",
    "Space",
    "Step",
    "StepReport",
    "Stepper",
    "TwoStep",
    "adopt",
    "all_settings",
    "beside",
    "blend",
    "check_fit",
    "check_level",
    "check_sigmas",
    "fingerprint",
    "get_method",
    "implied_noise",
    "invert",
    "keep_source",
    "load",
    "mix",
    "noise_std",
    "null_text",
    "own_method",
    "parameter",
    "psnr",
    "relative_error",
    "replay",
    "save",
    "solve",
    "solver_fingerprint",
    "source_state",
    "ssim",
    "state_at",
    "strength_to_level",
    "two_step",
    "walk",
    "with_embeddings",
    "work_dtype",
]
