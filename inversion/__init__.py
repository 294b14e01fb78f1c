"""Inversion of a latent into a model's noise, and the way back. Needs torch and safetensors, knows no host."""

from ..core.denoiser import SIGMA_FLOOR, Denoiser, Evaluation, Space, implied_noise, mix, noise_std, work_dtype
from ..core.steps import DDIMPredictor, Euler, FireFlow, Midpoint, Step, Stepper
from ..core.walk import AfterStep, OnStep, StepReport, walk
from .api import MisfitError, adopt, check_fit, invert, own_method, replay, solver_fingerprint, strength_to_level
from .dry_run import levels_asked
from .embeddings import EmbeddingPerStep, with_embeddings
from .fingerprint import fingerprint
from .fixed_point import ImplicitEuler, solve
from .flowedit import FlowEdit
from .flowedit_blend import BlendedFlowEdit
from .gradient import WalkGradient, walk_gradient
from .gradual import drawn, moved, of_rows
from .infedit import InfEdit
from .infedit_branches import BranchedInfEdit
from .mask import blend, keep_source, source_state
from .method import Method, MethodState, Parameter, SingleState, parameter
from .metrics import psnr, relative_error, ssim
from .negative_prompt import PROX, NegativePrompt, proximal, slerp
from .noise_optimize import NoiseReport, meet, noise_optimize, with_noise
from .null_text import FitReport, null_text
from .paired import Noises, PairedEdit
from .pairs import Descent, Pair, Shear, TwoStep, two_step
from .record import Inversion, check_level, check_sigmas
from .registry import METHODS, all_settings, get_method
from .reversible import PairGradient, pair_gradient
from .storage import RecordError, load, save
from .trajectory import beside, state_at

__all__ = [
    "METHODS",
    "PROX",
    "SIGMA_FLOOR",
    "AfterStep",
    "BlendedFlowEdit",
    "BranchedInfEdit",
    "DDIMPredictor",
    "Denoiser",
    "Descent",
    "EmbeddingPerStep",
    "Euler",
    "Evaluation",
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
    "NegativePrompt",
    "NoiseReport",
    "Noises",
    "OnStep",
    "Pair",
    "PairGradient",
    "PairedEdit",
    "Parameter",
    "RecordError",
    "Shear",
    "SingleState",
    "Space",
    "Step",
    "StepReport",
    "Stepper",
    "TwoStep",
    "WalkGradient",
    "adopt",
    "all_settings",
    "beside",
    "blend",
    "check_fit",
    "check_level",
    "check_sigmas",
    "drawn",
    "fingerprint",
    "get_method",
    "implied_noise",
    "invert",
    "keep_source",
    "levels_asked",
    "load",
    "meet",
    "mix",
    "moved",
    "noise_optimize",
    "noise_std",
    "null_text",
    "of_rows",
    "own_method",
    "pair_gradient",
    "parameter",
    "proximal",
    "psnr",
    "relative_error",
    "replay",
    "save",
    "slerp",
    "solve",
    "solver_fingerprint",
    "source_state",
    "ssim",
    "state_at",
    "strength_to_level",
    "two_step",
    "walk",
    "walk_gradient",
    "with_embeddings",
    "with_noise",
    "work_dtype",
]
