"""Edits inside attention: rules as data, and one executor that carries them out. Needs torch, knows no host."""

from .bank import Bank, estimate
from .calls import Attend
from .executor import Executor
from .grid import Mask, MaskSource, complement, protected, to_grid, token_weights
from .plan import AttentionPlan, AttentionRun, LatentRule
from .preset import FAMILIES, Preset, Settings
from .recording import Recording
from .registry import PRESETS, get_preset
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
from .sites import ALL, KINDS, STACKS, Kind, Layers, Site
from .store import Rows, Shelf, Store
from .timing import Step, Window, place

__all__ = [
    "ALL",
    "FAMILIES",
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
    "Bank",
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
    "Recording",
    "Rows",
    "Rule",
    "Settings",
    "Shelf",
    "Site",
    "Step",
    "Store",
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
