"""The pack's nodes: the only folder that knows the host."""

from __future__ import annotations

import logging

import nodes as host_nodes
from comfy_api.latest import ComfyExtension, io

from .attention_guider import AttentionGuider
from .attention_inject import AttentionInject
from .attention_sites import AttentionSites
from .damage_clips import DamageCombine, DamageFrames, DamageJPEG
from .damages import DamageBlackWhite, DamageBlur, DamageLowResolution, DamageMask, DamageNoise
from .fixed_point import FixedPointInvert
from .flowedit import FlowEdit
from .infedit import InfEdit
from .invert import Invert
from .local_blend import LocalBlend
from .measurements import ApplyDamage, MeasureNoise, RestoreReport, SnapToMeasurement
from .negative_prompt import NegativePromptInversion
from .noise_optimize import NoiseOptimize
from .null_text import NullTextOptimize
from .pairs import BDIAInvert, BELMInvert, EDICTCouple
from .prompt_to_prompt import PromptToPrompt
from .records import LoadInversion, SaveInversion
from .report import InversionReport
from .resample import Resample
from .restore import RestoreDDS
from .restore_guided import RestoreGuided
from .restore_red import RestoreREDDiff
from .rf_edit import RFEdit
from .rf_inversion import RFInversion
from .samplers import InversionSampler, RFSolverSample
from .shapes import LoadShapesModel
from .shapes_picture import ShapesPicture
from .source_exact import DirectInversion, NoiseMapInvert
from .spd import SPDInvert
from .unified_attention import UnifiedAttentionControl
from .visctrl import VisCtrl
from .word_mask import WordMask

_logger = logging.getLogger(__name__)

NODES: tuple[type[io.ComfyNode], ...] = (
    Invert,
    EDICTCouple,
    BDIAInvert,
    BELMInvert,
    FixedPointInvert,
    Resample,
    RFSolverSample,
    InversionSampler,
    NullTextOptimize,
    SaveInversion,
    LoadInversion,
    InversionReport,
    InfEdit,
    FlowEdit,
    LoadShapesModel,
    ShapesPicture,
    DirectInversion,
    NoiseMapInvert,
    RFInversion,
    NegativePromptInversion,
    AttentionInject,
    AttentionGuider,
    PromptToPrompt,
    LocalBlend,
    WordMask,
    AttentionSites,
    SPDInvert,
    NoiseOptimize,
    DamageMask,
    DamageLowResolution,
    DamageBlur,
    DamageBlackWhite,
    DamageJPEG,
    DamageNoise,
    DamageFrames,
    DamageCombine,
    ApplyDamage,
    MeasureNoise,
    RestoreDDS,
    RestoreREDDiff,
    RestoreGuided,
    SnapToMeasurement,
    RestoreReport,
    RFEdit,
    UnifiedAttentionControl,
    VisCtrl,
)


class RetraceExtension(ComfyExtension):
    """What the host asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the nodes whose ids are free.

        An id that the host or another pack holds already stays theirs: a workflow of that pack must not change its
        meaning because this one was installed.
        """
        free = []
        for node in NODES:
            node_id = node.define_schema().node_id
            holder = host_nodes.NODE_CLASS_MAPPINGS.get(node_id)
            if holder is not None and holder is not node:
                _logger.warning(
                    "Retrace: node id %r is taken by %s, so the node of that name in this pack is left out; "
                    "remove the other pack to use it.",
                    node_id,
                    getattr(holder, "RELATIVE_PYTHON_MODULE", None) or holder.__module__,
                )
                continue
            free.append(node)
        return free
