"""How a picture or clip was damaged: one file an operator."""

from .black_white import REC601, REC709, BlackWhite
from .blur import EDGES, Blur, GaussianBlur
from .combine import Combine
from .frames import AveragedFrames, DroppedFrames, InterlacedFrames, PerFrame
from .jpeg import JPEG, quality_tables
from .kernels import gaussian_kernel, motion_kernel, picture_kernel
from .low_resolution import FILTERS, LowResolution
from .mask import Mask
from .noise import Noise
from .operator import Operator, Shape

__all__ = [
    "EDGES",
    "FILTERS",
    "JPEG",
    "REC601",
    "REC709",
    "AveragedFrames",
    "BlackWhite",
    "Blur",
    "Combine",
    "DroppedFrames",
    "GaussianBlur",
    "InterlacedFrames",
    "LowResolution",
    "Mask",
    "Noise",
    "Operator",
    "PerFrame",
    "Shape",
    "gaussian_kernel",
    "motion_kernel",
    "picture_kernel",
    "quality_tables",
]
