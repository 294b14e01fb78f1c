"""Edits inside attention: rules as data, and one executor that carries them out. Needs torch, knows no host."""

from .calls import Attend
from .executor import Executor
from .grid import Mask, MaskSource, to_grid, token_weights
from .plan import AttentionPlan, AttentionRun, LatentRule
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
from .timing import Step, Window

__all__ = [
    "ALL",
    "KINDS",
    "OWN",
    "SOURCE",
    "STACKS",
    "TARGET",
    "Accumulator",
    "Add",
    "Attend",
    "AttentionPlan",
    "AttentionRun",
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
    "Probe",
    "Rows",
    "Rule",
    "Shelf",
    "Site",
    "Step",
    "Store",
    "Take",
    "Term",
    "ValueMap",
    "Values",
    "Window",
    "to_grid",
    "token_weights",
]
