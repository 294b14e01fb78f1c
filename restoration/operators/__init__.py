"""How a picture or clip was damaged: one file an operator, with the recipe that makes it."""

from .black_white import REC601, REC709, BlackWhite, DamageBlackWhite
from .blur import Blur, DamageBlur, GaussianBlur
from .combine import Combine, DamageCombine
from .damage import Damage, one_or
from .frames import AveragedFrames, DamageFrames, DroppedFrames, InterlacedFrames
from .jpeg import JPEG, DamageJPEG, SavedAs, quality_tables
from .kernels import gaussian_kernel, motion_kernel, picture_kernel
from .low_resolution import DamageLowResolution, LowResolution
from .mask import DamageMask, Mask
from .noise import DamageNoise, Noise
from .operator import Operator, Shape

__all__ = [
    "JPEG",
    "REC601",
    "REC709",
    "AveragedFrames",
    "BlackWhite",
    "Blur",
    "Combine",
    "Damage",
    "DamageBlackWhite",
    "DamageBlur",
    "DamageCombine",
    "DamageFrames",
    "DamageJPEG",
    "DamageLowResolution",
    "DamageMask",
    "DamageNoise",
    "DroppedFrames",
    "GaussianBlur",
    "InterlacedFrames",
    "LowResolution",
    "Mask",
    "Noise",
    "Operator",
    "SavedAs",
    "Shape",
    "gaussian_kernel",
    "motion_kernel",
    "one_or",
    "picture_kernel",
    "quality_tables",
]
