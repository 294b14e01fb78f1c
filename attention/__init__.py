"""Edits inside attention: rules as data, and one executor that carries them out. Needs torch, knows no host."""

from .cache import Cache, EvaluationCache
from .calls import Attend, Call
from .climb_cache import ClimbCache
from .executor import Executor
from .grid import to_grid
from .masks import Mask, MaskSource, complement, protected, token_weights
from .plan import AttentionPlan, AttentionRun, LatentRule
from .preset import Preset, Settings
from .registry import PRESETS, get_preset
from .rows import Rows
from .rules import (
    OWN,
    SOURCE,
    TARGET,
    Accumulator,
    Add,
    FeatureRule,
    Gather,
    Join,
    Mix,
    Operand,
    Own,
    Probe,
    Rule,
    Take,
    Term,
    ValueMap,
    Values,
)
from .run_cache import RunCache, estimate
from .sites import ALL, KINDS, STACKS, Kind, Layers, Site
from .timing import Step, Window, place

__all__ = [
    "ALL",
    "KINDS",
    "OWN",
    "PRESETS",
    "SOURCE",
    "STACKS",
    "TARGET",
    "Accumulator",
    "Add",
    "Attend",
    "AttentionPlan",
    "AttentionRun",
    "Cache",
    "Call",
    "ClimbCache",
    "EvaluationCache",
    "Executor",
    "FeatureRule",
    "Gather",
    "Join",
    "Kind",
    "LatentRule",
    "Layers",
    "Mask",
    "MaskSource",
    "Mix",
    "Operand",
    "Own",
    "Preset",
    "Probe",
    "Rows",
    "Rule",
    "RunCache",
    "Settings",
    "Site",
    "Step",
    "Take",
    "Term",
    "ValueMap",
    "Values",
    "Window",
    "complement",
    "estimate",
    "get_preset",
    "place",
    "protected",
    "to_grid",
    "token_weights",
]
