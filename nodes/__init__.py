"""The pack's nodes: the only folder that knows the host."""

from __future__ import annotations

import logging

import nodes as host_nodes
from comfy_api.latest import ComfyExtension, io

from .attending.attention_guider import AttentionGuider
from .attending.attention_inject import AttentionInject
from .attending.attention_sites import AttentionSites
from .attending.local_blend import LocalBlend
from .attending.prompt_to_prompt import PromptToPrompt
from .attending.unified_attention_control import UnifiedAttentionControl
from .attending.word_mask import WordMask
from .editing.flow_edit import FlowEdit
from .editing.infedit import InfEdit
from .editing.rf_edit import RFEdit
from .editing.visctrl import VisCtrl
from .inverting.coupled_invert import BDIAInvert, BELMInvert, EDICTCouple
from .inverting.fixed_point_invert import FixedPointInvert
from .inverting.invert import Invert
from .inverting.negative_prompt_inversion import NegativePromptInversion
from .inverting.noise_optimize import NoiseOptimize
from .inverting.null_text_optimize import NullTextOptimize
from .inverting.records import LoadInversion, SaveInversion
from .inverting.report import InversionReport
from .inverting.resample import Resample
from .inverting.rf_inversion import RFInversion
from .inverting.samplers import InversionSampler, RFSolverSample
from .inverting.source_exact import DirectInversion, NoiseMapInvert
from .inverting.spd_invert import SPDInvert
from .restoring.damages import DAMAGE_NODES
from .restoring.measurements import ApplyDamage, MeasureNoise, RestoreReport, SnapToMeasurement
from .restoring.restore_dds import RestoreDDS
from .restoring.restore_guided import RestoreGuided
from .restoring.restore_red_diff import RestoreREDDiff
from .shapes.load_shapes_model import LoadShapesModel
from .shapes.shapes_picture import ShapesPicture

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
    *DAMAGE_NODES,
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
